// Numbers as people read them. Every function takes a number with the unit in its name.

const round = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** 1536 MiB -> ["1.50", "GiB"]: the number and its unit apart, so that a page can set them apart. */
export function bytes(n_bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = n_bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return [round(value, unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2), units[unit]];
}

export const size = (n_bytes) => bytes(n_bytes).join("\u00a0");

export const rate = (tokens_per_s) => round(tokens_per_s, tokens_per_s >= 100 ? 0 : 1);

export const count = (n) => round(n, 0);

export function seconds(s) {
  if (s < 10) return `${round(s, 1)}\u00a0s`;
  if (s < 60) return `${round(s, 0)}\u00a0s`;
  const whole = Math.round(s);
  if (whole < 3600) return `${Math.floor(whole / 60)}\u00a0min ${whole % 60}\u00a0s`;
  return `${Math.floor(whole / 3600)}\u00a0h ${Math.floor((whole % 3600) / 60)}\u00a0min`;
}

/** Of a token: 0.0184 -> "18 ms", 1.31 -> "1.3 s". */
export const wait = (s) =>
  s < 1 ? `${round(1000 * s, s < 0.01 ? 1 : 0)}\u00a0ms` : seconds(s);

export const mebibytes = (n_bytes) => `${count(n_bytes / 2 ** 20)}\u00a0MiB`;

export const celsius = (c) => `${round(c, 0)}\u00a0°C`;

export const watts = (w) => `${round(w, w < 10 ? 2 : 1)}\u00a0W`;

export const joules = (j) => (j < 3600 ? `${count(j)}\u00a0J` : `${round(j / 3600, 1)}\u00a0Wh`);

/** Seconds since 1970 -> "23 Nov 2026, 09:14". */
export const date = (time_s) =>
  new Date(1000 * time_s).toLocaleString("en-GB", {
    day: "numeric",
    month: "short",
    year: "numeric",
    hour: "2-digit",
    minute: "2-digit",
  });

/** 135000000 -> "135 million". */
export function parameters(n) {
  if (n >= 1e9) return `${round(n / 1e9, 1)} billion`;
  return n >= 1e6 ? `${round(n / 1e6, 0)} million` : count(n);
}

// Says things to screen readers, politely. A block is said once, when it is complete: never token by token.

const KEPT_S = 15; // long enough to be read out, short enough not to be found twice when browsing

const log = document.getElementById("announcer");

export function announce(text) {
  if (!text.trim()) return;
  const line = document.createElement("p");
  line.textContent = text;
  log.append(line);
  setTimeout(() => line.remove(), KEPT_S * 1000);
}

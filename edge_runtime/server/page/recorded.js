// What the recorded requests cost: half of them, and the slow ones.

import { rows } from "./rows.js";
import * as units from "./units.js";

const [, list, words] = document.getElementById("recorded").children;

/** `stats`: one answer of `/stats`. */
export function showRecorded(stats) {
  words.textContent = sentence(stats);
  if (!stats.recording) return list.replaceChildren();
  const { ttft_s, itl_p50_s, itl_p99_s, tokens_per_s } = stats.percentiles;
  const speed = (value) => `${units.rate(value)}\u00a0tok/s`;
  rows(list, {
    "First token": range(units.wait, ["p50", ttft_s?.p50], ["p95", ttft_s?.p95]),
    "Between tokens": range(units.wait, ["p50", itl_p50_s?.p50], ["p99", itl_p99_s?.p50]),
    Speed: range(speed, ["p5", tokens_per_s?.p5], ["p50", tokens_per_s?.p50]),
  });
}

/** Two values in words, and as a bar in a bar. */
function range(words, [lowName, low], [highName, high]) {
  if (low === undefined || high === undefined) return null;
  const bar = document.createElement("div");
  bar.className = "used";
  bar.append(document.createElement("i"));
  bar.firstChild.style.width = `${(100 * low) / high}%`;
  return [`${lowName}\u00a0${words(low)}, ${highName}\u00a0${words(high)}`, bar];
}

function sentence({ recording, n, since }) {
  if (!recording) return "Requests are not recorded: the server runs with --no-records.";
  if (n === 0) return "No request was recorded yet.";
  return `${units.count(n)} ${n === 1 ? "request" : "requests"} since ${units.date(since)}.`;
}

// A line over the last two minutes, drawn as SVG.

export const SPAN_S = 120;

const GAP_S = 4; // no sample for longer (a hidden page): the line is broken, not invented
const WIDTH = 120;
const HEIGHT = 40;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  #area = document.createElementNS(SVG, "path");
  #line = document.createElementNS(SVG, "path");

  constructor(svg) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.#area.setAttribute("class", "area");
    this.#line.setAttribute("class", "line");
    svg.append(this.#area, this.#line);
  }

  /** `samples`: `{ at_s, value }`, oldest first; a null value is a gap. `top`: the value at the upper edge. */
  draw(samples, top, now_s) {
    const runs = [];
    let previous = null;
    for (const { at_s, value } of samples) {
      if (value === null) {
        previous = null;
        continue;
      }
      if (previous === null || at_s - previous > GAP_S) runs.push([]);
      runs
        .at(-1)
        .push([
          (WIDTH * (at_s - now_s + SPAN_S)) / SPAN_S,
          HEIGHT - 1 - ((HEIGHT - 2) * Math.min(value, top)) / top,
        ]);
      previous = at_s;
    }
    const path = (run) => run.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");
    this.#line.setAttribute("d", runs.map((run) => `M${path(run)}`).join(""));
    this.#area.setAttribute(
      "d",
      runs
        .map((run) => `M${run[0][0]},${HEIGHT}L${path(run)}L${run.at(-1)[0]},${HEIGHT}Z`)
        .join(""),
    );
  }
}

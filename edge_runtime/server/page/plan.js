// What the settings take of the memory, part by part, above what is really used.

import { rows } from "./rows.js";
import * as units from "./units.js";

const [, stack, used, legend, words] = document.getElementById("plan").children;

/** `plan`: one answer of `/plan`; `used_bytes` may be null. Both bars have one scale. */
export function showPlan(plan, used_bytes) {
  const top = Math.max(plan.total_bytes, used_bytes);
  const bar = (n_bytes) => {
    const part = document.createElement("i");
    part.style.width = `${(100 * n_bytes) / top}%`;
    return part;
  };
  stack.replaceChildren(...Object.values(plan.parts).map(bar));
  used.replaceChildren(bar(used_bytes));
  const sizes = { ...plan.parts, together: plan.total_bytes };
  if (plan.gpu_bytes > 0) sizes["on the GPU"] = plan.gpu_bytes;
  sizes["used now"] = used_bytes;
  rows(
    legend,
    Object.fromEntries(
      Object.entries(sizes).map(([name, n]) => [name, n === null ? null : units.mebibytes(n)]),
    ),
  );
  const free = units.mebibytes(plan.available_bytes);
  words.textContent = `It ${plan.fits ? "fits" : "does not fit"} the ${free} that were free.`;
}

// What the machine is doing: slots, speed, memory and heat, now and over the last two minutes.

import * as api from "./api.js";
import { Chart, SPAN_S } from "./chart.js";
import { showPlan } from "./plan.js";
import { showRecorded } from "./recorded.js";
import { rows } from "./rows.js";
import * as units from "./units.js";

const panel = document.getElementById("panel");
const toggle = document.getElementById("panel-toggle");
const detail = document.getElementById("panel-detail");
const RECORDED_EVERY_MS = 10_000;
const MANY_SLOTS = 4; // squares for more do not fit the bar of a phone: it tells the number

const put = (name, text) => {
  for (const node of panel.querySelectorAll(`[data-live="${name}"]`)) node.textContent = text;
};

export class Panel {
  #samples = []; // { at_s, rate, memory, free, temperature }
  #plan = null;
  #recordedAt = -Infinity;
  #asking = false;
  #charts = Array.from(panel.querySelectorAll("[data-chart]"), (svg) => [
    svg.dataset.chart,
    new Chart(svg),
  ]);

  constructor() {
    toggle.addEventListener("click", () => {
      const open = toggle.getAttribute("aria-expanded") !== "true";
      toggle.setAttribute("aria-expanded", open);
      panel.classList.toggle("open", open);
    });
  }

  /** One answer of `/live`. */
  take(live) {
    const now_s = performance.now() / 1000;
    this.#samples.push({
      at_s: now_s,
      rate: live.tokens_per_s ?? null,
      memory: live.memory_bytes ?? null,
      free: live.memory_available_bytes ?? null,
      temperature: live.machine.temperature_c,
    });
    this.#samples = this.#samples.filter(({ at_s }) => now_s - at_s <= SPAN_S);
    this.#showSlots(live);
    this.#showRate(now_s);
    this.#showMemory(now_s);
    this.#showMachine(live.machine, now_s);
    this.#ask(live);
  }

  /** One answer of `/health`. */
  describe({
    model,
    device,
    slots,
    ctx_per_slot,
    threads,
    kv_type,
    flash_attention,
    restarts,
    uptime_s,
    version,
  }) {
    const offloaded =
      device.kind === "gpu" ? `, ${device.n_layers_gpu} of ${device.n_layers} layers` : "";
    const facts = {
      Model: model && model.name,
      Weights:
        model &&
        `${model.quantization}, ${units.size(model.file_bytes)}, ${units.parameters(model.n_params)} parameters`,
      Device: `${device.name} (${device.kind.toUpperCase()}${offloaded})`,
      Threads: threads,
      Context: `${units.count(ctx_per_slot)} tokens for each of ${slots} ${slots === 1 ? "slot" : "slots"}`,
      "KV cache": `${kv_type}, flash attention ${flash_attention ? "on" : "off"}`,
      Running: `${units.seconds(Math.floor(uptime_s)).replace(".0", "")}, ${restarts} ${restarts === 1 ? "restart" : "restarts"}`,
      Version: version,
    };
    rows(document.getElementById("facts"), facts);
  }

  /** The server is gone or not ready: old numbers must not look like new ones. */
  set stale(value) {
    panel.classList.toggle("stale", value);
    if (value) this.#plan = null; // it may come back with other settings
  }

  /** Only while somebody sees it. The plan takes a process of its own, which would slow an answer down. */
  async #ask({ status, slots }) {
    if (this.#asking || detail.offsetParent === null) return;
    this.#asking = true;
    try {
      if (performance.now() - this.#recordedAt > RECORDED_EVERY_MS) {
        showRecorded(await api.stats());
        this.#recordedAt = performance.now();
      }
      if (status === "ok" && slots.every(({ state }) => state === "idle"))
        this.#plan ??= await api.plan();
    } catch {
      await new Promise((later) => setTimeout(later, RECORDED_EVERY_MS)); // `Server` says what is wrong
    } finally {
      this.#asking = false;
    }
  }

  #showSlots({ slots, waiting, ctx_per_slot }) {
    const busy = slots.filter(({ state }) => state !== "idle").length;
    const many = slots.length > MANY_SLOTS;
    put(
      "busy",
      [many && `${busy}/${slots.length} busy`, waiting > 0 && `+${waiting}`]
        .filter(Boolean)
        .join(" "),
    );
    put("waiting", waiting > 0 ? `${waiting} waiting for a slot` : "");
    const squares = many
      ? []
      : slots.map(({ state }) => {
          const square = document.createElement("i");
          square.dataset.state = state;
          return square;
        });
    panel.querySelector('[data-live="slots"]').replaceChildren(...squares);
    panel.querySelector('[data-live="slot-list"]').replaceChildren(
      ...slots.map(({ state, n_tokens }) => {
        const row = document.createElement("li");
        const used = document.createElement("div");
        used.className = "used";
        used.append(document.createElement("i"));
        used.firstChild.style.width = `${(100 * n_tokens) / (ctx_per_slot || Infinity)}%`;
        const words = document.createElement("span");
        words.textContent = state;
        const tokens = document.createElement("span");
        tokens.textContent = `${units.count(n_tokens)} tokens`;
        row.dataset.state = state;
        row.append(words, used, tokens);
        return row;
      }),
    );
  }

  #showRate(now_s) {
    const known = this.#samples.map(({ rate }) => rate).filter((rate) => rate !== null);
    const peak = Math.max(...known, 0);
    const last = this.#samples.at(-1).rate;
    put("rate", last === null ? "–" : units.rate(last));
    put("rate-range", `Peak ${units.rate(peak)} in 2\u00a0min`);
    this.#draw("rate", "rate", Math.max(peak * 1.1, 1), now_s);
  }

  /** The upper edge is what the machine could give, so the line tells how full it is. */
  #showMemory(now_s) {
    const { memory, free } = this.#samples.at(-1);
    const [value, unit] = memory === null ? ["–", "GiB"] : units.bytes(memory);
    put("memory", value);
    put("memory-unit", unit);
    put("memory-range", free === null ? "" : `${units.size(free)} still free`);
    if (this.#plan) showPlan(this.#plan, memory);
    const top = Math.max(...this.#samples.map((s) => (s.memory ?? 0) + (s.free ?? 0)), 1);
    this.#draw("memory", "memory", top, now_s);
  }

  #showMachine({ temperature_c, throttled, power_w, energy_j, energy_source, power_mode }, now_s) {
    const known = this.#samples.map((s) => s.temperature).filter((c) => c !== null);
    const told = known.length > 0;
    put("temperature-range", told ? `Peak ${units.celsius(Math.max(...known))} in 2\u00a0min` : "");
    panel.querySelector('[data-chart="temperature"]').toggleAttribute("hidden", !told);
    this.#draw("temperature", "temperature", Math.max(100, ...known), now_s);
    rows(document.querySelector("#machine dl"), {
      Temperature: temperature_c === null ? null : units.celsius(temperature_c),
      Slowed: throttled === null ? null : throttled ? "yes, by heat or a limit" : "no",
      Power: power_w === null ? null : units.watts(power_w),
      Energy: energy_j === null ? null : `${units.joules(energy_j)} (${energy_source})`,
      "Power mode": power_mode,
    });
  }

  #draw(name, field, top, now_s) {
    const samples = this.#samples.map((s) => ({ at_s: s.at_s, value: s[field] }));
    for (const [chart, view] of this.#charts) if (chart === name) view.draw(samples, top, now_s);
  }
}

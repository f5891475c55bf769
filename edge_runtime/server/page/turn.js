// One question with its answer on the page: waiting, answering, then done, stopped or failed.

import { announce } from "./announcer.js";
import { copy } from "./clipboard.js";
import { described } from "./kinds.js";
import { Rendering } from "./rendering.js";
import * as units from "./units.js";

// Where an answer stands, in a word.
const PROGRESS = { waiting: "Reading", thinking: "Thinking", answering: "Answering" };

// Why thoughts ended, where the model did not end them itself.
const CLOSED = { budget: ", cut at their limit", loop: ", cut since they went in circles" };

export class Turn {
  text = "";
  #thoughts = "";
  #n_thoughts = 0; // tokens
  #ending = {};
  #notice = ""; // the emergency, which stands above the answer
  #closing = ""; // what an answer in JSON cannot end with
  #rendering;
  #grown;
  #finish = null;
  #cost = null;
  #startedAt = 0;
  #clock = null;
  #countdown = null;

  /**
   * Args:
   *   question: what the user wrote.
   *   retry: called with this turn when the user asks for another try.
   *   grown: called after each change of height.
   */
  constructor(question, { retry, grown }) {
    this.question = question;
    this.node = document.getElementById("turn").content.firstElementChild.cloneNode(true);
    this.#grown = grown;
    this.#find('[data-role="user"]').textContent = question;
    this.#find('[data-action="retry"]').addEventListener("click", () => retry(this));
    this.#find('[data-action="copy"]').addEventListener("click", () => this.#copy());
  }

  start() {
    this.text = this.#thoughts = "";
    this.#n_thoughts = 0;
    this.#ending = {};
    this.#find(".thoughts").open = false;
    this.#showThoughts();
    this.#finish = null;
    this.#cost = null;
    this.#tell({ notice: "", words: "" });
    this.#find(".answer").replaceChildren();
    this.#rendering = new Rendering(this.#find(".answer"), this.#grown);
    this.#startedAt = performance.now();
    this.#state("waiting");
    this.#clock = setInterval(() => this.#tick(), 1000);
    this.#tick();
  }

  /** One event of `api.answer`. */
  take({ facts, thoughts, text, finish, ending, usage, timings }) {
    if (facts) {
      this.#closing = facts.closing;
      this.#tell({ notice: facts.notice, words: described(facts) });
    } else if (thoughts) {
      this.#thoughts += thoughts;
      this.#n_thoughts += 1; // a piece is a token, but for the last
      if (this.node.dataset.state === "waiting") this.#state("thinking");
      this.#showThoughts();
    } else if (text && text.trimEnd() !== this.#notice) {
      this.text += text;
      if (this.node.dataset.state !== "answering") this.#state("answering");
      this.#rendering.show(this.text);
    }
    if (finish) {
      this.#finish = finish;
      this.#ending = ending;
      this.#n_thoughts = ending.thoughts?.n_tokens ?? 0;
      this.#showThoughts(CLOSED[ending.thoughts?.end]);
    }
    if (usage) this.#cost = { usage, timings };
  }

  async done() {
    this.#end("done");
    this.#showCost(this.#cost ? costOf(this.#cost) : [`${units.seconds(this.#elapsed)}`]);
    const fields = fieldsOf(this.text);
    if (fields) this.#rendering.show(`${fields}\n\n${this.#closing}`);
    await this.#settle("");
    this.#find(".cut").hidden = this.#finish !== "length";
    this.#find(".cut").textContent = this.#ending.cut
      ? "The answer went in circles and was cut here."
      : "The answer reached its length limit and ends here.";
    if (!this.text) this.#showFailure("The model ended its answer without a word.", "Try again");
    this.#grown();
  }

  async stopped() {
    this.#end("stopped");
    this.#showCost([`Stopped after ${units.seconds(this.#elapsed)}`]);
    await this.#settle("Stopped.");
    this.#showFailure(this.text ? "" : "Stopped before the first word.", "Ask again");
  }

  /** `error` is from `api.js`: its message is the server's sentence. */
  async failed(error) {
    this.#end("failed");
    this.#showCost([`Ended after ${units.seconds(this.#elapsed)}`]);
    this.#showFailure(error.message, "Try again", error.retryAfterS);
    announce(error.message);
    await this.#settle("");
  }

  /** Another question follows: this one cannot be tried again. */
  close() {
    this.#stopCountdown();
    this.#find('[data-action="retry"]').hidden = true;
  }

  remove() {
    this.#stopCountdown();
    clearInterval(this.#clock);
    this.node.remove();
  }

  #tell({ notice, words }) {
    this.#notice = notice;
    for (const [selector, said] of [
      [".emergency", notice],
      [".kind", words],
    ]) {
      this.#find(selector).textContent = said;
      this.#find(selector).hidden = !said;
    }
    this.#grown();
  }

  /** Folded away, with a count that lives. */
  #showThoughts(closed = "") {
    const node = this.#find(".thoughts");
    node.hidden = !this.#thoughts;
    node.querySelector("span").textContent = `${units.count(this.#n_thoughts)} tokens${closed}`;
    node.querySelector("div").textContent = this.#thoughts;
    this.#grown();
  }

  #find(selector) {
    return this.node.querySelector(selector);
  }

  get #elapsed() {
    return (performance.now() - this.#startedAt) / 1000;
  }

  #state(state) {
    this.node.dataset.state = state;
    const busy = state in PROGRESS;
    this.#find('[data-role="assistant"]').setAttribute("aria-busy", busy);
    this.#find(".progress").hidden = !busy;
    if (busy) {
      this.#find(".progress span").textContent = PROGRESS[state];
      this.#stopCountdown();
      for (const part of [".failure", ".cut", ".foot"]) this.#find(part).hidden = true;
    }
    this.#grown();
  }

  #tick() {
    this.#find(".progress time").textContent = units
      .seconds(Math.floor(this.#elapsed))
      .replace(".0", "");
  }

  #end(state) {
    clearInterval(this.#clock);
    this.#state(state);
  }

  async #settle(word) {
    await this.#rendering.finish();
    announce(word);
    this.#find(".foot").hidden = !this.text;
    this.#grown();
  }

  #showCost(parts) {
    this.#find('[data-role="cost"]').replaceChildren(
      ...parts.map((part) => Object.assign(document.createElement("li"), { textContent: part })),
    );
  }

  #showFailure(sentence, label, retryAfterS = null) {
    const button = this.#find('[data-action="retry"]');
    this.#find(".failure p").textContent = sentence;
    this.#find(".failure p").hidden = !sentence;
    this.#find(".failure").hidden = false;
    button.textContent = label;
    button.hidden = false;
    if (retryAfterS > 0) this.#countDown(button, label, Math.ceil(retryAfterS));
    this.#grown();
  }

  #countDown(button, label, left_s) {
    button.disabled = true;
    const step = () => {
      button.textContent = left_s > 0 ? `${label} in ${left_s}\u00a0s` : label;
      if (left_s <= 0) this.#stopCountdown();
      left_s -= 1;
    };
    this.#countdown = setInterval(step, 1000);
    step();
  }

  #stopCountdown() {
    clearInterval(this.#countdown);
    this.#find('[data-action="retry"]').disabled = false;
  }

  async #copy() {
    const label = this.#find('[data-action="copy"] span');
    const word = (await copy([this.#notice, this.text].filter(Boolean).join("\n\n"))) ? "Copied" : "Could not copy";
    label.textContent = word;
    announce(word);
    setTimeout(() => (label.textContent = "Copy"), 2000);
  }
}

/** An answer in JSON as Markdown: each field with its name; null if it is text. */
function fieldsOf(text) {
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) return null;
  const said = (field) => (typeof field === "string" ? field : JSON.stringify(field));
  return Object.entries(value)
    .map(([name, field]) => `**${name}:** ${said(field)}`)
    .join("\n\n");
}

/** What an answer took, in a few short phrases; what was not measured is left out. */
function costOf({ usage, timings }) {
  const n_read = timings.n_prompt ?? usage.prompt_tokens;
  const n_cached = timings.n_cached ?? usage.prompt_tokens_details?.cached_tokens ?? 0;
  const n_written = timings.n_generated ?? usage.completion_tokens;
  const { total_s, ttft_s, queued_s, tokens_per_s, peak_memory_bytes } = timings;
  const speed = tokens_per_s == null ? "" : ` at ${units.rate(tokens_per_s)}\u00a0tok/s`;
  return [
    total_s != null && units.seconds(total_s),
    queued_s >= 0.1 && `queued ${units.seconds(queued_s)}`,
    ttft_s != null && `first token ${units.seconds(ttft_s)}`,
    `${units.count(n_written)} tokens written${speed}`,
    `${units.count(n_read)} in the prompt${n_cached > 0 ? `, ${units.count(n_cached)} reused` : ""}`,
    peak_memory_bytes != null && `peak memory ${units.size(peak_memory_bytes)}`,
  ].filter(Boolean);
}

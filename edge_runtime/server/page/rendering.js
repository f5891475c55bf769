// Text that grows, shown as Markdown that the server renders. Asks at most four times a second, one call at a time.

import { announce } from "./announcer.js";
import { markdown } from "./api.js";

const INTERVAL_MS = 260;

export class Rendering {
  #node;
  #grown; // called after each change of height
  #text = "";
  #timer = null;
  #call = null; // the render in flight
  #lastCall = -Infinity;
  #rich = false; // HTML has come at least once
  #announced = 0; // top-level blocks already said

  constructor(node, grown) {
    this.#node = node;
    this.#grown = grown;
  }

  show(text) {
    this.#text = text;
    if (!this.#rich) this.#plain();
    this.#timer ??= setTimeout(
      () => this.#render(),
      Math.max(0, this.#lastCall + INTERVAL_MS - performance.now()),
    );
  }

  /** Renders everything once more; when that fails, the plain text is shown. */
  async finish() {
    await this.#call;
    clearTimeout(this.#timer);
    if (this.#text && !(await this.#renderNow())) this.#plain();
    this.#announce(this.#node.children.length);
    if (!this.#rich) announce(this.#text);
  }

  async #render() {
    this.#call = this.#renderNow();
    const asked = this.#text;
    await this.#call;
    this.#timer = null;
    if (this.#text !== asked) this.show(this.#text);
  }

  async #renderNow() {
    this.#lastCall = performance.now();
    try {
      this.#replace(await markdown(this.#text));
      return true;
    } catch {
      return false; // the answer matters more than its form
    }
  }

  #plain() {
    this.#rich = false;
    this.#node.classList.add("plain");
    this.#node.textContent = this.#text;
    this.#grown();
  }

  /** Only what differs is replaced, so that a selection in a finished paragraph survives. */
  #replace(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    for (const table of template.content.querySelectorAll("table")) {
      const frame = document.createElement("div");
      frame.className = "wide-table";
      table.replaceWith(frame);
      frame.append(table);
    }
    if (!this.#rich) this.#node.replaceChildren();
    this.#rich = true;
    this.#node.classList.remove("plain");
    const wanted = [...template.content.children];
    const present = [...this.#node.children];
    wanted.forEach((block, i) => {
      if (!present[i]) this.#node.append(block);
      else if (!present[i].isEqualNode(block)) present[i].replaceWith(block);
    });
    present.slice(wanted.length).forEach((block) => block.remove());
    this.#announce(wanted.length - 1); // the last block is still being written
    this.#grown();
  }

  #announce(n_blocks) {
    for (; this.#rich && this.#announced < n_blocks; this.#announced += 1) {
      announce(this.#node.children[this.#announced].innerText);
    }
  }
}

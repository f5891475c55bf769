// The box, Send and Stop. Knows when a question may be sent; does not know how.

const form = document.getElementById("composer");
const box = document.getElementById("question");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const reason = document.getElementById("reason");

export class Composer {
  #refusal = "Waiting for the server"; // why nothing can be sent now, or ""
  #answering = false;

  /** `ask(question)` is called when the user sends, `halt()` when the user stops an answer. */
  constructor({ ask, halt }) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const question = box.value.trim();
      if (this.#ready && question) {
        this.fill("");
        ask(question);
      }
    });
    box.addEventListener("input", () => this.#show());
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    stop.addEventListener("click", halt);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#answering) halt();
    });
    this.#show();
  }

  get #ready() {
    return !this.#refusal && !this.#answering;
  }

  set refusal(sentence) {
    if (sentence === this.#refusal) return;
    this.#refusal = sentence;
    this.#show();
  }

  set answering(value) {
    const focused = document.activeElement;
    this.#answering = value;
    this.#show();
    if (focused === send && value) stop.focus();
    if (focused === stop && !value) this.focus();
  }

  fill(text) {
    box.value = text;
    this.#show();
  }

  /** Gives a question that failed back, unless the user has begun another one. */
  restore(question) {
    if (!box.value.trim()) this.fill(question);
  }

  /** Takes a restored question out again, unless it was edited. */
  clear(question) {
    if (box.value.trim() === question) this.fill("");
  }

  focus() {
    // On a touch screen the box would open the keyboard over the answer.
    const touch = matchMedia("(pointer: coarse)").matches;
    (touch ? document.getElementById("messages") : box).focus({ preventScroll: true });
  }

  #show() {
    send.hidden = this.#answering;
    stop.hidden = !this.#answering;
    send.disabled = !this.#ready || !box.value.trim();
    send.title = this.#refusal;
    reason.textContent = this.#refusal;
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
  }
}

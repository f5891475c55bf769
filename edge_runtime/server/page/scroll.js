// Keeps the end of the conversation in view, until the user scrolls up to read.

const view = document.getElementById("messages");
const latest = document.getElementById("latest");

export class Scroll {
  #following = true;
  #top = 0;

  constructor() {
    view.addEventListener(
      "scroll",
      () => {
        // The bottom first: text that gets shorter also moves the view up.
        if (this.#below <= 4) this.#following = true;
        else if (view.scrollTop < this.#top) this.#following = false;
        this.#top = view.scrollTop;
        this.#showLatest();
      },
      { passive: true },
    );
    latest.addEventListener("click", () => {
      this.toEnd();
      view.focus({ preventScroll: true });
    });
    new ResizeObserver(() => this.grown()).observe(view); // a keyboard opens, a phone is turned
  }

  get #below() {
    return view.scrollHeight - view.clientHeight - view.scrollTop;
  }

  /** The content has another height. */
  grown() {
    if (this.#following) view.scrollTop = view.scrollHeight;
    this.#showLatest();
  }

  toEnd() {
    this.#following = true;
    this.grown();
  }

  #showLatest() {
    latest.hidden = this.#following || this.#below <= 4;
  }
}

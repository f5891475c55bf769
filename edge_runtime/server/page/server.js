// Watches the server: how it is, once a second while somebody looks. Asks for the key when one is needed.

import * as api from "./api.js";

const INTERVAL_MS = 1000;
const HEALTH_EVERY_MS = 30_000; // while all is well; otherwise every time

const dialog = document.getElementById("key-dialog");
const field = document.getElementById("key");
const keyError = document.getElementById("key-error");

export class Server {
  health = null;
  status = "connecting"; // or "unreachable", "locked", "error", or what `/health` says
  #problem = "";
  #healthAt = -Infinity;
  #timer = null;
  #asking = false;
  #keyTried = false;
  #on;

  /** `on.status(server)`, `on.health(health)` and `on.live(live)` are called with what is new. */
  constructor(on) {
    this.#on = on;
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.getElementById("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      api.setKey(field.value.trim());
      field.value = "";
      this.#keyTried = true;
      dialog.close();
    });
    dialog.addEventListener("close", () => this.look()); // Escape twice also closes it, whatever the page says
    document.addEventListener("visibilitychange", () => this.look());
  }

  /** Looks now, and then once a second. */
  async look() {
    clearTimeout(this.#timer);
    if (this.#asking || dialog.open || document.hidden) return;
    this.#asking = true;
    try {
      await this.#ask();
    } catch (error) {
      this.#problem = error.message;
      if (error.status === 401) this.lock(error);
      this.#become(
        error.status === 401 ? "locked" : error instanceof api.Refused ? "error" : "unreachable",
      );
    } finally {
      this.#asking = false;
      if (!dialog.open) this.#timer = setTimeout(() => this.look(), INTERVAL_MS);
    }
  }

  /** The server has refused the key, or has had none. */
  lock(error) {
    if (dialog.open) return;
    keyError.textContent = this.#keyTried ? error.message : "";
    dialog.showModal();
    field.focus();
  }

  /** In a sentence, why nothing can be asked now; "" when all is well. */
  get sentence() {
    const { health } = this;
    switch (this.status) {
      case "ok":
        return "";
      case "connecting":
        return "Connecting to the server.";
      case "locked":
        return "The server needs a key.";
      case "loading":
        return "The model is loading.";
      case "restarting":
        return "The engine stopped and is starting again. The conversation is kept.";
      case "failed":
        return health?.error ?? "The model could not be loaded.";
      case "error":
        return this.#problem;
      default:
        return `${this.#problem} Trying again every second; the conversation is kept.`;
    }
  }

  /** The same in a few words, for the place beside Send. */
  get reason() {
    switch (this.status) {
      case "ok":
        return "";
      case "locked":
        return "Waiting for the key";
      case "loading":
        return "Waiting for the model to load";
      case "restarting":
        return "Waiting for the engine";
      case "failed":
        return "No model is loaded";
      default:
        return "Waiting for the server";
    }
  }

  async #ask() {
    if (this.status !== "ok" || performance.now() - this.#healthAt > HEALTH_EVERY_MS)
      await this.#askHealth();
    if (this.status === "failed") return;
    const live = await api.live();
    this.#on.live(live);
    if (this.status === "ok" && live.status !== "ok") await this.#askHealth();
  }

  async #askHealth() {
    this.health = await api.health();
    this.#healthAt = performance.now();
    this.#on.health(this.health);
    this.#become(this.health.status);
  }

  #become(status) {
    this.status = status;
    this.#on.status(this);
  }
}

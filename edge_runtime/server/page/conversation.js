// What was asked and answered, and what of it the model is shown. In memory only; knows nothing of the page.

/** `crypto.randomUUID` exists in secure contexts only, and a phone on the clinic's network is not in one. */
function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  const hex = Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

export class Conversation {
  id = uuid();
  turns = []; // each has `question` and `text`

  get last() {
    return this.turns.at(-1);
  }

  add(turn) {
    this.turns.push(turn);
  }

  drop(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
  }

  /** The messages that lead to the answer of `turn`. Turns without an answer are left out: roles must alternate. */
  messages(turn) {
    const before = this.turns.slice(0, this.turns.indexOf(turn)).filter((t) => t.text);
    return [
      ...before.flatMap((t) => [
        { role: "user", content: t.question },
        { role: "assistant", content: t.text },
      ]),
      { role: "user", content: turn.question },
    ];
  }
}

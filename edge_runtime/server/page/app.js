// Puts the parts together: what happens when somebody asks, stops, tries again or begins anew.

import { announce } from "./announcer.js";
import * as api from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import * as kinds from "./kinds.js";
import { Panel } from "./panel.js";
import { Scroll } from "./scroll.js";
import { Server } from "./server.js";
import { Turn } from "./turn.js";

const $ = (id) => document.getElementById(id);

const DEMO = "Not a diagnosis. This demonstration model is too small for clinical use.";
const NOTICE = "Not a diagnosis; check every answer.";

// Small models repeat themselves: a little pressure against that. Those that think have their own advice.
const pressure = () => (server.health.model?.thinks ? {} : { repeat_penalty: 1.1 });

let conversation = new Conversation();
let running = null; // { turn, stop, ended }: the answer that is being written
const unforgotten = new Set(); // conversations that the server has not yet confirmed to have cleared

const scroll = new Scroll();
const panel = new Panel();
const composer = new Composer({ ask, halt: () => running?.stop.abort() });
const server = new Server({
  status: showStatus,
  health: showHealth,
  live: (live) => panel.take(live),
});

function ask(question) {
  const last = conversation.last;
  last?.close();
  if (last && !last.text) {
    conversation.drop(last);
    last.remove();
  }
  const turn = new Turn(question, { retry, grown: () => scroll.grown() });
  conversation.add(turn);
  $("turns").append(turn.node);
  $("empty").hidden = true;
  $("forgotten").hidden = true;
  answer(turn);
}

function retry(turn) {
  if (running) return;
  composer.clear(turn.question);
  answer(turn);
}

function answer(turn) {
  const stop = new AbortController();
  running = { turn, stop, ended: write(turn, stop.signal) };
  composer.answering = true;
}

async function write(turn, signal) {
  turn.start();
  scroll.toEnd();
  const request = {
    model: server.health.model?.name,
    conversation: conversation.id,
    messages: conversation.messages(turn),
    template: kinds.chosen(),
    ...pressure(),
  };
  let show;
  try {
    for await (const event of api.answer(request, signal)) turn.take(event);
    show = () => turn.done();
  } catch (error) {
    show = () => (signal.aborted ? turn.stopped() : turn.failed(error));
    if (!signal.aborted) composer.restore(turn.question);
    if (error.status === 401) server.lock(error);
  }
  running = null;
  composer.answering = false;
  await show();
}

async function beginAnew() {
  const ended = running?.ended;
  running?.stop.abort();
  if (conversation.turns.length > 0) unforgotten.add(conversation.id);
  for (const turn of conversation.turns) turn.remove();
  conversation = new Conversation();
  $("empty").hidden = false;
  composer.fill("");
  composer.focus();
  scroll.grown();
  await ended; // the slot must be let go before it can be cleared
  await forget();
}

/** The page is clear at once; whether the server's copy is, is said as it is. */
async function forget() {
  if (unforgotten.size === 0) return;
  let sentence = "The previous conversation was cleared from the server's memory.";
  try {
    for (const id of unforgotten) {
      await api.forget(id);
      unforgotten.delete(id);
    }
  } catch (error) {
    sentence = `The server has not yet cleared the previous conversation. ${error.message}`;
  }
  const [words, again] = $("forgotten").children;
  words.textContent = sentence;
  again.hidden = unforgotten.size === 0;
  $("forgotten").hidden = false;
  announce(sentence);
}

function showStatus({ status, sentence, reason, health }) {
  const [words, progress, percent] = $("banner").children;
  const share = status === "loading" ? (health?.load_progress ?? null) : null;
  $("banner").hidden = status === "ok" || status === "connecting" || status === "locked";
  $("banner").dataset.status = status;
  if (words.textContent !== sentence) words.textContent = sentence; // or it is announced every second
  progress.hidden = percent.hidden = share === null;
  if (share !== null) {
    progress.value = share;
    percent.textContent = `${Math.round(share * 100)}\u00a0%`;
  }
  composer.refusal = reason;
  panel.stale = status !== "ok";
  if (status === "ok" && unforgotten.size > 0 && !running) forget();
}

function showHealth(health) {
  const { model } = health;
  $("model").textContent = $("model").title = model?.name ?? ""; // CSS may cut it
  $("notice").textContent = model?.demo ? DEMO : NOTICE;
  kinds.offer(health.templates);
  panel.describe(health);
}

$("new-conversation").addEventListener("click", beginAnew);
$("forgotten").querySelector("button").addEventListener("click", forget);
for (const example of $("examples").querySelectorAll("button")) {
  example.addEventListener("click", () => {
    composer.fill(example.textContent);
    $("question").focus();
  });
}
addEventListener("pagehide", () => {
  // The page may come back as it was, so the conversation goes on if it does: it carries all its messages.
  const ids = new Set(unforgotten);
  if (conversation.turns.length > 0) ids.add(conversation.id);
  for (const id of ids) api.forget(id, { keepalive: true }).catch(() => {});
});

server.look();

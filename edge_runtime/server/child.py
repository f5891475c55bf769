"""The engine's process: reads `Ask` and friends from stdin, steps the engine, writes events to stdout.

Two threads: one reads the line, renders templates and tokenizes; the main one steps. When the other end
of the line closes, the process ends at once: nobody is left to answer.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

from ..engine.embedder import Embedder, EmbedderConfig
from ..engine.engine import Engine, EngineConfig
from ..engine.llama import Model
from ..engine.prefix import common_length
from ..engine.request import Delta, Done, Event, Failed, Request, Thinking
from ..errors import Cancelled, InvalidModel, MedgeError
from ..prompts.chat import ChatTemplate
from ..prompts.plain import Hidden, Plain
from ..prompts.thinking import CLOSE, CLOSING, GAP, is_open
from .line import (
    Ask,
    Cancel,
    Forget,
    GiveBack,
    LoadFailed,
    Loading,
    Ping,
    Ready,
    Running,
    Start,
    Step,
    pack,
    receive,
)

SNAPSHOT_PERIOD_S = 0.5

# Tokens that a merge across a border of text may reach back.
N_JOINED = 8

# The id of the request that reads a beginning; others are longer.
BEGINNING = "beginning"


@dataclass
class Turn:
    """A turn of a conversation that may have a next one: what was asked, and the answer so far."""

    ask: Ask
    answer: str = ""


class Child:
    """One engine, for text or for embeddings, and its end of the line."""

    def __init__(self, engine: Engine | Embedder, template: ChatTemplate, out: BinaryIO) -> None:
        self._engine = engine
        self._template = template
        self._out = out
        self._refused: list[Event] = []
        self._pinged = False
        self._turns: dict[str, Turn] = {}
        self._beginnings: list[list[int]] = []
        self._reading: list[int] = []
        self._lock = threading.Lock()  # the reading thread and the loop share the three above

    def read(self, stream: BinaryIO) -> None:
        """Take messages until the line closes; then end the process."""
        while True:
            message = receive(stream)
            if message is None:
                os._exit(0)
            if isinstance(message, Ask):
                self._ask(message)
            elif isinstance(message, Cancel):
                self._engine.cancel(message.id)
            elif isinstance(message, Forget):
                if isinstance(self._engine, Engine):  # an embedder keeps nothing
                    self._engine.forget(message.conversation)
            elif isinstance(message, GiveBack):
                if isinstance(self._engine, Engine):
                    self._engine.give_back()
            elif isinstance(message, Ping):
                self._pinged = True
                self._engine.wake()

    def begin_with(self, beginnings: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Have these read while nothing else is asked, unless they have been in an earlier life."""
        for messages in beginnings:
            with suppress(MedgeError):  # a question in that form will say so itself
                self._beginnings.append(self._before_question(messages))

    def loop(self) -> None:
        """Step for ever. An error that is none of ours ends the process, and the other end restarts it."""
        last = 0.0
        while True:
            if self._beginnings and isinstance(self._engine, Engine) and self._engine.has_spare_slot:
                self._read_beginning(self._engine)
            if not self._engine.wait(timeout_s=SNAPSHOT_PERIOD_S) and not self._pinged:
                continue
            events = self._engine.step()
            with self._lock:
                events, self._refused = self._refused + events, []
            self._follow(events)
            now = time.monotonic()
            due = self._pinged or now - last >= SNAPSHOT_PERIOD_S or not self._engine.busy
            if events or due:
                self._pinged = False
                last = now if due else last
                send(self._out, Step(tuple(events), self._engine.snapshot() if due else None))

    def _read_beginning(self, engine: Engine) -> None:
        self._reading = tokens = self._beginnings.pop(0)
        if not engine.keeps(tokens):
            with suppress(MedgeError):  # one that is longer than a slot
                engine.submit(Request(BEGINNING, tokens, max_tokens=0, n_shared=len(tokens)))

    def _ask(self, ask: Ask) -> None:
        self._engine.cancel(BEGINNING)  # it is read with the question, or when there is time again
        try:
            if isinstance(self._engine, Embedder):
                self._engine.submit(ask.request.id, self._tokens(ask))
            else:
                request = self._prepared(ask)
                if ask.history is not None and request.conversation is not None:
                    with self._lock:
                        self._turns[request.id] = Turn(ask)
                self._engine.submit(request)
        except MedgeError as error:
            with self._lock:
                self._refused.append(Failed(ask.request.id, error))
            self._engine.wake()

    @cached_property
    def _plain(self) -> Plain:
        return Plain(self._engine.model.special_names())

    def _follow(self, events: Sequence[Event]) -> None:
        """Collect answers of conversations, and at the end of one make its slot ready for the next turn. A
        beginning that made way for a question comes again.
        """
        for event in events:
            if event.id == BEGINNING and isinstance(event, Failed) and isinstance(event.error, Cancelled):
                self._beginnings.insert(0, self._reading)
            turn = self._turns.get(event.id) if self._turns else None
            if turn is None:
                continue
            if isinstance(event, Delta):
                turn.answer += event.text
                continue
            with self._lock:
                del self._turns[event.id]
            if isinstance(event, Done):
                self._make_ready(turn)

    def _make_ready(self, turn: Turn) -> None:
        conversation, history = turn.ask.request.conversation, turn.ask.history
        assert isinstance(self._engine, Engine) and conversation is not None and history is not None
        answer = {"role": "assistant", "content": turn.answer.rstrip("\n")}
        with suppress(MedgeError):  # a next turn in that form will say so itself
            self._engine.rewrite(conversation, self._before_question([*history, answer]))

    def _rendered(self, messages: Sequence[dict[str, Any]]) -> tuple[str, Hidden]:
        messages, hidden = self._plain.hide(messages)
        return self._template.render(messages), hidden

    def _before_question(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens of a prompt in which a question follows these messages, up to that question.

        Templates write earlier answers in another way than the last one, so there has to be a question.
        """
        question = f"\ufdd0{secrets.token_hex(8)}"
        prompt, hidden = self._rendered([*messages, {"role": "user", "content": question}])
        return self._cut(prompt.partition(question)[0], hidden)

    def _cut(self, prompt: str, hidden: Hidden) -> list[int]:
        """A rendered prompt in tokens."""
        model = self._engine.model
        # Many templates write the token themselves; twice would be a prompt the model never saw.
        bos = model.add_bos and not prompt.startswith(_text_of(model, model.bos) or "\0")
        if not hidden:
            return model.tokenize(prompt, special=True, add_bos=bos)
        tokens = [model.bos] if bos else []
        for piece, is_name in hidden.pieces(prompt):
            # A mark such as <think> is read as one even in plain text, but not in two halves.
            for part in (piece[:1], piece[1:]) if is_name else (piece,):
                tokens += model.tokenize(part, special=not is_name, add_bos=False)
        return tokens

    def _tokens(self, ask: Ask) -> list[int]:
        model = self._engine.model
        if ask.text is not None:
            # Some embedding models have no token for the beginning, but one for the end that they need.
            bos = model.add_bos or isinstance(self._engine, Embedder)
            return model.tokenize(ask.text, special=not ask.is_plain, add_bos=bos)
        tokens = list(ask.tokens or ())
        model.check_tokens(tokens)
        return tokens

    def _prepared(self, ask: Ask) -> Request:
        model = self._engine.model
        if ask.messages is not None:
            return self._for_chat(ask, ask.messages)
        tokens = self._tokens(ask)
        request = replace(ask.request, tokens=tokens)
        if request.echo:
            pieces = b"".join(model.piece(t, special=True) for t in tokens)
            request = replace(request, prompt_text=ask.text or pieces.decode("utf-8", "replace"))
        if ask.text is not None and ask.n_context:
            context = self._tokens(replace(ask, text=ask.text[: ask.n_context]))
            request = replace(request, score_from=max(0, common_length(context, tokens) - N_JOINED))
        return request

    def _for_chat(self, ask: Ask, messages: Sequence[dict[str, Any]]) -> Request:
        prompt, hidden = self._rendered(messages)
        thinks = self._template.family.thinks and is_open(prompt)
        if thinks and ask.max_thoughts == 0:
            prompt, thinks = prompt.rstrip("\n") + f"\n{CLOSING}", False
        request = replace(ask.request, tokens=self._cut(prompt, hidden))
        if ask.n_own is not None:
            own = self._before_question(messages[: ask.n_own])
            request = replace(request, n_shared=common_length(own, request.tokens))
        if not thinks:
            return request
        close, gap = (
            tuple(self._engine.model.tokenize(text, special=True, add_bos=False)) for text in (CLOSING, GAP)
        )
        thinking = Thinking(CLOSE, close, gap, ask.max_thoughts, ask.answer_tokens)
        return replace(request, thinking=thinking)


def send(out: BinaryIO, message: object) -> None:
    out.write(pack(message))
    out.flush()


def _text_of(model: Model, token: int) -> str:
    return "" if token < 0 else model.piece(token, special=True).decode("utf-8", "replace")


def main() -> None:
    # The other end decides when to stop; a Ctrl-C in the terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line_in = sys.stdin.buffer
    line_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever native code prints must not get between the messages
    start = receive(line_in)
    if not isinstance(start, Start):
        return
    begin = time.monotonic()
    last_share = -1.0

    def on_progress(share: float) -> None:
        nonlocal last_share
        if share - last_share >= 0.02 or share == 1.0:
            last_share = share
            send(line_out, Loading(share))

    def on_start(request_id: str) -> None:
        send(line_out, Running(request_id))

    try:
        engine: Engine | Embedder
        if start.embeddings:
            engine = Embedder.open(EmbedderConfig(**start.config), on_progress, on_start)
        else:
            engine = Engine.open(EngineConfig(**start.config), on_progress, on_start)
    except MedgeError as error:
        send(line_out, LoadFailed(error))
        return
    except (OSError, MemoryError, ValueError) as error:
        send(line_out, LoadFailed(InvalidModel(f"The model cannot be loaded: {error}.")))
        return
    model = engine.model
    special = {
        "bos_token": _text_of(model, model.bos),
        "eos_token": _text_of(model, model.eos),
    }
    child = Child(engine, ChatTemplate(start.template, special), line_out)
    child.begin_with(start.beginnings)
    send(
        line_out,
        Ready(
            n_params=model.n_params,
            n_layers=model.n_layers,
            n_layers_gpu=model.n_layers_gpu,
            flash_attention=model.flash_attention,
            n_ctx_train=model.n_ctx_train,
            load_s=time.monotonic() - begin,
        ),
    )
    threading.Thread(target=child.read, args=(line_in,), name="line", daemon=True).start()
    try:
        child.loop()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()

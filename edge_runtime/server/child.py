"""The engine's process: reads `Ask` and friends from stdin, steps the engine, writes events to stdout.

Two threads: one reads the line, renders templates and tokenizes; the main one steps. When the other end
of the line closes, the process ends at once: nobody is left to answer.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import cached_property
from typing import BinaryIO

from ..engine.embedder import Embedder, EmbedderConfig
from ..engine.engine import Engine, EngineConfig
from ..engine.llama import Model
from ..engine.request import Event, Failed, Request
from ..errors import InvalidModel, MedgeError
from ..prompts.chat import ChatTemplate
from ..prompts.plain import Plain
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


class Child:
    """One engine, for text or for embeddings, and its end of the line."""

    def __init__(self, engine: Engine | Embedder, template: ChatTemplate, out: BinaryIO) -> None:
        self._engine = engine
        self._template = template
        self._out = out
        self._refused: list[Event] = []
        self._pinged = False
        self._lock = threading.Lock()  # the reading thread and the loop share the two above

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

    def loop(self) -> None:
        """Step for ever. An error that is none of ours ends the process, and the other end restarts it."""
        last = 0.0
        while True:
            if not self._engine.wait(timeout_s=SNAPSHOT_PERIOD_S) and not self._pinged:
                continue
            events = self._engine.step()
            with self._lock:
                events, self._refused = self._refused + events, []
            now = time.monotonic()
            due = self._pinged or now - last >= SNAPSHOT_PERIOD_S or not self._engine.busy
            if events or due:
                self._pinged = False
                last = now if due else last
                send(self._out, Step(tuple(events), self._engine.snapshot() if due else None))

    def _ask(self, ask: Ask) -> None:
        try:
            if isinstance(self._engine, Embedder):
                self._engine.submit(ask.request.id, self._tokens(ask))
            else:
                self._engine.submit(self._prepared(ask))
        except MedgeError as error:
            with self._lock:
                self._refused.append(Failed(ask.request.id, error))
            self._engine.wake()

    @cached_property
    def _plain(self) -> Plain:
        return Plain(self._engine.model.special_names())

    def _tokens(self, ask: Ask) -> list[int]:
        model = self._engine.model
        if ask.messages is not None:
            messages, hidden = self._plain.hide(ask.messages)
            text = self._template.render(messages)
            # Many templates write the token themselves; twice would be a prompt the model never saw.
            bos = model.add_bos and not text.startswith(_text_of(model, model.bos) or "\0")
            if not hidden:
                return model.tokenize(text, special=True, add_bos=bos)
            tokens = [model.bos] if bos else []
            for piece, is_name in hidden.pieces(text):
                # A mark such as <think> is read as one even in plain text, but not in two halves.
                for part in (piece[:1], piece[1:]) if is_name else (piece,):
                    tokens += model.tokenize(part, special=not is_name, add_bos=False)
            return tokens
        if ask.text is not None:
            # Some embedding models have no token for the beginning, but one for the end that they need.
            bos = model.add_bos or isinstance(self._engine, Embedder)
            return model.tokenize(ask.text, special=True, add_bos=bos)
        tokens = list(ask.tokens or ())
        model.check_tokens(tokens)
        return tokens

    def _prepared(self, ask: Ask) -> Request:
        model = self._engine.model
        tokens = self._tokens(ask)
        request = replace(ask.request, tokens=tokens)
        if request.echo:
            pieces = b"".join(model.piece(t, special=True) for t in tokens)
            request = replace(request, prompt_text=ask.text or pieces.decode("utf-8", "replace"))
        return request


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

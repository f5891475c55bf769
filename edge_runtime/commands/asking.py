"""`medge ask` and `medge chat`: questions without a server."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeAlias, TypeVar

import typer
from rich.markup import escape

from ..config import Settings
from ..errors import InvalidSetting, MedgeError
from .loading import find_model, fitting, make_worker
from .options import ENGINE_SETTINGS, Json, as_text, decoded, err, with_settings

if TYPE_CHECKING:
    from ..engine.request import Done, Timing
    from ..models.store import ModelFile
    from ..prompts.consult import Consult
    from ..prompts.template import Template
    from ..server.line import Ask
    from ..server.wanted import Wanted
    from ..server.worker import Worker

    Asked: TypeAlias = list[dict[str, str]] | Consult

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """What came, the words around the answer included."""

    text: str
    thoughts: str
    done: Done


MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=1 << 20, help="Tokens of an answer at most. Default: the template's, or 512."),
]
MaxThinking = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0,
        max=1 << 20,
        help="Tokens of thoughts at most, of a model that has them; 0: none. Default: as the template says.",
    ),
]
TemplateName = Annotated[
    str,
    typer.Option(help="Id of a template; auto for the one that fits; none to send the question alone."),
]
Temperature = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0, max=2, help="0 always takes the most probable token."),
]


@with_settings(*ENGINE_SETTINGS)
def ask(
    settings: Settings,
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    template: TemplateName = "auto",
    max_tokens: MaxTokens = None,
    max_thinking_tokens: MaxThinking = None,
    temperature: Temperature = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    as_json: Json = False,
) -> None:
    """Ask one question, without a server. The answer streams; then one line says what it cost.

    Thoughts of a model that has them go to standard error, so that a pipe gets the answer alone.
    """
    if question == "-":
        question = decoded(sys.stdin.buffer.read())
    question = as_text(question)
    if not question.strip():
        raise InvalidSetting("The question is empty; write it in quotes, or pipe it in with -.")
    from ..server.wanted import Wanted

    wanted = Wanted(max_tokens, max_thinking_tokens, temperature, seed)
    asyncio.run(_ask_once(settings, find_model(settings), question, template, wanted, as_json))


async def _ask_once(
    settings: Settings, model: ModelFile, question: str, template: str, wanted: Wanted, as_json: bool
) -> None:
    messages = [{"role": "user", "content": question}]
    # While the model is loading: reading the rules takes half a second.
    consult = asyncio.create_task(asyncio.to_thread(_consult, settings, model, messages, template))
    async with _session(settings, model) as worker:
        show = _Silent() if as_json else _Terminal()
        asked = await consult
        answered = await _stream(worker, model, asked, wanted, show)
    done = answered.done
    if as_json:
        record: dict[str, Any] = {"model": model.name, "answer": answered.text}
        record["finish_reason"] = done.finish_reason
        if done.thoughts_end:
            record |= {"thoughts": answered.thoughts, "n_thoughts": done.n_thoughts}
            record |= {"thoughts_end": done.thoughts_end}
        facts = {} if isinstance(asked, list) else asked.facts
        print(json.dumps({**record, "loop": done.loop, **_timing(done.timing), **facts}))
    else:
        _write("\n")
        if not isinstance(asked, list) and not asked.after:  # JSON, which has no room for it
            err.print(escape(asked.closing), style="dim", highlight=False)
        err.print(_cost(done), style="dim", highlight=False)


@with_settings(*ENGINE_SETTINGS)
def chat(
    settings: Settings,
    template: TemplateName = "auto",
    max_tokens: MaxTokens = None,
    max_thinking_tokens: MaxThinking = None,
    temperature: Temperature = None,
) -> None:
    """Talk in several turns. /reset forgets the conversation, /quit ends; arrow keys bring back questions."""
    from ..server.wanted import Wanted

    with suppress(ImportError):
        import readline  # noqa: F401 - input() gets its history and arrow keys from it
    model = find_model(settings)
    with _Loop() as loop:
        session = _session(settings, model)
        worker = loop.run(session.__aenter__())
        try:
            wanted = Wanted(max_tokens, max_thinking_tokens, temperature)
            _converse(loop, worker, settings, model, template, wanted)
        finally:
            loop.run(session.__aexit__(None, None, None))


def _converse(
    loop: _Loop, worker: Worker, settings: Settings, model: ModelFile, template: str, wanted: Wanted
) -> None:
    messages: list[dict[str, str]] = []
    err.print(f"{escape(model.name)}. /reset forgets, /quit ends.", style="dim", highlight=False)
    while True:
        try:
            question = as_text(input("> "))
        except (EOFError, KeyboardInterrupt):
            _write("\n")
            return
        except (InvalidSetting, UnicodeDecodeError):
            err.print("That was not valid UTF-8; check the terminal's encoding.", style="dim")
            continue
        command = question.strip()
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            messages.clear()
            loop.call(worker.forget, "chat")
            err.print("Forgotten.", style="dim")
            continue
        if command.startswith("/"):
            err.print(f"{escape(command)} is no command. There are /reset and /quit.", style="dim")
            continue
        if not command:
            continue
        asked = [*messages, {"role": "user", "content": question}]
        try:
            consult = _consult(settings, model, asked, template)
            answered = loop.run(_stream(worker, model, consult, wanted, _Terminal()))
        except KeyboardInterrupt:
            err.print("\nStopped.", style="dim")
            continue
        except MedgeError as error:
            err.print(f"\n[bold red]medge:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
            continue
        messages = [*asked, {"role": "assistant", "content": answered.text}]
        _write("\n")
        err.print(_cost(answered.done), style="dim", highlight=False)


class _Loop:
    """An event loop in a thread of its own. The main thread stays free for input(), and for its Ctrl-C."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, function: Callable[..., object], *values: object) -> None:
        self._loop.call_soon_threadsafe(function, *values)

    def run(self, work: Awaitable[T]) -> T:
        """The result of `work`. Ctrl-C cancels it, waits until it has ended, and is raised again."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(10)  # not for ever: what is cancelled before it begins never ends
            raise


@cache
def _templates(folder: Path | None) -> Mapping[str, Template]:
    from ..prompts.template import load

    return load(folder)


def _consult(settings: Settings, model: ModelFile, messages: list[dict[str, str]], template: str) -> Asked:
    """The messages in a template, or as they are with "none"."""
    from ..prompts.consult import prepare

    if template == "none":
        return messages
    return prepare(messages, template, _templates(settings.template_folder), model.name)


async def _stream(worker: Worker, model: ModelFile, asked: Asked, wanted: Wanted, show: _Silent) -> Answered:
    """One answer. If it is cancelled, so is the request."""
    from ..engine.request import Delta, Failed

    ask = _request(model, asked, wanted)
    before, after = ("", "") if isinstance(asked, list) else (asked.before, asked.after)
    ticket = worker.submit(ask)
    text, thoughts = before, ""
    show.answer(before)
    try:
        async for event in ticket.events():
            if isinstance(event, Delta):
                text += event.text
                thoughts += event.thoughts
                show.thoughts(event.thoughts)
                show.answer(event.text)
            elif isinstance(event, Failed):
                raise event.error
            else:
                show.answer(after)
                return Answered(text + after, thoughts, event)
    finally:
        worker.cancel(ticket)
    raise AssertionError("an answer has a last event")


def _request(model: ModelFile, asked: Asked, wanted: Wanted) -> Ask:
    from ..prompts.thinking import family

    habits = family(model.header.chat_template)
    # Small models repeat themselves: a little pressure against that, as on the page.
    ask = wanted.ask(asked, habits, {"repeat_penalty": 1.1}, conversation="chat")
    if habits.thinks and ask.max_thoughts and wanted.temperature == 0:
        err.print("At temperature 0 thoughts tend to go in circles.", style="dim")
    return ask


class _Silent:
    """Shows nothing of an answer while it comes."""

    def answer(self, text: str) -> None:
        pass

    def thoughts(self, text: str) -> None:
        pass


class _Terminal(_Silent):
    """The answer on standard output; thoughts, dim, on standard error."""

    def __init__(self) -> None:
        self._thinking = False

    def answer(self, text: str) -> None:
        if text and self._thinking:
            self._thinking = False
            err.print("\n")
        _write(text)

    def thoughts(self, text: str) -> None:
        if text:
            self._thinking = True
            err.print(escape(text), style="dim", end="", highlight=False, soft_wrap=True)


@asynccontextmanager
async def _session(settings: Settings, model: ModelFile) -> AsyncIterator[Worker]:
    """A worker for one person, without a server."""
    if model.header.embeddings:
        raise InvalidSetting(
            f"{model.name} is an embedding model and writes no text. Name a text model with --model, or use "
            "medge serve and /v1/embeddings."
        )
    worker = make_worker(fitting(settings.model_copy(update={"slots": 1, "prefix_tokens": 0}), model), model)
    with err.status(f"Loading {escape(model.name)}"):
        try:
            await worker.start()
            await worker.wait_ready()
        except BaseException:
            await worker.stop(0)
            raise
    try:
        yield worker
    finally:
        await worker.stop(0)


# What is worth saying of the end of thoughts.
_ENDS = {"budget": ", cut at their limit", "loop": ", cut in circles"}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _cost(done: Done) -> str:
    timing = done.timing
    parts = [f"{timing.n_generated} tokens"]
    if done.n_thoughts:
        parts.append(f"{done.n_thoughts} of them thoughts{_ENDS.get(done.thoughts_end or '', '')}")
    if timing.ttft_s is not None:
        parts.append(f"first after {timing.ttft_s:.2f} s")
    if timing.tokens_per_s:
        parts.append(f"{timing.tokens_per_s:.1f} tok/s")
    if timing.peak_memory_bytes:
        parts.append(f"{timing.peak_memory_bytes / 1e6:,.0f} MB")
    if done.finish_reason == "length":
        parts.append("cut, since it went in circles" if done.loop else "cut at the limit")
    return " · ".join(parts)


def _timing(timing: Timing) -> dict[str, Any]:
    names = "queued_s ttft_s total_s tokens_per_s n_prompt n_cached n_generated peak_memory_bytes"
    return {name: getattr(timing, name) for name in names.split()}

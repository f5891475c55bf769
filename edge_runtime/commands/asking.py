"""`medge ask` and `medge chat`: questions without a server."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
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
    from ..engine.request import Timing
    from ..models.store import ModelFile
    from ..prompts.consult import Consult
    from ..prompts.template import Template
    from ..server.worker import Worker

    Asked: TypeAlias = list[dict[str, str]] | Consult

T = TypeVar("T")
MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=1 << 20, help="Tokens of an answer at most. Default: the template's, or 512."),
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
    temperature: Temperature = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    as_json: Json = False,
) -> None:
    """Ask one question, without a server. The answer streams; then one line says what it cost."""
    if question == "-":
        question = decoded(sys.stdin.buffer.read())
    question = as_text(question)
    if not question.strip():
        raise InvalidSetting("The question is empty; write it in quotes, or pipe it in with -.")
    asyncio.run(
        _ask_once(settings, find_model(settings), question, template, max_tokens, temperature, seed, as_json)
    )


async def _ask_once(
    settings: Settings,
    model: ModelFile,
    question: str,
    template: str,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    messages = [{"role": "user", "content": question}]
    # While the model is loading: reading the rules takes half a second.
    consult = asyncio.create_task(asyncio.to_thread(_consult, settings, model, messages, template))
    async with _session(settings, model) as worker:
        show = (lambda text: None) if as_json else _write
        asked = await consult
        text, reason, timing = await _stream(worker, asked, max_tokens, temperature, seed, show)
    if as_json:
        record = {"model": model.name, "answer": text, "finish_reason": reason, **_timing(timing)}
        print(json.dumps(record | ({} if isinstance(asked, list) else asked.facts)))
    else:
        _write("\n")
        err.print(_cost(timing, reason), style="dim", highlight=False)


@with_settings(*ENGINE_SETTINGS)
def chat(
    settings: Settings,
    template: TemplateName = "auto",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
) -> None:
    """Talk in several turns. /reset forgets the conversation, /quit ends; arrow keys bring back questions."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() gets its history and arrow keys from it
    model = find_model(settings)
    with _Loop() as loop:
        session = _session(settings, model)
        worker = loop.run(session.__aenter__())
        try:
            _converse(loop, worker, settings, model, template, max_tokens, temperature)
        finally:
            loop.run(session.__aexit__(None, None, None))


def _converse(
    loop: _Loop,
    worker: Worker,
    settings: Settings,
    model: ModelFile,
    template: str,
    max_tokens: int | None,
    temperature: float | None,
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
            text, reason, timing = loop.run(_stream(worker, consult, max_tokens, temperature, None, _write))
        except KeyboardInterrupt:
            err.print("\nStopped.", style="dim")
            continue
        except MedgeError as error:
            err.print(f"\n[bold red]medge:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
            continue
        messages = [*asked, {"role": "assistant", "content": text}]
        _write("\n")
        err.print(_cost(timing, reason), style="dim", highlight=False)


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


async def _stream(
    worker: Worker,
    asked: Asked,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    show: Callable[[str], None],
) -> tuple[str, str, Timing]:
    """One answer. If it is cancelled, so is the request."""
    import uuid

    from ..engine.request import Delta, Failed, Grammar, Request, Sampling
    from ..server.line import Ask

    # Small models repeat themselves: a little pressure against that, as on the page.
    given: dict[str, Any] = {"temperature": temperature, "seed": seed, "repeat_penalty": 1.1}
    grammar, before, after = None, "", ""
    if isinstance(asked, list):
        messages = asked
    else:
        messages, before, after = list(asked.messages), asked.before, asked.after
        given = asked.template.sampling.model_dump() | {k: v for k, v in given.items() if v is not None}
        max_tokens = max_tokens or asked.template.budget.max_answer_tokens
        if asked.template.answer_schema:
            grammar = Grammar("json_schema", json.dumps(asked.template.answer_schema))
    sampling = Sampling(**{k: v for k, v in given.items() if v is not None})
    request = Request(
        uuid.uuid4().hex, [], max_tokens=max_tokens or 512, sampling=sampling, grammar=grammar,
        conversation="chat",
    )  # fmt: skip
    ticket = worker.submit(Ask(request, messages=tuple(messages)))
    text = before
    show(before)
    try:
        async for event in ticket.events():
            if isinstance(event, Delta):
                text += event.text
                show(event.text)
            elif isinstance(event, Failed):
                raise event.error
            else:
                show(after)
                return text + after, event.finish_reason, event.timing
    finally:
        worker.cancel(ticket)
    raise AssertionError("an answer has a last event")


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


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _cost(timing: Timing, reason: str) -> str:
    parts = [f"{timing.n_generated} tokens"]
    if timing.ttft_s is not None:
        parts.append(f"first after {timing.ttft_s:.2f} s")
    if timing.tokens_per_s:
        parts.append(f"{timing.tokens_per_s:.1f} tok/s")
    if timing.peak_memory_bytes:
        parts.append(f"{timing.peak_memory_bytes / 1e6:,.0f} MB")
    if reason == "length":
        parts.append("cut at the limit")
    return " · ".join(parts)


def _timing(timing: Timing) -> dict[str, Any]:
    names = "queued_s ttft_s total_s tokens_per_s n_prompt n_cached n_generated peak_memory_bytes"
    return {name: getattr(timing, name) for name in names.split()}

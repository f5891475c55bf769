"""The commands. Each imports what it needs when it is called, so that `medge --help` is quick."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional, TypeAlias, TypeVar, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape as _plain

from . import __version__
from .config import Settings, load, state_dir
from .errors import InvalidSetting, MedgeError

if TYPE_CHECKING:
    from .engine.request import Done, Failed, Timing
    from .models.store import ModelFile
    from .prompts.consult import Consult
    from .server.worker import Worker

    Asked: TypeAlias = list[dict[str, str]] | Consult

app = typer.Typer(
    name="medge",
    help="A medical language model on machines without internet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
T = TypeVar("T")

out = Console()
err = Console(stderr=True)

ENGINE_SETTINGS = ("model", "ctx", "threads", "kv", "flash_attention", "gpu_layers", "fit", "templates")
Config = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads it at run time, on 3.10 too
    typer.Option("--config", help="TOML file with settings, the same names as the flags."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text for people.")]
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


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each named setting, and call it with `settings`.

    The flags are made from the fields of `Settings`, so that each is described in one place.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for name, p in inspect.signature(command, eval_str=True).parameters.items()
            if name != "settings"
        ]

        def run(config: Path | None = None, **given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            with errors_as_sentences():
                command(settings=load(flags, config), **given)

        parameters = [*own, *(_flag(name) for name in names)]
        parameters.append(
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        )
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keyword}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _flag(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    if get_origin(kind) is not None and type(None) in get_args(kind):
        kind = next(a for a in get_args(kind) if a is not type(None))
    text = field.description or ""
    if choices := get_args(kind):  # a Literal
        metavar = "|".join(str(c) for c in choices)
    else:
        metavar = {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")
    if field.default_factory is None and field.default is not None:
        shown = ("on" if field.default else "off") if kind is bool else field.default
        text += f" Default: {shown}."
    option = "--" + name.replace("_", "-")
    names = [f"{option}/--no-{option[2:]}"] if kind is bool else [option]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            # As text: `Settings` checks flags, environment and file alike, and says what is wrong.
            Optional[bool if kind is bool else str],  # noqa: UP045
            typer.Option(*names, help=text, metavar=None if kind is bool else metavar, show_default=False),
        ],
    )


class errors_as_sentences:
    """Turns an error of ours into one sentence on stderr and exit status 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, MedgeError):
            fail(error)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(130) from None


def fail(error: MedgeError) -> NoReturn:
    err.print(f"[bold red]medge:[/] {_plain(error.message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2 if isinstance(error, InvalidSetting) else 1) from None


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        out.print(f"medge {__version__}", highlight=False)
        raise typer.Exit()


# -- serve


@app.command()
@with_settings(*Settings.model_fields)
def serve(
    settings: Settings,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what llama.cpp says too.")] = False,
) -> None:
    """Serve a model: an API in OpenAI's form, and a page to ask it in a browser.

    Only this machine can reach it, unless you give --host and --api-key. Prompts and answers are not logged.
    """
    from .server.guard import is_loopback

    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s")
    if not is_loopback(settings.host) and not settings.api_key:
        raise InvalidSetting(
            f"--host {settings.host}: others could reach this server without a key. Add --api-key KEY "
            "(or MEDGE_API_KEY), or leave --host out."
        )
    model = _find(settings)
    _serve(_fitting(settings, model), model)


def _serve(settings: Settings, model: ModelFile) -> None:
    import uvicorn

    from .server.app import create_app
    from .telemetry.metrics import Metrics
    from .telemetry.records import Records
    from .telemetry.watch import Watch

    metrics = Metrics()
    recorded = Records(state_dir(), {"model": model.name, "medge": __version__}) if settings.records else None
    watch = Watch(lambda: [os.getpid(), *([worker.pid] if worker.pid else [])])

    def on_end(event: Done | Failed) -> None:
        metrics.observe(event)
        if recorded:
            busy = worker.snapshot.n_busy if worker.snapshot else None
            recorded.write(event, {"slots_busy": busy, "n_waiting": worker.n_waiting, **watch.facts})

    worker = _worker(settings, model, on_end)
    failure: list[MedgeError] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await worker.start()
        tasks = [
            asyncio.create_task(_announce(settings, model, worker, server, failure)),
            asyncio.create_task(watch.run()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await worker.stop(grace_s=0)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            stop = asyncio.create_task(worker.stop(settings.grace_s))
            await super().shutdown(sockets)
            await stop

    api = create_app(worker, model, settings, metrics, lifespan, lambda: watch.facts)
    server = Server(
        uvicorn.Config(
            api,
            host=settings.host,
            port=settings.port,
            log_level="error",
            access_log=False,
            server_header=False,
            # The worker ends what is still running with an error that says so; this is for sending it.
            timeout_graceful_shutdown=int(settings.grace_s) + 5,
            # Many connections may wait for an answer, but a file descriptor each has to be left for others.
            backlog=512,
        )
    )
    sock = _listen(settings)
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:
        pass  # uvicorn raises it again after it has stopped in good order
    finally:
        sock.close()
    if failure:
        raise failure[0]


def _listen(settings: Settings) -> Any:
    """The listening socket, taken before the model is loaded: a port in use should not cost minutes."""
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
        sock.listen(512)
    except OSError as error:
        sock.close()
        raise InvalidSetting(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. "
            "Take another --port, 0 for any that is free, or stop the program that uses it."
        ) from None
    return sock


async def _announce(
    settings: Settings, model: ModelFile, worker: Worker, server: Any, failure: list[MedgeError]
) -> None:
    """Show that the model loads, then what was loaded; end the server if it cannot be."""
    try:
        with _progress() as progress:
            bar = progress.add_task(f"Loading {_plain(model.name)}", total=model.header.file_bytes)
            ready = await worker.wait_ready(
                lambda share: progress.update(bar, completed=share * model.header.file_bytes)
            )
    except MedgeError as error:
        failure.append(error)
        server.should_exit = True
        return
    sock = server.servers[0].sockets[0].getsockname() if server.servers else ("", settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    out.print(_facts(settings, model, ready, f"http://{host}:{sock[1]}"))


def _facts(settings: Settings, model: ModelFile, ready: Any, address: str) -> Any:
    from rich.table import Table

    header = model.header
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    on_gpu = f"{ready.n_layers_gpu} layers on the GPU" if ready.n_layers_gpu else "CPU"
    rows = [
        ("medge", __version__),
        ("address", address),
        (
            "model",
            f"{model.name} ({header.architecture}, {ready.n_params / 1e6:,.0f} M parameters)",
        ),
        ("size", f"{header.file_bytes / 1e6:,.0f} MB, {header.quantization}"),
        ("slots", f"{settings.slots} of {header.context(settings.ctx):,} tokens, KV {settings.kv}"),
        ("threads", f"{settings.threads}, {on_gpu}"),
        ("flash attention", "on" if ready.flash_attention else "off"),
        ("loaded in", f"{ready.load_s:.1f} s"),
    ]
    for name, value in rows:
        table.add_row(name, _plain(value))
    if model.demo:
        table.add_row("[yellow]note[/]", "[yellow]A demonstration: far too small for clinical use.[/]")
    if header.embeddings:
        table.add_row("note", "An embedding model: it answers at /v1/embeddings, and writes no text.")
    if header.context(settings.ctx) > header.n_ctx_train:
        table.add_row(
            "[yellow]note[/]",
            f"[yellow]The model was trained on {header.n_ctx_train:,} tokens; longer contexts degrade.[/]",
        )
    return table


# -- ask and chat


@app.command()
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
        question = _decoded(sys.stdin.buffer.read())
    question = _text(question)
    if not question.strip():
        raise InvalidSetting("The question is empty; write it in quotes, or pipe it in with -.")
    asyncio.run(
        _ask_once(settings, _find(settings), question, template, max_tokens, temperature, seed, as_json)
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


@app.command()
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
    model = _find(settings)
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
    err.print(f"{_plain(model.name)}. /reset forgets, /quit ends.", style="dim", highlight=False)
    while True:
        try:
            question = _text(input("> "))
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
            err.print(f"{_plain(command)} is no command. There are /reset and /quit.", style="dim")
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
            err.print(f"\n[bold red]medge:[/] {_plain(error.message)}", highlight=False, soft_wrap=True)
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


def _consult(settings: Settings, model: ModelFile, messages: list[dict[str, str]], template: str) -> Asked:
    """The messages in a template, or as they are with "none"."""
    from .prompts.consult import prepare
    from .prompts.template import load as load_templates

    if template == "none":
        return messages
    return prepare(messages, template, load_templates(settings.templates), model.name)


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

    from .engine.request import Delta, Failed, Grammar, Request, Sampling
    from .server.line import Ask

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
    worker = _worker(_fitting(settings.model_copy(update={"slots": 1, "prefix_tokens": 0}), model), model)
    with err.status(f"Loading {_plain(model.name)}"):
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


# -- info


@app.command()
@with_settings("model")
def info(settings: Settings, as_json: Json = False) -> None:
    """What this machine is, and what a model file is, without loading it."""
    from dataclasses import asdict

    from .device.machine import look

    machine = look()
    model = _find(settings)
    header = model.header
    facts = {
        "machine": asdict(machine),
        "model": {
            "name": model.name,
            "path": str(model.path),
            "architecture": header.architecture,
            "quantization": header.quantization,
            "file_bytes": header.file_bytes,
            "n_params": header.n_params,
            "n_layers": header.n_layers,
            "n_ctx_train": header.n_ctx_train,
            "n_vocab": header.n_vocab,
            "kv_bytes_per_token": header.kv_bytes_per_token("f16"),
            "embeddings": header.embeddings,
            "has_chat_template": header.chat_template is not None,
            "demo": model.demo,
        },
        "versions": _versions(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    from rich.table import Table

    for title, values in facts.items():
        table = Table(title=title.capitalize(), title_justify="left", show_header=False, box=None)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(*_for_people(name, value))
        out.print(table)
        out.print()


# -- plan


@app.command()
@with_settings("slots", "ctx", "kv", "prefix_tokens", "batch", "flash_attention", "gpu_layers")
def plan(
    settings: Settings,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="GGUF file, or a name on the hub, of which only the header is fetched."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Whether a model fits into this machine's memory, and what would: nothing is loaded."""
    from .device.plan import budget, facts
    from .models.fit import given_up, ladder, plans
    from .terminal.plan import plan_table, rung_table

    found = _find(settings.model_copy(update={"model": model}), header_only=True)
    room, rungs = budget(), list(ladder(found.header, settings))
    made = plans(found.header, rungs, room)
    less = [(given_up(settings, rung), plan) for rung, plan in zip(rungs[1:], made[1:])]
    if as_json:
        told = {"model": found.name, "available_bytes": room.memory_bytes, **facts(made[0], room)}
        print(json.dumps(told | {"less": [{"settings": what} | facts(p, room) for what, p in less]}))
        return
    slots = "" if found.header.embeddings else f"{settings.slots} slots of "
    out.print(f"{_plain(found.name)}, {slots}{found.header.context(settings.ctx):,} tokens, KV {settings.kv}")
    out.print(plan_table(made[0], room))
    if room.has_room_for(made[0]):
        out.print("[green]It fits.[/]")
    else:
        out.print("[bold red]It does not fit.[/]" + (" What takes less:" if less else ""))
        out.print(rung_table(less, room))


# -- templates

templates = typer.Typer(help="The medical prompt templates, built in and your own.", no_args_is_help=True)
app.add_typer(templates, name="templates")
Folder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--folder", help="Templates of your own, which add to the built-in ones or replace them."),
]


@templates.command("list")
def list_templates(folder: Folder = None, as_json: Json = False) -> None:
    """Which templates there are, for whom, and what they take beside a question."""
    from rich.table import Table

    from .prompts.template import load as load_templates
    from .prompts.template import rows

    with errors_as_sentences():
        found = rows(load_templates(folder))
    if as_json:
        print(json.dumps(found))
        return
    table = Table(*found[0], box=None, pad_edge=False)
    for row in found:
        table.add_row(*map(_plain, row.values()))
    out.print(table)


@templates.command("show")
def show_template(
    name: Annotated[str, typer.Argument(help="Its id.")],
    language: Annotated[str, typer.Option(help="en, es, fr or zh.")] = "en",
    folder: Folder = None,
) -> None:
    """What a template says."""
    from .prompts.template import find as find_template
    from .prompts.template import load as load_templates

    with errors_as_sentences():
        out.print(
            find_template(load_templates(folder), name).show(language),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@templates.command("check")
def check_templates(files: Annotated[list[Path], typer.Argument(help="TOML files.")]) -> None:
    """Whether templates of your own can be used; a wrong one is named with its line."""
    from .prompts.template import check

    with errors_as_sentences():
        for path in files:
            found = check(path)
            out.print(f"{found.id}, version {found.version}: {len(found.tests)} tests pass.", highlight=False)


@app.command()
def classify(
    question: Annotated[str, typer.Argument(help="What somebody asks; - reads it from standard input.")],
    as_json: Json = False,
) -> None:
    """Which template a question asks for, and which emergencies it speaks of. No model is needed."""
    from rich.table import Table

    from .prompts.router import classify as classified

    with errors_as_sentences():
        found = classified(
            _text(_decoded(sys.stdin.buffer.read()) if question == "-" else question)
        ).as_json()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    for name, value in found.items():
        told = ", ".join(value) if isinstance(value, tuple) else str(value)
        table.add_row(name.replace("_", " "), _plain(told or "none"))
    out.print(table)


# -- stats


@app.command()
def stats(
    since: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only the last so many, such as 90m, 24h or 7d."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What the requests of this machine cost: percentiles of all that were recorded."""
    from .telemetry.records import percentiles, read
    from .terminal.stats import percentile_table, summary, ttft_table

    with errors_as_sentences():
        found = read(state_dir(), time.time() - _seconds(since) if since else 0.0)
    if as_json:
        names = ("p5", "p50", "p95", "p99")
        facts = {name: dict(zip(names, values)) | {"n": n} for name, n, values in percentiles(found.records)}
        others = {"n_unreadable": found.n_unreadable, "n_other": found.n_other}
        print(json.dumps({"n": len(found.records), **others, "percentiles": facts}))
        return
    if not found.records:
        out.print(f"No request was recorded in {state_dir()} yet.", soft_wrap=True, highlight=False)
        return
    out.print(percentile_table(found))
    out.print(ttft_table(found.records))
    out.print(summary(found), highlight=False)


def _seconds(span: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if not re.fullmatch(r"\d+(\.\d+)?[smhd]", span):
        raise InvalidSetting(f"--since {span}: that is no time; write 90m, 24h or 7d.")
    return float(span[:-1]) * units[span[-1]]


def _for_people(name: str, value: Any) -> tuple[str, str]:
    label = name.removesuffix("_bytes").removeprefix("n_").replace("_", " ")
    if name.endswith("_bytes"):
        return label, f"{value / 1e6:,.0f} MB"
    if isinstance(value, bool):
        return label, "yes" if value else "no"
    if value is None or value == ():
        return label, "not available"
    if isinstance(value, (list, tuple)):
        return label, " ".join(value)
    return label, f"{value:,}" if isinstance(value, int) else _plain(str(value))


def _versions() -> dict[str, str]:
    from importlib.metadata import version
    from platform import python_version

    names = ("llama_cpp_python", "fastapi", "uvicorn", "numpy")
    return {"medge": __version__, "python": python_version(), **{n: version(n) for n in names}}


# -- parts


def _find(settings: Settings, *, header_only: bool = False) -> ModelFile:
    """The model file; not within an event loop, because it may download, and Ctrl-C should end that."""
    from .models.store import find

    with err.status("Looking for the model") as status:
        return find(settings.model, lambda text: status.update(_plain(text)), header_only=header_only)


def _fitting(settings: Settings, model: ModelFile) -> Settings:
    """The settings, with what was tuned for this model, or with --fit less, if there is no room for them.

    Raises:
        NotEnoughMemory: the model would not fit; nothing is loaded.
    """
    from .models import profile
    from .models.fit import given_up, require_room

    settings = profile.apply(model.header, settings)
    found = require_room(model.header, settings)
    if found != settings:
        err.print(f"Too little memory; taking {given_up(settings, found)}.", style="yellow", highlight=False)
    return found


def _worker(settings: Settings, model: ModelFile, on_end: Callable[[Any], None] | None = None) -> Worker:
    """The worker for settings for which there is room."""
    from .models.fit import engine_config
    from .server.line import Start
    from .server.worker import Worker

    header = model.header
    return Worker(
        Start(engine_config(header, settings), header.chat_template, header.embeddings),
        n_slots=settings.slots,
        max_waiting=settings.queue,
        hang_timeout_s=settings.hang_timeout_s,
        on_end=on_end,
    )


def _progress() -> Any:
    from rich.progress import (  # fmt: skip
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def _text(typed: str) -> str:
    """What was typed, as text; bytes that are no UTF-8 are refused, not replaced."""
    return _decoded(typed.encode("utf-8", "surrogateescape"))


def _decoded(question: bytes) -> str:
    try:
        return question.decode("utf-8-sig")  # a byte order mark is what PowerShell puts before a pipe
    except UnicodeDecodeError:
        raise InvalidSetting(
            "The question is not valid UTF-8; check the terminal's encoding, or pipe it in as UTF-8."
        ) from None


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


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may have letters that the terminal has not
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except BrokenPipeError:  # medge ask ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""`medge serve`."""

from __future__ import annotations

import asyncio
import locale
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .. import __version__
from ..config import Settings, state_dir
from ..errors import InvalidSetting, MedgeError
from .loading import find_model, fitting, loading_bar, make_worker
from .options import out, with_settings

if TYPE_CHECKING:
    from ..engine.request import Done, Failed
    from ..models.store import ModelFile
    from ..server.worker import Worker


@with_settings(*Settings.model_fields)
def serve(
    settings: Settings,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what llama.cpp says too.")] = False,
) -> None:
    """Serve a model: an API in OpenAI's form, and a page to ask it in a browser.

    Only this machine can reach it, unless you give --host and --api-key. Prompts and answers are not logged.
    """
    from ..server.guard import is_loopback

    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s")
    if not is_loopback(settings.host) and not settings.api_key:
        raise InvalidSetting(
            f"--host {settings.host}: others could reach this server without a key. Add --api-key KEY "
            "(or MEDGE_API_KEY), or leave --host out."
        )
    model = find_model(settings)
    _serve(fitting(settings, model), model)


def _serve(settings: Settings, model: ModelFile) -> None:
    import uvicorn

    from ..server.app import create_app
    from ..telemetry.metrics import Metrics
    from ..telemetry.records import Records
    from ..telemetry.watch import Watch

    metrics = Metrics()
    recorded = Records(state_dir(), {"model": model.name, "medge": __version__}) if settings.records else None
    watch = Watch(lambda: [os.getpid(), *([worker.pid] if worker.pid else [])])

    def on_end(event: Done | Failed) -> None:
        metrics.observe(event)
        if recorded:
            busy = worker.snapshot.n_busy if worker.snapshot else None
            recorded.write(event, {"slots_busy": busy, "n_waiting": worker.n_waiting, **watch.facts})

    worker = make_worker(settings, model, on_end, _beginnings(settings, model))
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


def _beginnings(settings: Settings, model: ModelFile) -> tuple[tuple[dict[str, str], ...], ...]:
    """Those of all templates, in the language that this machine's user has chosen."""
    from ..prompts.consult import beginnings
    from ..prompts.template import LANGUAGES, load

    if model.header.embeddings or not settings.prefix_disk_mb:
        return ()
    spoken = (locale.getlocale(locale.LC_CTYPE)[0] or "")[:2]
    return beginnings(load(settings.template_folder), spoken if spoken in LANGUAGES else LANGUAGES[0])


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
        with loading_bar() as progress:
            bar = progress.add_task(f"Loading {escape(model.name)}", total=model.header.file_bytes)
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
        table.add_row(name, escape(value))
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

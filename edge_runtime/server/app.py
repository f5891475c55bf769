"""Routes and one error handler. No llama_cpp in this process; what it knows of the engine, `worker` told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from markdown_it import MarkdownIt
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .. import __version__
from ..config import Settings, state_dir
from ..device.machine import look
from ..device.memory import available_bytes, pss_bytes
from ..device.plan import budget, facts
from ..engine.request import Delta, Done, Failed
from ..errors import Cancelled, InvalidRequest, MedgeError, ModelNotFound, NotFound, Unsupported
from ..models.fit import plans
from ..models.store import ModelFile
from ..prompts.template import load
from ..prompts.thinking import family
from ..telemetry.metrics import Metrics
from .guard import Guard
from .line import Ask
from .openai import (
    Answer,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    error_body,
    error_event,
    models,
    parse,
)
from .recorded import Recorded
from .vectors import embed
from .worker import Ticket, Worker

log = logging.getLogger("medge.server")

PAGE = Path(__file__).parent / "page"

# Rates on the page are means over this time.
RATE_WINDOW_S = 3.0

# What the page shows of `telemetry.watch`.
MACHINE = ("temperature_c", "throttled", "power_w", "energy_j", "energy_source", "power_mode")


class Server:
    """What the routes share: the worker, the model's facts, and the figures."""

    def __init__(
        self,
        worker: Worker,
        model: ModelFile,
        settings: Settings,
        metrics: Metrics,
        machine: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.worker = worker
        self.model = model
        self.settings = settings
        self.metrics = metrics
        self.machine = machine
        self.started = time.time()
        self.cpu = look().cpu
        self.templates = load(settings.template_folder)
        self.family = family(model.header.chat_template)
        self._warned = False
        self._room = budget()  # before the model takes its part
        self._plan: dict[str, Any] | None = None
        self._recorded = Recorded(state_dir())
        self._one_at_a_time = asyncio.Lock()
        self._rates: deque[tuple[float, int]] = deque()
        # Raw HTML stays text, and links that run code are no links.
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def markdown(self, text: str) -> str:
        """HTML in which nothing runs. Alignment is an attribute, since the page allows no inline style."""
        tokens = self._markdown.parse(text)
        for token in tokens:
            if style := token.attrs.pop("style", None):
                token.attrSet("align", str(style).removeprefix("text-align:"))
        return str(self._markdown.renderer.render(tokens, self._markdown.options, {}))

    def check_model(self, name: str) -> None:
        if name not in (self.model.name, "default"):
            raise ModelNotFound(
                f"The model {name!r:.200} is not here; this server runs {self.model.name!r}. "
                "Send that name, or 'default'.",
                "model",
            )

    def check_text(self) -> None:
        """Refuse a request for text that the model cannot answer."""
        if self.model.header.embeddings:
            raise Unsupported(
                f"{self.model.name} is an embedding model and writes no text. Send texts to /v1/embeddings, "
                "or serve a text model.",
                "model",
            )

    def warn_of_greedy(self, asks: Sequence[Ask]) -> None:
        """Say once that thoughts without chance go in circles."""
        greedy = any(ask.request.sampling.temperature == 0 and ask.max_thoughts != 0 for ask in asks)
        if greedy and self.family.thinks and not self._warned:
            self._warned = True
            log.warning(
                "temperature is 0, and %s thinks before it answers: its thoughts tend to go in circles. "
                "Its makers recommend %s.",
                self.model.name,
                self.family.sampling.get("temperature"),
            )

    def check_embeddings(self) -> None:
        """Refuse a request for embeddings that the model does not have."""
        name, header = self.model.name, self.model.header
        if header.pooling == "rank":
            raise Unsupported(
                f"{name} is a reranker (pooling type rank) and has no embeddings. Serve an embedding model.",
                "model",
            )
        if not header.embeddings:
            raise Unsupported(
                f"{name} generates text and has no embeddings. Use an embedding model elsewhere.", "model"
            )

    @property
    def ctx(self) -> int:
        """Tokens of a slot."""
        return self.model.header.context(self.settings.ctx)

    def memory_bytes(self) -> int | None:
        """PSS of the web process and the engine."""
        parts = [pss_bytes(), pss_bytes(self.worker.pid) if self.worker.pid else None]
        known = [p for p in parts if p is not None]
        return sum(known) if known else None

    def tokens_per_s(self) -> float:
        snapshot = self.worker.snapshot
        now = time.monotonic()
        self._rates.append((now, snapshot.n_generated if snapshot else 0))
        while len(self._rates) > 2 and now - self._rates[1][0] > RATE_WINDOW_S:
            self._rates.popleft()
        (t0, n0), (t1, n1) = self._rates[0], self._rates[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 and n1 >= n0 else 0.0

    async def plan(self) -> dict[str, Any]:
        """What the settings take, and what was free before. A child process has to be asked, so once."""
        async with self._one_at_a_time:
            if self._plan is None:
                choice = [self.settings]
                (plan,) = await asyncio.to_thread(plans, self.model.header, choice, self._room)
                self._plan = {
                    "model": self.model.name,
                    "available_bytes": self._room.memory_bytes,
                    **facts(plan, self._room),
                }
        return self._plan

    async def stats(self) -> dict[str, Any]:
        """What the recorded requests cost."""
        if not self.settings.records:
            return {"recording": False}
        async with self._one_at_a_time:
            return {"recording": True, **await asyncio.to_thread(self._recorded.figures)}

    def health(self) -> dict[str, Any]:
        worker, ready, header = self.worker, self.worker.ready, self.model.header
        on_gpu = bool(ready and ready.n_layers_gpu)
        return {
            "status": worker.status,
            "error": worker.error.message if worker.error else None,
            "last_death": worker.last_death,
            "load_progress": worker.load_share,
            "model": {
                "name": self.model.name,
                "architecture": header.architecture,
                "quantization": header.quantization,
                "file_bytes": header.file_bytes,
                "n_params": header.n_params,
                "n_ctx_train": header.n_ctx_train,
                "embeddings": header.embeddings,
                "thinks": self.family.thinks,
                "demo": self.model.demo,
            },
            "device": {
                "name": "GPU" if on_gpu else self.cpu,
                "kind": "gpu" if on_gpu else "cpu",
                "n_layers_gpu": ready.n_layers_gpu if ready else 0,
                "n_layers": ready.n_layers if ready else header.n_layers,
            },
            "flash_attention": bool(ready and ready.flash_attention),
            "kv_type": self.settings.kv,
            "slots": self.settings.slots,
            "ctx_per_slot": self.ctx,
            "threads": self.settings.threads,
            "templates": sorted(self.templates),
            "restarts": worker.n_restarts,
            "uptime_s": time.time() - self.started,
            "version": __version__,
        }

    def live(self) -> dict[str, Any]:
        snapshot, machine = self.worker.snapshot, self.machine()
        return {
            "status": self.worker.status,
            "slots": [
                {"state": s.state, "n_tokens": s.n_tokens} for s in (snapshot.slots if snapshot else ())
            ],
            "waiting": self.worker.n_waiting,
            "tokens_per_s": self.tokens_per_s(),
            "memory_bytes": self.memory_bytes(),
            "memory_available_bytes": available_bytes(),
            "threads": snapshot.n_threads if snapshot else self.settings.threads,
            "ctx_per_slot": self.ctx,
            "machine": {name: machine.get(name) for name in MACHINE},
        }

    def gauges(self) -> dict[str, float | None]:
        snapshot, machine = self.worker.snapshot, self.machine()
        return {
            "slots": self.settings.slots,
            "slots_busy": snapshot.n_busy if snapshot else 0,
            "queue_waiting": self.worker.n_waiting,
            "threads": snapshot.n_threads if snapshot else None,
            "prefix_tokens": snapshot.n_prefix_tokens if snapshot else 0,
            "memory_bytes": self.memory_bytes(),
            "restarts": self.worker.n_restarts,
            "temperature_celsius": machine.get("temperature_c"),
            "throttled": machine.get("throttled"),
            "power_watts": machine.get("power_w"),
            "energy_joules_total": machine.get("energy_j"),
        }


def create_app(
    worker: Worker,
    model: ModelFile,
    settings: Settings,
    metrics: Metrics | None = None,
    lifespan: Callable[[FastAPI], Any] | None = None,
    machine: Callable[[], Mapping[str, Any]] = dict,
) -> FastAPI:
    """The web application. Starting and stopping `worker` is up to the caller, or to `lifespan`.

    Args:
        machine: how the machine is, as `telemetry.watch` tells it.
    """
    server = Server(worker, model, settings, metrics or Metrics(), machine)
    app = FastAPI(title="medge", version=__version__, lifespan=lifespan, redoc_url=None)
    allowed = [settings.host, *(settings.allow_host or "").split(",")]
    app.add_middleware(
        Guard,
        hosts=frozenset(name.strip().lower() for name in allowed if name.strip()),
        api_key=settings.api_key,
        origin=settings.allow_origin,
        max_body=int(settings.max_body_mb * 1_000_000),
        body_timeout_s=settings.body_timeout_s,
    )
    _add_error_handlers(app)
    _add_api(app, server)
    _add_page(app, server)
    return app


def _add_api(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_body_of(ChatBody), responses=_RESPONSES)
    async def chat_completions(request: Request) -> Response:
        """A conversation in OpenAI's form, through the model's own chat template."""
        body = parse(ChatBody, await request.body())
        return await _answer(server, body, chat=True)

    @app.post("/v1/completions", openapi_extra=_body_of(CompletionBody), responses=_RESPONSES)
    async def completions(request: Request) -> Response:
        """A plain prompt, as text or token ids."""
        body = parse(CompletionBody, await request.body())
        return await _answer(server, body, chat=False)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models(server.model.name, int(server.started))

    @app.get("/v1/models/{name}", responses=_RESPONSES)
    async def get_model(name: str) -> dict[str, Any]:
        server.check_model(name)
        entry: dict[str, Any] = models(server.model.name, int(server.started))["data"][0]
        return entry

    @app.post("/v1/embeddings", openapi_extra=_body_of(EmbeddingBody), responses=_RESPONSES)
    async def embeddings(request: Request) -> Response:
        """Vectors of length 1, if an embedding model is served. A token list is taken as it is; to a text
        the model's own first and last tokens are added."""
        server.check_embeddings()
        return await _vectors(server, parse(EmbeddingBody, await request.body()), request)

    @app.delete("/v1/conversations/{name}", status_code=204)
    async def forget(name: str) -> Response:
        """Clear what the slots hold of a conversation."""
        server.worker.forget(name)
        return Response(status_code=204)

    @app.get("/health", responses={503: {"description": "Not ready"}})
    async def health() -> Response:
        body = server.health()
        return JSONResponse(body, 200 if body["status"] == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(server.gauges()), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, server: Server) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/live", include_in_schema=False)
    async def live() -> Response:
        return JSONResponse(server.live())

    @app.get("/plan", include_in_schema=False)
    async def plan() -> Response:
        return JSONResponse(await server.plan())

    @app.get("/stats", include_in_schema=False)
    async def stats() -> Response:
        return JSONResponse(await server.stats())

    @app.post("/markdown", include_in_schema=False)
    async def markdown(request: Request) -> Response:
        try:
            text = json.loads(await request.body())["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise InvalidRequest('Send {"text": "..."}.', "text")
        return JSONResponse({"html": server.markdown(text)})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(MedgeError)
    async def medge_error(_: Request, error: MedgeError) -> Response:
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return await medge_error(request, NotFound(f"There is nothing at {request.url.path}."))
        problem = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}.")
        problem.status = error.status_code
        response = await medge_error(request, problem)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return await medge_error(request, InvalidRequest(f"{name}: {first['msg']}.", name))

    @app.exception_handler(Exception)
    async def any_error(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await medge_error(
            request, MedgeError("The server made a mistake; its log says more. Ask again.")
        )


# -- answering


async def _answer(server: Server, body: Any, chat: bool) -> Response:
    server.check_model(body.model)
    server.check_text()
    consult = None
    if isinstance(body, ChatBody):
        # In a thread: a megabyte of text takes the emergency rules a while.
        consult = await asyncio.to_thread(body.consult, server.templates, server.model.name)
        asks = body.asks(server.settings.deadline_s, server.family, consult)
        server.warn_of_greedy(asks)
    else:
        asks = body.asks(server.settings.deadline_s)
    tickets: list[Ticket] = []
    try:
        for ask in asks:
            tickets.append(server.worker.submit(ask))
    except MedgeError:
        _cancel_all(server, tickets)
        raise
    answer = Answer(chat, server.model.name, consult)
    if body.stream:
        options = body.stream_options
        return Stream(server, tickets, answer, bool(options and options.include_usage))
    if body.stream_options is not None:
        _cancel_all(server, tickets)
        raise InvalidRequest("stream_options needs stream: true.", "stream_options")
    return Whole(server, tickets, answer)


async def _vectors(server: Server, body: EmbeddingBody, request: Request) -> Response:
    server.check_model(body.model)
    asks = body.asks(server.model.header.n_embd_out)
    settings = server.settings
    # Twice the slots: while a step reads some, the next step's are there already.
    work = asyncio.create_task(embed(server.worker, asks, 2 * settings.slots, settings.deadline_s))
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=Cancelled.status)  # nobody reads it
        return JSONResponse(body.answer(server.model.name, work.result()))
    finally:
        gone.cancel()
        work.cancel()


def _cancel_all(server: Server, tickets: list[Ticket]) -> None:
    for ticket in tickets:
        server.worker.cancel(ticket)


class _TicketResponse(Response):
    """A response that cancels its tickets as soon as the client has gone."""

    def __init__(self, server: Server, tickets: list[Ticket], answer: Answer) -> None:
        super().__init__()
        self._server = server
        self._tickets = tickets
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(_gone(receive))
        work = asyncio.create_task(self._respond(scope, receive, send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled():
                work.result()
        finally:
            gone.cancel()
            work.cancel()
            _cancel_all(self._server, self._tickets)
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError


class Whole(_TicketResponse):
    """The answer in one piece."""

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        texts = [""] * len(self._tickets)
        thoughts = [""] * len(self._tickets)
        logprobs: list[list[Any]] = [[] for _ in self._tickets]
        dones = []
        for index, ticket in enumerate(self._tickets):
            async for event in ticket.events():
                if isinstance(event, Delta):
                    texts[index] += event.text
                    thoughts[index] += event.thoughts
                    logprobs[index] += [*event.prompt_logprobs, *event.logprobs]
                elif isinstance(event, Failed):
                    await _error_response(event.error)(scope, receive, send)
                    return
                else:
                    dones.append(event)
        await JSONResponse(self._answer.whole(texts, thoughts, logprobs, dones))(scope, receive, send)


class Stream(_TicketResponse):
    """The answer as server-sent events, from its first token on.

    Nothing is sent before the first event, so that a request that is refused has its proper status.
    """

    def __init__(self, server: Server, tickets: list[Ticket], answer: Answer, include_usage: bool) -> None:
        super().__init__(server, tickets, answer)
        self._include_usage = include_usage
        self._patience_s = server.settings.body_timeout_s

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        dones: list[Done] = []
        answer = self._answer
        offsets = [0] * len(self._tickets)
        started = False
        async for index, event in _merged(self._tickets):
            if isinstance(event, Failed):
                if not started:
                    await _error_response(event.error)(scope, receive, send)
                    return
                await self._send(send, error_event(event.error), last=True)
                return
            text = ""
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
                text = "".join(answer.first(i) for i in range(len(self._tickets)))
            if isinstance(event, Delta):
                text += answer.chunk(index, event, offsets[index])
                offsets[index] += len(event.text)
            else:
                text += answer.last(index, event)
                dones.append(event)
            await self._send(send, text)
        if self._include_usage:
            await self._send(send, answer.usage(dones))
        await self._send(send, "data: [DONE]\n\n", last=True)

    async def _send(self, send: Any, text: str, last: bool = False) -> None:
        """Send, but do not wait for ever for a client that has stopped reading."""
        task = asyncio.current_task()
        assert task
        limit = asyncio.get_running_loop().call_later(self._patience_s, task.cancel)
        try:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": not last})
        finally:
            limit.cancel()


_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
]


async def _merged(tickets: list[Ticket]) -> AsyncIterator[tuple[int, Any]]:
    """Events of several tickets as they come, each with the number of its ticket."""
    if len(tickets) == 1:
        async for event in tickets[0].events():
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def forward(index: int, ticket: Ticket) -> None:
        async for event in ticket.events():
            queue.put_nowait((index, event))

    tasks = [asyncio.create_task(forward(i, t)) for i, t in enumerate(tickets)]
    try:
        left = len(tickets)
        while left:
            index, event = await queue.get()
            left -= not isinstance(event, Delta)
            yield index, event
    finally:
        for task in tasks:
            task.cancel()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error_response(error: MedgeError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return JSONResponse(error_body(error), error.status, headers)


_ERROR = {
    "description": "OpenAI's error form",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 408, 413, 429, 500, 503, 504), _ERROR
)


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The request body for /docs. FastAPI does not parse it: `openai.parse` gives better errors."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    text = json.dumps(schema)
    for _ in range(4):  # definitions refer to each other
        for name, value in definitions.items():
            text = text.replace(f'{{"$ref": "#/components/schemas/{name}"}}', json.dumps(value))
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": json.loads(text)}},
        }
    }

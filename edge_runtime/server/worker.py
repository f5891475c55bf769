"""The engine in a child process: starts it, watches it, starts it again.

This side never imports llama_cpp. It keeps every request until its last event, so that a child that dies
loses none: those that had a slot end in `Failed`, those that waited are asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..device.pressure import Pressure
from ..engine.request import Delta, Done, Event, Failed
from ..errors import EngineClosed, EngineDied, InvalidModel, MedgeError, MemoryShort, QueueFull
from ..program import command
from .line import (
    Ask,
    Cancel,
    Forget,
    GiveBack,
    LoadFailed,
    Loading,
    Messages,
    Ping,
    Ready,
    Running,
    Start,
    Step,
    pack,
)

log = logging.getLogger("medge.worker")

Status = Literal["loading", "ok", "restarting", "failed", "closed"]

PING_PERIOD_S = 2.0
# After the kernel said that memory is short, no new request is taken for so long.
RELIEF_S = 10.0
# A child that ends this often within the window will not get better by another start.
MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
# A request that was waiting when the child died twice may be what kills it.
MAX_ASKED = 2
# A line of the child's stderr that is longer is cut.
MAX_WORDS_BYTES = 4096


@dataclass
class Ticket:
    """One request on this side of the line. Iterate over `events` until Done or Failed."""

    ask: Ask
    queue: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    running: bool = False
    ended: bool = False
    n_asked: int = 0

    @property
    def id(self) -> str:
        return self.ask.request.id

    async def events(self) -> AsyncIterator[Event]:
        while True:
            event = await self.queue.get()
            yield event
            if not isinstance(event, Delta):
                return


class Pipes(asyncio.SubprocessProtocol):
    """The child's messages and last words, handed on as they come: a task that reads them would have to be
    woken for every token.
    """

    def __init__(self, on_message: Callable[[Any], None], on_words: Callable[[str], None]) -> None:
        self._messages = Messages()
        self._on_message = on_message
        self._unfinished = b""
        self._on_words = on_words
        self.closed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            for message in self._messages.feed(data):
                self._on_message(message)
        else:
            *lines, rest = (self._unfinished + data).split(b"\n")
            self._unfinished = rest[:MAX_WORDS_BYTES]
            for line in lines:
                self._on_words(line[:MAX_WORDS_BYTES].decode("utf-8", "replace").rstrip())

    def connection_lost(self, error: Exception | None) -> None:
        self._on_words(self._unfinished.decode("utf-8", "replace"))
        self.closed.set()


class Worker:
    """Owns the engine's process.

    Args:
        start: what the child is told first.
        n_slots: requests that run at once.
        max_waiting: requests beyond those before `submit` refuses.
        hang_timeout_s: a loaded child that says nothing for so long is killed and started again.
        on_end: called with every Done and Failed.
        pressure: what tells that memory is short.
    """

    def __init__(
        self,
        start: Start,
        n_slots: int,
        max_waiting: int,
        hang_timeout_s: float = 60.0,
        on_end: Callable[[Done | Failed], None] | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._start = start
        self._n_slots = n_slots
        self._max_waiting = max_waiting
        self._hang_timeout_s = hang_timeout_s
        self._on_end = on_end or (lambda event: None)
        self._tickets: dict[str, Ticket] = {}
        self._process: asyncio.SubprocessTransport | None = None
        self._closed: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._heard = 0.0
        self._deaths: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._durations: deque[float] = deque(maxlen=32)
        self._stderr: deque[str] = deque(maxlen=20)
        self.status: Status = "loading"
        self.error: MedgeError | None = None
        self.last_death: str | None = None
        self.load_share: float | None = 0.0
        self.ready: Ready | None = None
        self.snapshot: Any = None
        self.n_restarts = 0
        self._pressure = pressure or Pressure()
        self._short_until = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.get_pid() if self._process else None

    @property
    def n_waiting(self) -> int:
        return sum(1 for t in self._tickets.values() if not t.running)

    async def start(self) -> None:
        """Start the child and return at once; `wait_ready` tells when the model is loaded."""
        self._task = asyncio.create_task(self._run(), name="worker")

    async def wait_ready(self, on_progress: Callable[[float], None] | None = None) -> Ready:
        """Wait until the model is loaded.

        Raises:
            MedgeError: it cannot be loaded.
        """
        while self.status not in ("ok", "failed", "closed"):
            if on_progress and self.load_share is not None:
                on_progress(self.load_share)
            self._changed.clear()
            await self._changed.wait()
        if self.ready is None or self.status != "ok":
            raise self.error or EngineClosed("The engine was stopped.")
        return self.ready

    def submit(self, ask: Ask) -> Ticket:
        """Queue a request.

        Raises:
            QueueFull: with the seconds after which a place is likely to be free.
            MemoryShort: the machine's memory is short just now.
            MedgeError: the engine has failed for good, or is closing.
        """
        if self.status == "failed" and self.error:
            raise self.error
        if self.status == "closed":
            raise EngineClosed("The server is stopping; ask again when it is back.")
        if len(self._tickets) >= self._n_slots + self._max_waiting:
            raise QueueFull(
                f"{self._n_slots} requests are running and {self._max_waiting} are waiting, which is the "
                "limit. Try again later, or start the server with a larger --queue.",
                retry_after_s=self._retry_after_s(),
            )
        if (wait_s := self._short_until - time.monotonic()) > 0:
            raise MemoryShort(
                "This machine's memory is short just now; running answers go on. Ask again in a moment, or "
                "end other programs.",
                retry_after_s=wait_s,
            )
        ticket = Ticket(ask)
        self._tickets[ticket.id] = ticket
        if self.status == "ok":
            self._send_ask(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The client has gone: the engine stops at its next step. Ended tickets are of no effect."""
        if ticket.ended:
            return
        if self.status == "ok" and ticket.n_asked:
            self._send(Cancel(ticket.id))
        # Nobody listens any more; the engine's own last event finds no ticket.
        self._end(ticket, None)

    def forget(self, conversation: str) -> None:
        """Clear what the engine holds of a conversation."""
        if self.status == "ok":
            self._send(Forget(conversation))

    async def stop(self, grace_s: float) -> None:
        """Let running requests finish for up to `grace_s`, then end the child. Nothing is left behind."""
        until = time.monotonic() + grace_s
        while self._tickets and time.monotonic() < until and self.status == "ok":
            await asyncio.sleep(0.05)
        self.status = "closed"
        self._changed.set()
        for ticket in list(self._tickets.values()):
            self._end(ticket, Failed(ticket.id, EngineClosed("The server was stopped.")))
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._kill()

    # -- the life of the child

    async def _run(self) -> None:
        while True:
            try:
                why = await self._live()
            finally:
                await self._kill()
            if self.error is None:
                self._died(why)
            if self.error is not None:
                return
            await asyncio.sleep(0.2)

    async def _live(self) -> str:
        """One child from start to end; returns why it ended."""
        self._stderr.clear()
        self._process, pipes = await asyncio.get_running_loop().subprocess_exec(
            lambda: Pipes(self._take, self._keep_words), *command("edge_runtime.server.child")
        )
        self._closed = pipes.closed
        self.ready = None
        self._heard = time.monotonic()
        self._send(self._start)
        watch = asyncio.create_task(self._watch())
        try:
            await pipes.closed.wait()
        finally:
            watch.cancel()
        return watch.result() if watch.done() and not watch.cancelled() else _cause(self._process)

    async def _watch(self) -> str:
        while True:
            await asyncio.sleep(PING_PERIOD_S)
            if self.status != "ok":
                continue
            silent = time.monotonic() - self._heard
            if silent > self._hang_timeout_s:
                if self._process:
                    self._process.kill()
                return f"it did not answer for {silent:.0f} s"
            self._send(Ping())
            if self._pressure.is_high():
                self._relieve()

    def _relieve(self) -> None:
        """Memory is short: the engine gives caches back, and for a while no new request is taken."""
        if time.monotonic() > self._short_until:
            log.warning("Memory is short: shared prefixes are dropped, new requests have to wait.")
        self._short_until = time.monotonic() + RELIEF_S
        self._send(GiveBack())

    def _keep_words(self, text: str) -> None:
        if text:
            self._stderr.append(text)
            log.debug("engine: %s", text)

    def _died(self, why: str) -> None:
        """Decide what becomes of the requests, and whether there will be another child."""
        words = self._stderr[-1].strip() if self._stderr else ""
        self.last_death = why + (f"; its last words: {words[:200]}" if words else "")
        loading = self.ready is None
        log.error("The engine's process ended: %s", self.last_death)
        now = time.monotonic()
        often = len(self._deaths) == MAX_RESTARTS and now - self._deaths[0] < RESTART_WINDOW_S
        self._deaths.append(now)
        for ticket in list(self._tickets.values()):
            if ticket.running:
                self._end(ticket, Failed(ticket.id, EngineDied(
                    f"The engine's process ended during this answer ({why}) and is being started "
                    "again; ask once more."
                )))  # fmt: skip
            elif ticket.n_asked >= MAX_ASKED:
                self._end(ticket, Failed(ticket.id, EngineDied(
                    f"The engine's process ended {ticket.n_asked} times while this request waited "
                    f"({why}); it may be the cause. Change the request."
                )))  # fmt: skip
        if loading or often:
            self.error = InvalidModel(
                f"The engine's process ended while it loaded the model ({self.last_death}). "
                "Check the model file and the free memory."
                if loading
                else f"The engine's process ended {MAX_RESTARTS + 1} times within "
                f"{RESTART_WINDOW_S:.0f} s ({self.last_death}). Restart the server with other settings."
            )
            self._fail_all()
        else:
            self.n_restarts += 1
            self.status, self.load_share = "restarting", 0.0
        self._changed.set()

    def _fail_all(self) -> None:
        self.status = "failed"
        assert self.error
        for ticket in list(self._tickets.values()):
            self._end(ticket, Failed(ticket.id, self.error))

    async def _kill(self) -> None:
        if self._process and self._closed:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._closed.wait()
            self._process.close()

    # -- messages

    def _send(self, message: object) -> None:
        stdin: Any = self._process.get_pipe_transport(0) if self._process else None
        if stdin and not stdin.is_closing():
            stdin.write(pack(message))

    def _send_ask(self, ticket: Ticket) -> None:
        ticket.n_asked += 1
        self._send(ticket.ask)

    def _take(self, message: object) -> None:
        self._heard = time.monotonic()
        if isinstance(message, Step):
            if message.snapshot is not None:
                self.snapshot = message.snapshot
            for event in message.events:
                ticket = self._tickets.get(event.id)
                if ticket is None:
                    continue
                if isinstance(event, Delta):
                    ticket.queue.put_nowait(event)
                else:
                    self._end(ticket, event)
        elif isinstance(message, Running):
            if message.id in self._tickets:
                self._tickets[message.id].running = True
        elif isinstance(message, Loading):
            self.load_share = message.share
            self._changed.set()
        elif isinstance(message, Ready):
            self.ready, self.status, self.load_share = message, "ok", None
            self._changed.set()
            for ticket in list(self._tickets.values()):
                self._send_ask(ticket)
        elif isinstance(message, LoadFailed):
            self.error = message.error
            self._fail_all()
            self._changed.set()

    def _end(self, ticket: Ticket, event: Done | Failed | None) -> None:
        ticket.ended = True
        self._tickets.pop(ticket.id, None)
        if event is None:
            return
        if isinstance(event, Done):
            self._durations.append(event.timing.total_s - event.timing.queued_s)
        ticket.queue.put_nowait(event)
        self._on_end(event)

    def _retry_after_s(self) -> float:
        """When the next slot is likely to be free: recent answers, shared among the slots."""
        if not self._durations:
            return 1.0
        mean = sum(self._durations) / len(self._durations)
        return max(1.0, mean / self._n_slots)


def _cause(process: asyncio.SubprocessTransport) -> str:
    code = process.get_returncode()
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    if name == "SIGKILL":
        return "killed by SIGKILL: by hand, or by the kernel for lack of memory"
    return f"ended by {name}"

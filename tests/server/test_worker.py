"""What happens when the engine's process dies, hangs, or is asked to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from edge_runtime.config import Settings
from edge_runtime.device.pressure import Pressure
from edge_runtime.engine.request import Done, Event, Request
from edge_runtime.errors import MemoryShort
from edge_runtime.models import gguf
from edge_runtime.models.fit import engine_config
from edge_runtime.server import worker as workers
from edge_runtime.server.line import Ask, Start
from tests.serving import RunningServer, chat, serving


def ask(server: RunningServer, **fields: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/chat/completions", json=chat("Hello", **fields))


def states(server: RunningServer) -> list[str]:
    with server.client() as client:
        return [slot["state"] for slot in client.get("/live").json()["slots"]]


def waiting(server: RunningServer) -> int:
    with server.client() as client:
        return int(client.get("/live").json()["waiting"])


def test_kill_under_load(tiny: Path) -> None:
    """Running requests end with an error that says so; waiting ones are served by the next child."""
    with serving(tiny, "--slots", "2", "--ctx", "2048") as server:
        first = server.child.pid
        with ThreadPoolExecutor(6) as pool:
            os.kill(first, signal.SIGSTOP)  # so that all six are there before any is finished
            answers = [pool.submit(ask, server, ignore_eos=True, max_tokens=1000) for _ in range(6)]
            time.sleep(0.5)
            os.kill(first, signal.SIGCONT)
            server.wait_until("both slots answer", lambda: states(server) == ["answering"] * 2)
            os.kill(first, signal.SIGKILL)
            responses = [answer.result() for answer in answers]
        statuses = sorted(r.status_code for r in responses)
        assert statuses == [200] * 4 + [503] * 2
        died = next(r for r in responses if r.status_code == 503)
        assert died.json()["error"]["code"] == "engine_died" and "SIGKILL" in died.json()["error"]["message"]
        health = server.health()
        assert health["status"] == "ok" and health["restarts"] == 1 and "SIGKILL" in health["last_death"]
        assert server.child.pid != first and not psutil.pid_exists(first)
        assert ask(server, max_tokens=3).status_code == 200


def test_kill_in_mid_stream_ends_the_stream_with_an_error(tiny: Path) -> None:
    with serving(tiny, "--slots", "1", "--ctx", "2048") as server, server.client() as client:
        body = chat("Hello", stream=True, ignore_eos=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.child.kill()
            rest = [line for line in lines if line]
        assert '"code": "engine_died"' in rest[-1]


def test_hang_is_noticed(tiny: Path) -> None:
    with serving(tiny, "--hang-timeout-s", "3", "--ctx", "2048") as server:
        stuck = server.child.pid
        os.kill(stuck, signal.SIGSTOP)
        response = ask(server, max_tokens=3)  # it was waiting, so it is served after all
        assert response.status_code == 200
        assert server.child.pid != stuck
        assert "did not answer" in server.health()["last_death"]


def test_short_memory(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs goes on, caches are given back, new requests wait; then all is as before."""
    monkeypatch.setattr(workers, "PING_PERIOD_S", 0.1)
    monkeypatch.setattr(workers, "RELIEF_S", 0.5)
    stalls = tmp_path / "proc/pressure/memory"
    stalls.parent.mkdir(parents=True)
    stalls.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")

    def request(name: str, max_tokens: int) -> Ask:
        messages = ({"role": "user", "content": "the same beginning " * 20},)
        return Ask(Request(name, (), max_tokens=max_tokens, ignore_eos=True), messages=messages)

    async def last(ticket: workers.Ticket) -> Event:
        return [event async for event in ticket.events()][-1]

    async def run() -> None:
        header = gguf.read(tiny)
        config = engine_config(header, Settings(slots=2))
        worker = workers.Worker(Start(config, header.chat_template), 2, 4, pressure=Pressure(tmp_path))
        await worker.start()
        try:
            await worker.wait_ready()
            for name in ("a", "b"):
                assert isinstance(await last(worker.submit(request(name, 2))), Done)
            long = worker.submit(request("long", 1500))
            stalls.write_text("some avg10=55.00 avg60=9.00 avg300=2.00 total=9\n")
            while worker._short_until < time.monotonic():
                await asyncio.sleep(0.01)
            with pytest.raises(MemoryShort) as refused:
                worker.submit(request("refused", 2))
            assert 0 < (refused.value.retry_after_s or 0) <= 0.5
            assert isinstance(await last(long), Done)
            assert worker.snapshot.n_prefix_tokens == 0
            stalls.write_text("some avg10=0.00 avg60=9.00 avg300=2.00 total=9\n")
            while worker._short_until > time.monotonic():
                await asyncio.sleep(0.05)
            assert isinstance(await last(worker.submit(request("later", 2))), Done)
        finally:
            await worker.stop(0)

    asyncio.run(run())


def test_dies_again_and_again(tiny: Path) -> None:
    """The server gives up with a reason, and still answers /health."""
    with serving(tiny) as server:
        for _ in range(6):
            server.wait_until("ready", lambda: server.health()["status"] == "ok")
            server.child.kill()
            time.sleep(0.1)
        server.wait_until("given up", lambda: server.health()["status"] == "failed", 10)
        assert "times within" in server.health()["error"]
        assert ask(server).status_code == 503


def test_stop_ends_what_takes_longer_than_the_grace(tiny: Path) -> None:
    with serving(tiny, "--slots", "1", "--ctx", "8192", "--grace-s", "0.2") as server:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, server, ignore_eos=True, max_tokens=8000)
            server.wait_until("answering", lambda: states(server) == ["answering"])
            server.process.terminate()
            response = answer.result()
        assert response.status_code == 503 and response.json()["error"]["code"] == "engine_closed"
        server.process.wait(10)
        assert "Traceback" not in "".join(server.lines)


# So long that the engine, which reports twice a second, is seen answering on a fast machine too.
N_LONG = 1900


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stop_lets_running_answers_finish(tiny: Path, how: signal.Signals) -> None:
    with serving(tiny, "--slots", "1", "--ctx", "2048") as server:
        child = server.child
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, server, ignore_eos=True, max_tokens=N_LONG)
            server.wait_until("answering", lambda: states(server) == ["answering"])
            os.killpg(server.process.pid, how)  # as a terminal does: the child gets it too
            response = answer.result()
        assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == N_LONG
        assert server.process.wait(10) in (0, -how, 130)
        child.wait(5)
        assert "Traceback" not in "".join(server.lines)


def test_stop_does_not_wait_for_ever(tiny: Path) -> None:
    with serving(tiny, "--slots", "1", "--ctx", "65536", "--grace-s", "1") as server:
        thread = threading.Thread(target=lambda: ask(server, ignore_eos=True))
        thread.start()
        server.wait_until("answering", lambda: states(server) == ["answering"])
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 8
        thread.join()


def test_child_ends_when_its_parent_is_killed(tiny: Path) -> None:
    server = RunningServer("--model", str(tiny)).wait()
    child = server.child
    server.process.kill()
    child.wait(5)

"""A real server in a process of its own, for tests that talk to it over a socket."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil


class RunningServer:
    """`python -m edge_runtime serve` on a free port.

    Args:
        within: the file of a cgroup that takes processes in.
    """

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, within: Path | None = None
    ) -> None:
        self.lines: list[str] = []
        enter = ["sh", "-c", f'echo $$ > {within} && exec "$@"', "enter"] if within else []
        self.process = subprocess.Popen(
            [*enter, sys.executable, "-m", "edge_runtime", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200", **(env or {})},
            start_new_session=True,
        )
        self._found = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"address\s+(http://\S+)", line):
                self.url = match[1]
                self._found.set()
        self._found.set()

    def wait(self, timeout_s: float = 60) -> RunningServer:
        assert self._found.wait(timeout_s) and self.url, "".join(self.lines)
        return self

    @property
    def child(self) -> psutil.Process:
        """The engine's process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **settings)

    def health(self) -> dict[str, Any]:
        with self.client() as client:
            health: dict[str, Any] = client.get("/health").json()
            return health

    def wait_until(self, what: str, condition: Any, timeout_s: float = 30) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s: {what}\n" + "".join(self.lines))

    def stop(self, timeout_s: float = 30) -> int:
        """Ask it to stop as a terminal or systemd would; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def serving(
    model: Path | None, *arguments: str, env: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """A server that is ready, and afterwards gone with all its processes. No model: the embedded one."""
    server = RunningServer(*(("--model", str(model)) if model else ()), *arguments, env=env)
    family = [psutil.Process(server.process.pid)]
    try:
        yield server.wait()
        family += (
            psutil.Process(server.process.pid).children(recursive=True)
            if server.process.poll() is None
            else []
        )
    finally:
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            server.process.kill()
            raise AssertionError("the server did not stop:\n" + "".join(server.lines)) from None
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, f"left behind: {alive}"


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A chat request body."""
    return {"model": "default", "messages": [{"role": "user", "content": text}], **fields}


def live(server: RunningServer) -> dict[str, Any]:
    with server.client() as client:
        value: dict[str, Any] = client.get("/live").json()
        return value


def idle(server: RunningServer) -> bool:
    now = live(server)
    return now["waiting"] == 0 and all(slot["state"] == "idle" for slot in now["slots"])

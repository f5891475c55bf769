"""The plan against the memory of real servers, and servers in cgroups a little larger or smaller than it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_runtime.config import Settings
from edge_runtime.device.memory import pss_bytes
from edge_runtime.device.plan import Budget, Plan
from edge_runtime.models import fit, gguf
from tests.serving import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells PSS")]

MB = 1 << 20


def planned(model: Path, **settings: Any) -> tuple[Plan, list[str]]:
    (plan,) = fit.plans(gguf.read(model), [Settings.model_validate(settings)], Budget(1 << 40))
    return plan, [word for name, value in settings.items()
                  for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip


def ask(client: httpx.Client, n_tokens: int, seed: int) -> None:
    body = {
        "model": "default", "prompt": [1000 + (seed * 7 + i * i) % 40_000 for i in range(n_tokens)],
        "max_tokens": 8, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    assert client.post("/v1/completions", json=body, timeout=600).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 1, "ctx": 16_384, "prefix_tokens": 0},
        {"slots": 4, "ctx": 8192, "prefix_tokens": 0, "kv": "q8_0"},
        {"slots": 8, "ctx": 2048, "prefix_tokens": 0, "batch": 512},
    ],
)
def test_the_plan_is_within_3_percent_of_a_real_server(embedded: Path, settings: dict[str, Any]) -> None:
    plan, flags = planned(embedded, **settings)
    server = RunningServer("--model", str(embedded), *flags)
    try:
        server.wait()
        server.wait_until("it is loaded", lambda: server.health()["status"] == "ok")
        with server.client() as client:
            ask(client, 600, 0)
            ask(client, 600, 1)
            routed = {"model": "default", "messages": [{"role": "user", "content": "What is gout?"}],
                      "template": "auto", "max_tokens": 4}  # fmt: skip
            assert client.post("/v1/chat/completions", json=routed).status_code == 200
        sizes = [pss_bytes(pid) or 0 for pid in (server.process.pid, server.child.pid)]
    finally:
        server.stop()
    # Where tests run, pages of the same libraries are shared with the tests' own process.
    print(f"{settings}: planned {plan.total_bytes / MB:.0f} MiB, {sum(sizes) / MB:.0f} measured {sizes}")
    assert sum(sizes) == pytest.approx(plan.total_bytes, rel=0.03)


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A new cgroup below this process's, of either version; its `cgroup.procs` takes processes in."""
    folder, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not (folder / name).exists():
        folder, name = Path("/sys/fs/cgroup"), "memory.max"
    group = folder / f"medge-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit))
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                break


ROOM: dict[str, Any] = {"slots": 4, "ctx": 2048, "prefix_tokens": 512}


def test_in_5_percent_more_than_the_plan_a_server_survives_full_contexts(embedded: Path) -> None:
    plan, flags = planned(embedded, **ROOM)
    with limited(int(plan.total_bytes * 1.05)) as group:
        server = RunningServer("--model", str(embedded), *flags, within=group / "cgroup.procs")
        try:
            server.wait()
            server.wait_until("it is loaded", lambda: server.health()["status"] == "ok")
            with server.client() as client, ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda seed: ask(client, 2030, seed), range(8)))
            health = server.health()
        finally:
            server.stop()
        assert health["restarts"] == 0 and health["status"] == "ok", "".join(server.lines)


def test_in_5_percent_less_than_the_plan_it_refuses_to_start(embedded: Path) -> None:
    plan, flags = planned(embedded, **ROOM)
    with limited(int(plan.total_bytes * 0.95)) as group:
        server = RunningServer("--model", str(embedded), *flags, within=group / "cgroup.procs")
        assert server.process.wait(60) != 0
        told = "".join(server.lines)
        assert "MiB" in told and "--kv q8_0" in told and not server.url, told


def test_with_fit_it_takes_what_fits(embedded: Path) -> None:
    plan, flags = planned(embedded, **ROOM)
    with limited(int(plan.total_bytes * 0.95)) as group:
        server = RunningServer("--model", str(embedded), *flags, "--fit", within=group / "cgroup.procs")
        try:
            server.wait()
            server.wait_until("it is loaded", lambda: server.health()["status"] == "ok")
            with server.client() as client:
                ask(client, 500, 0)
            assert server.health()["kv_type"] == "q8_0"
        finally:
            server.stop()

"""NVML's answers as facts. The library is the real one; no driver is behind it here, so its calls are set."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from edge_runtime.device import nvidia, plan
from edge_runtime.device.plan import Budget, Plan

GB = 1 << 30


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    nvidia._started.cache_clear()
    yield
    nvidia._started.cache_clear()


def answers(monkeypatch: pytest.MonkeyPatch, **told: Any) -> None:
    """A driver with two GPUs; what it is not told to answer is not supported."""

    def refuse(*_: Any) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    names = (
        "MemoryInfo",
        "ComputeRunningProcesses",
        "PowerUsage",
        "TotalEnergyConsumption",
        "Name",
        "Temperature",
    )
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda i: i)
    for name in names:
        value = told.get(name)
        call = refuse if value is None else lambda *_, value=value: value
        monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", call)


FULL = {
    "MemoryInfo": SimpleNamespace(total=8 * GB, free=5 * GB, used=3 * GB),
    "ComputeRunningProcesses": [
        SimpleNamespace(pid=7, usedGpuMemory=GB), SimpleNamespace(pid=8, usedGpuMemory=None),
        SimpleNamespace(pid=9, usedGpuMemory=2 * GB),
    ],
    "PowerUsage": 61_500, "TotalEnergyConsumption": 2_000_000, "Name": "A GPU", "Temperature": 54,
}  # fmt: skip


def test_what_a_gpu_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, **FULL)
    first, _ = nvidia.gpus([7, 8])
    assert first == nvidia.Gpu("A GPU", 8 * GB, 5 * GB, GB, 54, 61.5, 2000.0)


def test_what_it_does_not_tell_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    assert nvidia.gpus([7])[1] == nvidia.Gpu("NVIDIA GPU", None, None, None, None, None, None)


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount"])
def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    answers(monkeypatch, **FULL)
    monkeypatch.setattr(pynvml, call, refuse)
    assert nvidia.gpus() == ()


PLAN = Plan(weights_bytes=GB, kv_bytes=0, prefix_bytes=0, compute_bytes=0, process_bytes=0, gpu_bytes=4 * GB)


def test_the_budget_of_gpus_with_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, **FULL)
    monkeypatch.setattr(plan, "available_bytes", lambda reserve: 2 * GB)
    room = plan.budget()
    assert room.gpu_bytes == 10 * GB and not room.unified and room.has_room_for(PLAN)


def test_memory_that_both_share_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Name="Orin")
    monkeypatch.setattr(plan, "available_bytes", lambda reserve: 4 * GB)
    room = plan.budget()
    assert room.unified and room.gpu_bytes is None
    assert not room.has_room_for(PLAN) and Budget(5 * GB, unified=True).has_room_for(PLAN)

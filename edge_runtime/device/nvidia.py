"""NVIDIA GPUs, as the driver's own library NVML tells of them. Facts only; nothing is decided here.

None means that this GPU does not tell; without driver or GPU there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One moment of one GPU.

    Attributes:
        memory_bytes, free_bytes: of its own memory; None where it has none and takes the machine's (Jetson).
        used_bytes: by the processes that were asked for.
        energy_j: since the driver was loaded.
    """

    name: str
    memory_bytes: int | None
    free_bytes: int | None
    used_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    energy_j: float | None


def gpus(pids: Collection[int] = ()) -> tuple[Gpu, ...]:
    """All GPUs now.

    Args:
        pids: processes whose share of the memory is wanted.
    """
    if not _started():
        return ()
    try:
        return tuple(
            _look(pynvml.nvmlDeviceGetHandleByIndex(i), pids) for i in range(pynvml.nvmlDeviceGetCount())
        )
    except pynvml.NVMLError:  # the driver was unloaded, or a GPU fell off the bus
        return ()


@lru_cache(maxsize=1)
def _started() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _look(handle: Any, pids: Collection[int]) -> Gpu:
    memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle)
    running = _told(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    # In a container NVML may tell other numbers for processes, and Windows tells no memory of them.
    used = [p.usedGpuMemory for p in running if p.pid in pids and p.usedGpuMemory is not None]
    power = _told(pynvml.nvmlDeviceGetPowerUsage, handle)
    energy = _told(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return Gpu(
        name=_told(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        memory_bytes=int(memory.total) if memory else None,
        free_bytes=int(memory.free) if memory else None,
        used_bytes=sum(used) if used else None,
        temperature_c=_told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1e3,
        energy_j=None if energy is None else energy / 1e3,
    )


def _told(ask: Callable[..., Any], *arguments: Any) -> Any:
    with suppress(pynvml.NVMLError):  # NotSupported, most often
        return ask(*arguments)
    return None

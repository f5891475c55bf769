"""How the machine is while requests run: looked at every few seconds, so that no request pays for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..device.energy import EnergyMeter
from ..device.memory import pss_bytes
from ..device.nvidia import gpus
from ..device.sensors import Sensors

PERIOD_S = 5.0


class Watch:
    """Args:
    pids: of the processes whose memory counts.
    root: the folder with `sys`, `proc`, `etc` and `var`.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], root: Path = Path("/")) -> None:
        self._pids = pids
        self._sensors = Sensors(root)
        self._meter = EnergyMeter(root)
        self._reading = self._sensors.read()
        self.facts: dict[str, Any] = {}

    async def run(self) -> None:
        """Look until cancelled, in a thread: the kernel takes milliseconds to sum up a process's memory."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(PERIOD_S)

    def look(self) -> None:
        """Renew `facts`. What this machine does not tell is None."""
        before, self._reading = self._reading, self._sensors.read()
        self._meter.sample(time.monotonic())
        pids = list(self._pids())
        sizes = [size for size in map(pss_bytes, pids) if size is not None]
        now, found = self._reading, gpus(pids)
        self.facts = {
            "memory_bytes": sum(sizes) if sizes else None,
            "temperature_c": now.temperature_c,
            "throttled": now.throttled_since(before),
            "governor": now.governor,
            "power_mode": now.power_mode,
            "on_battery": now.on_battery,
            "battery_percent": now.battery_percent,
            "power_w": now.power_w,
            "energy_j": self._meter.joules(),
            "energy_source": self._meter.source,
            "gpu_memory_bytes": _sum(gpu.used_bytes for gpu in found),
            "gpu_temperature_c": max(
                (g.temperature_c for g in found if g.temperature_c is not None), default=None
            ),
            "gpu_power_w": _sum(gpu.power_w for gpu in found),
            "gpu_energy_j": _sum(gpu.energy_j for gpu in found),  # since the driver was loaded
        }


def _sum(values: Iterable[float | None]) -> float | None:
    """Of what is told; None if nothing is."""
    told = [value for value in values if value is not None]
    return sum(told) if told else None

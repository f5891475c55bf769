"""Was the machine quiet while something was measured? Others' share of its cores, steal, heat.

Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from edge_runtime.device.energy import EnergyMeter
from edge_runtime.device.sensors import Sensors

# Above this share of all cores, speeds differ for a reason that is not the program.
MAX_DISTURBED = 0.05


class Watched:
    """What else happened while a block ran.

    Only children that have ended by then count as our own: measure each in a process and wait for it.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._sensors, self._meter = Sensors(root), EnergyMeter(root)

    def __enter__(self) -> Watched:
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._began, self._own = psutil.cpu_times(), _own_s()
        self._reading = self._sensors.read()
        self._meter.sample(time.monotonic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now, reading = psutil.cpu_times(), self._sensors.read()
        self._meter.sample(time.monotonic())
        spent = {name: getattr(now, name) - getattr(self._began, name) for name in now._fields}
        # The kernel counts what runs a guest twice, as the guest's and as the user's.
        total = sum(s for name, s in spent.items() if not name.startswith("guest")) or 1e-9
        idle, steal = spent["idle"] + spent.get("iowait", 0.0), spent.get("steal", 0.0)
        others = max(0.0, total - idle - steal - (_own_s() - self._own)) / total
        throttled = reading.throttled_since(self._reading)
        self.facts: dict[str, Any] = {
            "load_before": self._load,
            "others_share": others,
            "steal_share": steal / total,
            "temperature_c": reading.temperature_c,
            "throttled": throttled,
            "quiet": others + steal / total <= MAX_DISTURBED and not throttled,
            "energy_j": self._meter.joules(),
            "energy_source": self._meter.source,
        }


def _own_s() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])

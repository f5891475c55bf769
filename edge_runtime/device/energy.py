"""How much energy the machine has used, from the best source that it has.

Knows counters and meters of power, not who uses it. Nothing is estimated: None where nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .supply import Supplies
from .sysfs import children, count, number, text

RAPL = "RAPL package"
RAILS = "INA rails"
BATTERY = "battery"

# No processor takes as much. A counter that moved faster was set back, as a sleeping laptop does.
_MAX_PACKAGE_W = 1000.0

# Rails through which the whole board or module is fed.
_WHOLE = ("VDD_IN", "POM_5V_IN")

# Rails that are fed from another one in the list, and would count twice (AGX Orin: from VIN_SYS_5V0).
_WITHIN_ANOTHER = ("VDDQ_VDD2_1V8AO",)


class Source(Protocol):
    """Something that energy can be read from.

    Attributes:
        name: for people.
        lost: an interval went by that this source cannot tell of, so that its sum is no longer right.
    """

    name: str
    lost: bool

    def advance(self, now_s: float) -> float | None:
        """Joules since the last call that could tell; 0 the first time; None if it cannot tell now."""
        ...


class EnergyMeter:
    """Joules between the first sample and the last one.

    `RAPL package` is the processors alone. It is a counter, and exact as long as no turn of it goes unseen:
    sample every five minutes or faster. `INA rails` (a Jetson's module) and `battery` (the whole machine,
    only while it discharges) are powers, taken as straight lines between samples: every second or faster.

    Args:
        root: the folder with `sys`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._source = _rapl(root) or _rails(root) or _battery(root)
        self._joules = 0.0
        self._told = False

    @property
    def source(self) -> str | None:
        """`RAPL package`, `INA rails`, `battery`, or None: this machine does not tell."""
        return self._source.name if self._source else None

    def sample(self, now_s: float) -> None:
        """Look at the source.

        Args:
            now_s: a clock that does not go back, such as time.monotonic().
        """
        step = self._source.advance(now_s) if self._source else None
        self._told = step is not None
        self._joules += step or 0.0

    def joules(self) -> float | None:
        """None before the first sample, while the source cannot be read, and for good once an interval was
        lost: the laptop was plugged in, or slept. A new meter then begins anew."""
        if self._source is None or self._source.lost or not self._told:
            return None
        return self._joules


class Counters:
    """Counters of energy that turn over (Documentation/power/powercap/powercap.rst).

    Args:
        domains: folders with `energy_uj` and `max_energy_range_uj`.
    """

    name = RAPL

    def __init__(self, domains: list[Path]) -> None:
        self.lost = False
        self._files = [folder / "energy_uj" for folder in domains]
        self._ranges_uj = [count(folder / "max_energy_range_uj") for folder in domains]
        self._last: tuple[float, list[int]] | None = None

    def read_uj(self) -> list[int] | None:
        """All of the counters, or none: a sum of some would be no package's energy."""
        told = [n for n in map(count, self._files) if n is not None]
        return told if told and len(told) == len(self._files) else None

    def advance(self, now_s: float) -> float | None:
        counts = self.read_uj()
        if counts is None:
            return None
        before, self._last = self._last, (now_s, counts)
        if before is None:
            return 0.0
        steps = [
            _step_uj(old, new, range_uj) for old, new, range_uj in zip(before[1], counts, self._ranges_uj)
        ]
        most_uj = _MAX_PACKAGE_W * 1e6 * max(now_s - before[0], 1.0)
        told = [step for step in steps if step is not None and step <= most_uj]
        self.lost = self.lost or len(told) < len(steps)
        return sum(told) / 1e6


class Powers:
    """A power in watts, integrated by trapezoids.

    Args:
        power_w: None if it cannot be read now; the next interval then reaches back to the last that could.
        ended: whether the power no longer is what the machine uses.
    """

    def __init__(
        self, name: str, power_w: Callable[[], float | None], ended: Callable[[], bool] = lambda: False
    ) -> None:
        self.name = name
        self.lost = False
        self._power_w = power_w
        self._ended = ended
        self._last: tuple[float, float] | None = None

    def advance(self, now_s: float) -> float | None:
        self.lost = self.lost or self._ended()
        power_w = self._power_w()
        if self.lost or power_w is None:
            return None
        before, self._last = self._last, (now_s, power_w)
        if before is None:
            return 0.0
        return max(0.0, now_s - before[0]) * (before[1] + power_w) / 2


class Rails:
    """The power monitors of a Jetson, TI's INA3221. Looks for them once.

    The module's power is the rail that feeds all, or else the sum of those that are not fed from each other.

    Since JetPack 5 they are hwmon devices (Documentation/hwmon/ina3221.rst). Before, they were iio devices
    with `rail_name_0` and `in_power0_input` in mW (Jetson Linux developer guide, release 32, INA3221).
    """

    def __init__(self, root: Path = Path("/")) -> None:
        rails = [*_hwmon_rails(root), *_iio_rails(root)]
        whole = [files for name, files in rails if name in _WHOLE]
        parts = [files for name, files in rails if name not in _WITHIN_ANOTHER]
        # A channel that is not wired cannot be read, now or later.
        self._files = whole[:1] or [files for files in parts if _rail_w(files) is not None]

    def power_w(self) -> float | None:
        """Of the module, in watts."""
        told = [power for power in map(_rail_w, self._files) if power is not None]
        total = sum(told)
        # A machine that reads this takes some.
        return total if len(told) == len(self._files) and total > 0 else None


def _step_uj(old: int, new: int, range_uj: int | None) -> int | None:
    """How far a counter has moved that turns over at `range_uj`."""
    if new >= old:
        return new - old
    return new - old + range_uj if range_uj is not None and old <= range_uj else None


def _rapl(root: Path) -> Source | None:
    """AMD's processors are there under Intel's name. Parts of a package ("intel-rapl:0:1") lie within it, and
    `psys` lies around it."""
    top = [f for f in children(root / "sys/class/powercap", "intel-rapl:") if f.name.count(":") == 1]
    packages = [folder for folder in top if (text(folder / "name") or "").startswith("package")]
    counters = Counters(packages)
    return counters if counters.read_uj() is not None else None


def _rails(root: Path) -> Source | None:
    rails = Rails(root)
    return Powers(RAILS, rails.power_w) if rails.power_w() is not None else None


def _battery(root: Path) -> Source | None:
    supplies = Supplies(root)
    if not supplies.on_battery() or supplies.discharge_w() is None:
        return None
    return Powers(BATTERY, supplies.discharge_w, ended=lambda: supplies.on_battery() is False)


def _hwmon_rails(root: Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Name, and the files of mV and mA. Channels from 4 on are shunt voltages and sums of the three."""
    return [
        (name, (chip / f"in{i}_input", chip / f"curr{i}_input"))
        for chip in children(root / "sys/class/hwmon", "hwmon")
        if text(chip / "name") == "ina3221"
        for i in (1, 2, 3)
        if (name := text(chip / f"in{i}_label")) and name != "NC"
    ]


def _iio_rails(root: Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Name, and the file of mW."""
    return [
        (name, (device / f"in_power{i}_input",))
        for address in children(root / "sys/bus/i2c/drivers/ina3221x")
        for device in children(address, "iio")
        for i in (0, 1, 2)
        if (name := text(device / f"rail_name_{i}")) and name != "NC"
    ]


def _rail_w(files: tuple[Path, ...]) -> float | None:
    """From mW, or from mV and mA."""
    values = [number(file) for file in files]
    told = [value for value in values if value is not None]
    if len(told) < len(values):
        return None
    return told[0] / 1e3 if len(told) == 1 else told[0] * told[1] / 1e6

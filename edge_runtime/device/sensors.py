"""What the machine tells of heat, power and its limits. Facts only; nothing is decided here.

None means that this system does not tell; it is never replaced by zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .energy import BATTERY, RAILS, EnergyMeter, Rails
from .supply import Supplies
from .sysfs import celsius, children, count, number, text
from .tegra import PowerModes, board, l4t

# A thermometer: what it measures, and its file in millidegrees.
Thermometer = tuple[str, Path]

# Zones on the chip that computes. Not "PMIC-Die", which says 100 degrees at any time on a Jetson Nano.
_CHIP_ZONE = re.compile(r"x86_pkg|cpu|gpu|^tj|^soc", re.IGNORECASE)

# Zones that may mean the chip, for machines with nothing better: some firmware puts a fixed number there.
_VAGUE_ZONE = re.compile(r"acpitz|core|package", re.IGNORECASE)

# Documentation/hwmon/coretemp.rst and k10temp.rst; zenpower is k10temp's other driver.
_CHIP_MONITORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")

# Cooling devices that slow a processor. Fans cool without, and "LCD" or "iwlwifi" slow something else.
_SLOWING = re.compile(
    r"cpu|gpu|processor|devfreq|throttle-alert|hot-surface|^tegra-|powerclamp", re.IGNORECASE
)


@dataclass(frozen=True)
class Reading:
    """One moment. None: this system does not tell.

    Attributes:
        temperature_c: of the hottest place on the chip, in degrees Celsius.
        temperature_of: that place, as the kernel names it.
        core_throttle_count, package_throttle_count: how often heat has slowed cores, and a whole processor,
            since the machine started (x86). The first is summed over logical processors; the second is the
            highest of them, because each counts the same events of its package.
        n_slowing: cooling devices that slow a processor now.
        over_current_count: events of over-current and under-voltage since the machine started (Jetson).
        governor: of cpufreq, or "mixed" where cores have several.
        on_battery: whether batteries feed the machine.
        battery_percent: 0 to 100.
        power_mode: a Jetson's nvpmodel mode, or a laptop's platform profile.
        power_w: now, from `power_source`.
        power_source: "INA rails" (a Jetson's module) or "battery" (the whole machine, while it discharges).
        energy_source: what `EnergyMeter` would have counted from when these sensors were looked for.
        board: from the device tree.
        l4t: release of Jetson Linux.
    """

    temperature_c: float | None
    temperature_of: str | None
    core_throttle_count: int | None
    package_throttle_count: int | None
    n_slowing: int | None
    over_current_count: int | None
    governor: str | None
    on_battery: bool | None
    battery_percent: float | None
    power_mode: str | None
    power_w: float | None
    power_source: str | None
    energy_source: str | None
    board: str | None
    l4t: str | None

    def throttled_since(self, earlier: Reading) -> bool | None:
        """Whether heat or a limit of power slowed the processors between two moments, or slows them now."""
        counters = [
            (earlier.core_throttle_count, self.core_throttle_count),
            (earlier.package_throttle_count, self.package_throttle_count),
            (earlier.over_current_count, self.over_current_count),
        ]
        signs = [after > before for before, after in counters if before is not None and after is not None]
        if self.n_slowing is not None:
            signs.append(self.n_slowing > 0)
        return any(signs) if signs else None


class Sensors:
    """Looks once for what the machine has, so that a reading only opens those files.

    Args:
        root: the folder with `sys`, `proc`, `etc` and `var`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        cpus = children(root / "sys/devices/system/cpu", "cpu")
        self._thermometers = [_zones(root, _CHIP_ZONE), _monitors(root), _zones(root, _VAGUE_ZONE)]
        self._core_counters = _there([cpu / "thermal_throttle/core_throttle_count" for cpu in cpus])
        self._package_counters = _there([cpu / "thermal_throttle/package_throttle_count" for cpu in cpus])
        self._cooling = _cooling(root)
        self._over_current = _over_current(root)
        self._governors = _governors(root)
        self._profile = root / "sys/firmware/acpi/platform_profile"
        self._modes = PowerModes(root)
        self._rails = Rails(root)
        self._supplies = Supplies(root)
        self._energy_source = EnergyMeter(root).source
        self._board = board(root)
        self._l4t = l4t(root)

    def read(self) -> Reading:
        """Look at the machine now."""
        hottest = self._hottest()
        power_w, power_source = self._power()
        package_counts = _numbers(self._package_counters)
        return Reading(
            temperature_c=hottest[0] if hottest else None,
            temperature_of=hottest[1] if hottest else None,
            core_throttle_count=_total(self._core_counters),
            package_throttle_count=max(package_counts) if package_counts else None,
            n_slowing=self._n_slowing(),
            over_current_count=_total(self._over_current),
            governor=self._governor(),
            on_battery=self._supplies.on_battery(),
            battery_percent=self._supplies.percent(),
            power_mode=self._modes.now() or text(self._profile),
            power_w=power_w,
            power_source=power_source,
            energy_source=self._energy_source,
            board=self._board,
            l4t=self._l4t,
        )

    def _hottest(self) -> tuple[float, str] | None:
        """From the first kind of thermometers of which one can be read. Those of parts that are switched off
        cannot."""
        for kind in self._thermometers:
            told = [(celsius(number(file)), name) for name, file in kind]
            degrees = [(value, name) for value, name in told if value is not None]
            if degrees:
                return max(degrees)
        return None

    def _n_slowing(self) -> int | None:
        # intel_powerclamp says -1 when it is idle.
        states = [state for state in map(number, self._cooling) if state is not None]
        return sum(state > 0 for state in states) if states else None

    def _governor(self) -> str | None:
        names = {name for name in map(text, self._governors) if name}
        return "mixed" if len(names) > 1 else next(iter(names), None)

    def _power(self) -> tuple[float, str] | tuple[None, None]:
        of_rails = self._rails.power_w()
        if of_rails is not None:
            return of_rails, RAILS
        of_battery = self._supplies.discharge_w() if self._supplies.on_battery() else None
        return (of_battery, BATTERY) if of_battery is not None else (None, None)


def read(root: Path = Path("/")) -> Reading:
    """One look. Who looks often keeps a `Sensors`."""
    return Sensors(root).read()


def _zones(root: Path, wanted: re.Pattern[str]) -> list[Thermometer]:
    """Thermal zones of these types (Documentation/driver-api/thermal/sysfs-api.rst)."""
    zones = [(text(z / "type"), z / "temp") for z in children(root / "sys/class/thermal", "thermal_zone")]
    return [(name, file) for name, file in zones if name and wanted.search(name)]


def _monitors(root: Path) -> list[Thermometer]:
    """The processors' own thermometers (Documentation/hwmon/sysfs-interface.rst)."""
    found: list[Thermometer] = []
    for chip in children(root / "sys/class/hwmon", "hwmon"):
        name = text(chip / "name")
        if name not in _CHIP_MONITORS:
            continue
        files = [file for file in children(chip, "temp") if file.name.endswith("_input")]
        labels = [text(file.with_name(file.name.replace("_input", "_label"))) for file in files]
        # Tctl is what fans are driven by: on some processors Tdie and up to 27 degrees more.
        skipped = "Tctl" if "Tdie" in labels else None
        found += [
            (f"{name} {label}" if label else name, file)
            for file, label in zip(files, labels)
            if label is None or label != skipped
        ]
    return found


def _cooling(root: Path) -> list[Path]:
    devices = children(root / "sys/class/thermal", "cooling_device")
    types = [text(device / "type") or "" for device in devices]
    return [
        device / "cur_state"
        for device, kind in zip(devices, types)
        if _SLOWING.search(kind) and "fan" not in kind.lower()
    ]


def _over_current(root: Path) -> list[Path]:
    """Counters of NVIDIA's soctherm (Jetson Linux developer guide, over-current events)."""
    return [
        file
        for chip in children(root / "sys/class/hwmon", "hwmon")
        for file in children(chip, "oc")
        if file.name.endswith("_event_cnt")
    ]


def _governors(root: Path) -> list[Path]:
    """One file for cores that change together (Documentation/admin-guide/pm/cpufreq.rst)."""
    policies = children(root / "sys/devices/system/cpu/cpufreq", "policy")
    return [policy / "scaling_governor" for policy in policies]


def _there(files: list[Path]) -> list[Path]:
    return [file for file in files if text(file) is not None]


def _numbers(files: list[Path]) -> list[int]:
    return [n for n in map(count, files) if n is not None]


def _total(files: list[Path]) -> int | None:
    """The sum of counters, or None if one is missing: a core that goes off would look like a step back."""
    numbers = _numbers(files)
    return sum(numbers) if numbers and len(numbers) == len(files) else None

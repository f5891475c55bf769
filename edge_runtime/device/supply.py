"""Where the machine's power comes from: a line, or batteries, and how full these are.

Formats: the kernel's Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

from pathlib import Path

from .sysfs import children, count, number, text


class Supplies:
    """The power supplies that a machine names. Looks for them once.

    Args:
        root: the folder with `sys`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        by_type: dict[str | None, list[Path]] = {}
        for folder in children(root / "sys/class/power_supply"):
            by_type.setdefault(text(folder / "type"), []).append(folder)
        # The firmware's adapter speaks for all plugs. A port alone can look fed while it feeds a telephone.
        self._lines = by_type.get("Mains") or by_type.get("USB", []) + by_type.get("Wireless", [])
        # Mice and headsets have batteries too.
        self._batteries = [
            folder for folder in by_type.get("Battery", []) if text(folder / "scope") != "Device"
        ]
        self._sizes = [_size(folder) for folder in self._batteries]

    def on_battery(self) -> bool | None:
        """Whether batteries feed the machine now."""
        online = [number(folder / "online") for folder in self._lines]
        statuses = self._statuses()
        if "Charging" in statuses or any(n is not None and n > 0 for n in online):
            return False
        if "Discharging" in statuses or (self._batteries and 0 in online):
            return True
        return False if "Full" in statuses or "Not charging" in statuses else None

    def percent(self) -> float | None:
        """How full the batteries are together, 0 to 100."""
        levels = [(count(folder / "capacity"), size) for folder, size in zip(self._batteries, self._sizes)]
        told = [(level, size) for level, size in levels if level is not None and level <= 100]
        if not told:
            return None
        sizes = [size for _, size in told if size is not None]
        if len(sizes) < len(told):
            sizes = [1] * len(told)
        return sum(level * size for (level, _), size in zip(told, sizes)) / sum(sizes)

    def discharge_w(self) -> float | None:
        """What the batteries give now, in watts; None while none discharges. Firmware renews it every few
        seconds."""
        giving = [
            folder for folder, status in zip(self._batteries, self._statuses()) if status == "Discharging"
        ]
        powers = [_power_w(folder) for folder in giving]
        told = [power for power in powers if power is not None]
        return sum(told) if told and len(told) == len(powers) else None

    def _statuses(self) -> list[str | None]:
        return [text(folder / "status") for folder in self._batteries]


def _size(battery: Path) -> int | None:
    """What it holds when full, in µWh or µAh: one machine's batteries use the same unit."""
    return count(battery / "energy_full") or count(battery / "charge_full") or None


def _power_w(battery: Path) -> float | None:
    """From µW, or from µA and µV. Some drivers count a discharge below zero, and some say 0 for "unknown"."""
    power_uw = number(battery / "power_now")
    if power_uw:
        return abs(power_uw) / 1e6
    current_ua, voltage_uv = number(battery / "current_now"), number(battery / "voltage_now")
    if not current_ua or not voltage_uv:
        return None
    return abs(current_ua) * abs(voltage_uv) / 1e12

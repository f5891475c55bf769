"""What NVIDIA's Jetson boards tell beside other Linux machines: board, release, power mode, `tegrastats`.

Formats: the Jetson Linux developer guide, "tegrastats Utility" and "Power Management for Jetson".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .sysfs import celsius, text

_RELEASE = re.compile(r"R(\d{1,4}) \(release\), REVISION: (\d{1,4}(?:\.\d{1,4}){0,2})")
_MODE = re.compile(r"pmode:(\d{1,6})")
_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,6})\s+NAME=([^\s>]+)", re.MULTILINE)

_RAM = re.compile(r"(?<!\S)RAM (\d{1,9})/(\d{1,9})MB")
_SWAP = re.compile(r"(?<!\S)SWAP (\d{1,9})/(\d{1,9})MB")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\]", re.IGNORECASE)
_CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,6}))?")
_GPU = re.compile(r"(?<!\S)GR3D(?:_FREQ)? (?:(\d{1,3})%)?(?:@\[?(\d{1,6}(?:,\d{1,6})*)\]?)?")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d{1,6}(?:\.\d{1,6})?)C(?!\S)")
_RAIL = re.compile(r"(?<!\S)([A-Za-z]\w*) (\d{1,9})(?:mW/(\d{1,9})mW|/(\d{1,9}))(?!\S)")


def board(root: Path = Path("/")) -> str | None:
    """The board's name, such as "NVIDIA Jetson Orin Nano Developer Kit"; other boards with a device tree
    name themselves there too (Documentation/ABI/testing/sysfs-firmware-ofw)."""
    return text(root / "proc/device-tree/model")


def l4t(root: Path = Path("/")) -> str | None:
    """The release of Jetson Linux, such as "36.3.0". 32 belongs to JetPack 4, 35 to 5, 36 to 6."""
    found = _RELEASE.search(text(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


class PowerModes:
    """The modes that nvpmodel knows, read once, and the one it has set.

    Args:
        root: the folder with `etc` and `var`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._status = root / "var/lib/nvpmodel/status"
        described = text(root / "etc/nvpmodel.conf", n_bytes=1 << 18) or ""
        self._names = {int(number): name for number, name in _MODEL.findall(described)}

    def now(self) -> str | None:
        """Its name, such as "15W", or "mode 2" where no name is known."""
        found = _MODE.search(text(self._status) or "")
        return self._names.get(int(found[1]), f"mode {int(found[1])}") if found else None


@dataclass(frozen=True)
class Core:
    """
    Attributes:
        load_percent: of what the core can do at its present frequency.
        frequency_mhz: None on boards that do not print it.
    """

    load_percent: int
    frequency_mhz: int | None


@dataclass(frozen=True)
class Rail:
    """The power of one rail: now, and the mean since tegrastats began."""

    now_mw: int
    average_mw: int


@dataclass(frozen=True)
class Tegrastats:
    """One line of tegrastats. What a board does not print is None or empty.

    Attributes:
        ram_used_mb, ram_total_mb: shared by processor and GPU.
        cores: None for a core that is off.
        gpu_mhz: of the fastest of the GPU's clusters.
        temperatures_c: by the name as printed, without those that are off ("CV0@-256C").
        rails: by the name as printed, without channels that are not connected ("NC").
    """

    ram_used_mb: int
    ram_total_mb: int
    swap_used_mb: int | None
    swap_total_mb: int | None
    cores: tuple[Core | None, ...]
    gpu_percent: int | None
    gpu_mhz: int | None
    temperatures_c: Mapping[str, float]
    rails: Mapping[str, Rail]


def parse_tegrastats(line: str) -> Tegrastats | None:
    """Read one line, of any JetPack since 3.

    None if it is not a whole line of tegrastats: without RAM and cores, or with a core that makes no sense.
    A program that is stopped leaves half lines, so that is no error.
    """
    ram, cpu = _RAM.search(line), _CPU.search(line)
    cores = _cores(cpu[1]) if cpu else None
    if not ram or not cores:
        return None
    swap, gpu = _SWAP.search(line), _GPU.search(line)
    return Tegrastats(
        ram_used_mb=int(ram[1]),
        ram_total_mb=int(ram[2]),
        swap_used_mb=int(swap[1]) if swap else None,
        swap_total_mb=int(swap[2]) if swap else None,
        cores=cores,
        gpu_percent=int(gpu[1]) if gpu and gpu[1] else None,
        gpu_mhz=max(map(int, gpu[2].split(","))) if gpu and gpu[2] else None,
        temperatures_c=_temperatures(line),
        rails=_rails(line),
    )


def _cores(printed: str) -> tuple[Core | None, ...] | None:
    """From "12%@1190,off", or None if one of them is neither."""
    cores: list[Core | None] = []
    for part in printed.split(","):
        found = _CORE.fullmatch(part.strip())
        if found:
            cores.append(Core(int(found[1]), int(found[2]) if found[2] else None))
        elif part.strip() == "off":
            cores.append(None)
        else:
            return None
    return tuple(cores)


def _rails(line: str) -> dict[str, Rail]:
    """From "VDD_IN 4940mW/4935mW", or "VDD_IN 4940/4935" up to JetPack 4."""
    return {
        name: Rail(int(now), int(mean or mean_without_unit))
        for name, now, mean, mean_without_unit in _RAIL.findall(line)
        if name != "NC"
    }


def _temperatures(line: str) -> dict[str, float]:
    told = {name: celsius(float(degrees) * 1000) for name, degrees in _TEMPERATURE.findall(line)}
    return {name: degrees for name, degrees in told.items() if degrees is not None}

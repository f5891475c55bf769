"""Small files of the kernel, and what they mean.

Reading them never raises, whatever they hold or lack: None means that nothing was told.
"""

from __future__ import annotations

import re
from pathlib import Path

# Wide enough for any counter of 64 bits. int() alone would also take "1_000" and digits of other scripts.
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")

# Zones that are switched off answer -256 or -128 degrees, broken ones 255.
_LOWEST_C, _HIGHEST_C = -40.0, 150.0


def text(path: Path, n_bytes: int = 4096) -> str | None:
    """What a file says, without the white space and the zero byte at its ends.

    Args:
        n_bytes: no more than this is read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            said = (file.read(n_bytes) or b"").decode()
    except (OSError, UnicodeDecodeError):
        return None
    return said.strip("\0 \t\r\n") or None


def number(path: Path) -> int | None:
    """The whole number that a file holds, and nothing beside it."""
    said = text(path)
    return int(said) if said and _INTEGER.fullmatch(said) else None


def count(path: Path) -> int | None:
    """A number that cannot be below zero."""
    n = number(path)
    return n if n is not None and n >= 0 else None


def children(folder: Path, prefix: str = "") -> list[Path]:
    """What lies in a folder and is named so, in order of name; empty where there is no such folder."""
    try:
        return sorted(child for child in folder.iterdir() if child.name.startswith(prefix))
    except OSError:
        return []


def celsius(millidegrees: float | None) -> float | None:
    """Degrees from the unit of the kernel, where they can be meant
    (Documentation/driver-api/thermal/sysfs-api.rst, Documentation/hwmon/sysfs-interface.rst)."""
    if millidegrees is None:
        return None
    degrees = millidegrees / 1000
    return degrees if _LOWEST_C <= degrees <= _HIGHEST_C else None

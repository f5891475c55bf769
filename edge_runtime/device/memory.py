"""What is used and what is left. The only place that reads /proc and cgroup files for memory.

None means that this system does not tell; it is never replaced by zero.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


def peak_bytes() -> int | None:
    """The most memory this process has held so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pss_bytes(pid: int | None = None) -> int | None:
    """Proportional set size of a process in bytes: its own pages, and its share of common ones."""
    try:
        text = Path(f"/proc/{pid or os.getpid()}/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def available_bytes(root: Path = Path("/"), reserve: int = 0) -> int:
    """What can still be allocated: free and reclaimable memory, and no more than a cgroup allows.

    Args:
        root: the folder with `proc` and `sys`.
        reserve: bytes of the machine's to leave alone. A cgroup's are all for those within.
    """
    return max(0, min([psutil.virtual_memory().available - reserve, *_left_by_cgroups(root)]))


def total_bytes() -> int:
    return int(psutil.virtual_memory().total)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _reclaimable(folder: Path, key: str) -> int:
    """Bytes of files in a cgroup's use that nobody needs: reading a model once leaves it all there."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key + " ")), 0)


def cgroup2(root: Path = Path("/")) -> Path | None:
    """The folder of this process's cgroup, if it is in one of version 2."""
    return _group(root, "", "sys/fs/cgroup")


def _group(root: Path, controller: str, top: str) -> Path | None:
    """The folder of this process's cgroup below `top`; a line of the file is ID:CONTROLLERS:PATH."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, entry = line.partition(":")
        controllers, _, path = entry.partition(":")
        if controller in controllers.split(","):
            return root / top / path.lstrip("/")
    return None


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """What each limit above this process leaves: a parent's binds too."""
    versions = (
        ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "memory", "sys/fs/cgroup/memory",
            "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
        ),
    )  # fmt: skip
    for controller, top, limit_file, used_file, reclaimable in versions:
        group = _group(root, controller, top)
        # A container's own group lies at the top, whatever its path is outside.
        for folder in (group, *group.parents) if group else ():
            if not folder.is_relative_to(root / top):
                break
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and used is not None:
                yield limit - used + _reclaimable(folder, reclaimable)

"""What is used and what is left. The only place that reads /proc and cgroup files for memory.

None means that this system does not tell; it is never replaced by zero.
"""

from __future__ import annotations

import os
import sys
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


def available_bytes(root: Path = Path("/")) -> int:
    """What can still be allocated: free and reclaimable memory, and no more than a cgroup allows.

    Args:
        root: the folder with `proc` and `sys`.
    """
    free = psutil.virtual_memory().available
    limits = [left for left in (_cgroup2_left(root), _cgroup1_left(root)) if left is not None]
    return max(0, min([free, *limits]))


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
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        entry = next(line for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    return root / "sys/fs/cgroup" / entry[3:].lstrip("/")


def _cgroup2_left(root: Path) -> int | None:
    top, group = root / "sys/fs/cgroup", cgroup2(root)
    if group is None:
        return None
    left = None
    # A parent's limit binds too.
    for folder in (group, *group.parents):
        if not folder.is_relative_to(top):
            break
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            here = limit - used + _reclaimable(folder, "inactive_file")
            left = here if left is None else min(left, here)
    return left


def _cgroup1_left(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup/memory"
    limit, used = (
        _number(folder / "memory.limit_in_bytes"),
        _number(folder / "memory.usage_in_bytes"),
    )
    if limit is None or used is None:
        return None
    return limit - used + _reclaimable(folder, "total_inactive_file")

"""Whether the kernel says that memory is short: stalls of programs (PSI), and events of the cgroup.

Formats: Documentation/accounting/psi.rst and admin-guide/cgroup-v2.rst of Linux. Other systems never say so.
"""

from __future__ import annotations

import re
from pathlib import Path

from .memory import cgroup2

# Percent of the last ten seconds in which some, or all, programs waited for memory.
SOME_PERCENT = 20.0
FULL_PERCENT = 5.0


class Pressure:
    """Asked now and then.

    Args:
        root: the folder with `proc` and `sys`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        group = cgroup2(root)
        self._stalls = [root / "proc/pressure/memory", *([group / "memory.pressure"] if group else [])]
        self._events = group / "memory.events" if group else None
        self._n_events = self._count()

    def is_high(self) -> bool:
        """Whether programs wait for memory now, or the cgroup was throttled or out of it since the last call.

        Its "max" events are no sign: a cgroup that reads files is at its limit all the time, and gives up
        cached pages.
        """
        before, self._n_events = self._n_events, self._count()
        return self._n_events > before or any(_stalls(path) for path in self._stalls)

    def _count(self) -> int:
        text = _text(self._events) if self._events else ""
        return sum(int(n) for n in re.findall(r"^(?:high|oom|oom_kill) (\d+)$", text, re.MULTILINE))


def _stalls(path: Path) -> bool:
    found = dict(re.findall(r"^(some|full) avg10=(\d+\.\d+) ", _text(path), re.MULTILINE))
    return float(found.get("some", 0)) >= SOME_PERCENT or float(found.get("full", 0)) >= FULL_PERCENT


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("ascii", "replace")
    except OSError:
        return ""

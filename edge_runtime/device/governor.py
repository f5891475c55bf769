"""How many threads to use now, so that other programs on the machine do not stall every step.

llama.cpp's threads wait for each other several hundred times a step. When another program takes the core of
one of them, all wait for it: one thread less is then faster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

PERIOD_S = 0.25

# Other programs' use of the cores must exceed this before a thread is given up, and fall below the second
# before it is taken back. Between them nothing changes, so that the count does not flutter.
GIVE_UP_CORES = 0.6
TAKE_BACK_CORES = 0.35


class ThreadGovernor:
    """Suggests a thread count from how much of the cores other programs use.

    Args:
        n_threads: never more than this.
        n_cores: cores of the machine.
        clock: seconds.
        others: seconds of core time that other programs have used so far.
    """

    def __init__(
        self,
        n_threads: int,
        n_cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        others: Callable[[], float] | None = None,
    ) -> None:
        self._n_max = n_threads
        self._n_cores = n_cores or os.cpu_count() or 1
        self._clock = clock
        self._others = others or _core_seconds_of_others
        self._n = n_threads
        self._last = clock(), self._others()
        self._load = 0.0

    def threads(self) -> int:
        """The count for the next step. Looks at the machine a few times a second, and is free otherwise."""
        now = self._clock()
        elapsed = now - self._last[0]
        if elapsed >= PERIOD_S:
            used = self._others()
            load = max(0.0, used - self._last[1]) / elapsed
            # The mean of two looks: a burst of a few milliseconds is no reason to change.
            self._load = (self._load + load) / 2 if elapsed < 4 * PERIOD_S else load
            self._last = now, used
            self._n = self._choose()
        return self._n

    def _choose(self) -> int:
        n = self._n
        while n > 1 and n + self._load > self._n_cores + GIVE_UP_CORES:
            n -= 1
        while n < self._n_max and n + 1 + self._load <= self._n_cores + TAKE_BACK_CORES:
            n += 1
        return n


def _core_seconds_of_others() -> float:
    times = psutil.cpu_times()
    busy = times.user + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
    own = time.process_time()
    return float(busy - own)

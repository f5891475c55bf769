"""Threads follow the load of other programs, within bounds, and stay still between the two thresholds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.governor import (
    GIVE_UP_CORES,
    PERIOD_S,
    TAKE_BACK_CORES,
    ThreadGovernor,
    _core_seconds_of_others,
)


class Computer:
    """A clock, and other programs that use `load` cores."""

    def __init__(self, n_threads: int, n_cores: int) -> None:
        self.now = self.used = 0.0
        self.n_looks = 0
        self.governor = ThreadGovernor(n_threads, n_cores, lambda: self.now, self._others)

    def _others(self) -> float:
        self.n_looks += 1
        return self.used

    def run(self, seconds: float, load: float, step_s: float = 0.05) -> list[int]:
        """The thread count of each step."""
        counts = []
        for _ in range(round(seconds / step_s)):
            self.now += step_s
            self.used += load * step_s
            counts.append(self.governor.threads())
        return counts


def test_gives_a_thread_up_for_another_program_and_takes_it_back() -> None:
    computer = Computer(4, 4)
    assert set(computer.run(2, load=0.1)) == {4}
    assert computer.run(2, load=1.0)[-1] == 3
    assert computer.run(2, load=2.0)[-1] == 2
    assert computer.run(2, load=0.0)[-1] == 4


def test_threads_that_have_cores_to_spare_stay() -> None:
    assert set(Computer(2, 4).run(5, load=2.0)) == {2}


def test_one_thread_always_stays() -> None:
    assert Computer(2, 2).run(3, load=16)[-1] == 1


def test_a_short_burst_changes_nothing() -> None:
    computer = Computer(2, 2)
    computer.run(2, load=0)
    assert set(computer.run(PERIOD_S / 2, load=1) + computer.run(2, load=0)) == {2}


def test_it_looks_a_few_times_a_second_however_often_it_is_asked() -> None:
    computer = Computer(2, 2)
    computer.run(10, load=0, step_s=0.001)
    assert computer.n_looks <= 10 / PERIOD_S + 2


def test_what_happened_long_ago_does_not_count() -> None:
    computer = Computer(2, 2)
    assert computer.run(3, load=2)[-1] == 1
    computer.now += 3600  # nobody asked anything for an hour
    assert computer.governor.threads() == 2


@given(
    n_threads=st.integers(1, 16),
    n_cores=st.integers(1, 16),
    steps=st.lists(st.tuples(st.floats(0, 5), st.floats(-1, 40)), max_size=60),
)
def test_the_count_stays_within_its_bounds(
    n_threads: int, n_cores: int, steps: list[tuple[float, float]]
) -> None:
    computer = Computer(n_threads, n_cores)
    for seconds, load in steps:  # loads below zero too: such counters have been seen to go back
        computer.now += seconds
        computer.used += load * seconds
        assert 1 <= computer.governor.threads() <= n_threads


@given(
    n=st.integers(2, 8),
    busy=st.integers(0, 7),
    loads=st.lists(st.floats(TAKE_BACK_CORES + 0.01, GIVE_UP_CORES - 0.01), min_size=50, max_size=50),
)
def test_a_load_between_the_thresholds_changes_nothing(n: int, busy: int, loads: list[float]) -> None:
    computer = Computer(n, n)
    computer.run(3, load=min(busy, n - 1) + (TAKE_BACK_CORES + GIVE_UP_CORES) / 2)
    counts = {computer.governor.threads()}
    for load in loads:
        counts |= set(computer.run(PERIOD_S, load=min(busy, n - 1) + load))
    assert len(counts) == 1


@given(st.lists(st.floats(0, 1), min_size=40, max_size=40))
def test_more_load_never_means_more_threads(loads: list[float]) -> None:
    light, heavy = Computer(4, 4), Computer(4, 4)
    for load in loads:
        assert heavy.run(PERIOD_S, load + 1)[-1] <= light.run(PERIOD_S, load)[-1]


def test_the_real_counter_counts_seconds_that_only_grow() -> None:
    before = _core_seconds_of_others()
    assert before > 0
    assert _core_seconds_of_others() >= before - 0.1  # the kernel counts in ticks of 10 ms

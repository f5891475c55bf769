"""When the kernel says that memory is short, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.pressure import Pressure
from tests.device.boards import Files, build

CALM = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


CALM_BOX: Files = {
    "proc/self/cgroup": "0::/box",
    "proc/pressure/memory": CALM,
    "sys/fs/cgroup/box/memory.pressure": CALM,
    "sys/fs/cgroup/box/memory.events": "low 0\nhigh 0\nmax 7\noom 0\noom_kill 0",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return build(tmp_path, CALM_BOX)


def test_a_calm_machine(root: Path) -> None:
    pressure = Pressure(root)
    assert not pressure.is_high() and not pressure.is_high()


@pytest.mark.parametrize("where", ["proc/pressure/memory", "sys/fs/cgroup/box/memory.pressure"])
@pytest.mark.parametrize(
    ("some", "full", "high"), [(19.99, 0, False), (20, 0, True), (5, 5, True), (6, 4.9, False)]
)
def test_stalls_on_the_machine_or_in_the_cgroup(
    root: Path, where: str, some: float, full: float, high: bool
) -> None:
    text = CALM.replace("some avg10=0.00", f"some avg10={some:.2f}").replace(
        "full avg10=0.00", f"full avg10={full:.2f}"
    )
    build(root, {where: text})
    assert Pressure(root).is_high() == high


@pytest.mark.parametrize("name", ["high", "oom", "oom_kill"])
def test_an_event_counts_once(root: Path, name: str) -> None:
    pressure, events = Pressure(root), root / "sys/fs/cgroup/box/memory.events"
    events.write_text(events.read_text().replace(f"{name} 0", f"{name} 3"))
    assert pressure.is_high() and not pressure.is_high()


def test_files_read_at_the_limit_are_no_sign(root: Path) -> None:
    pressure, events = Pressure(root), root / "sys/fs/cgroup/box/memory.events"
    events.write_text(events.read_text().replace("max 7", "max 700"))
    assert not pressure.is_high()


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert not Pressure(tmp_path).is_high()


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_strange_files_are_no_sign_of_anything_worse(
    tmp_path_factory: pytest.TempPathFactory, stalls: bytes, events: bytes
) -> None:
    strange: Files = {"proc/pressure/memory": stalls, "sys/fs/cgroup/box/memory.events": events}
    root = build(tmp_path_factory.mktemp("root"), CALM_BOX | strange)
    Pressure(root).is_high()

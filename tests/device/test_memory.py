"""What is left is the least of what the machine and each cgroup above this process leave."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.device.memory import available_bytes, peak_bytes, pss_bytes, total_bytes

MB = 1 << 20


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which 1000 MiB are free."""

    class Free:
        available = 1000 * MB

    monkeypatch.setattr(psutil, "virtual_memory", Free)


def group(root: Path, name: str, **files: int | str) -> None:
    folder = root / "sys/fs/cgroup" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in files.items():
        (folder / f"memory.{file}").write_text(f"{value}\n")


def process_in(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("".join(line + "\n" for line in lines))


def left(root: Path) -> int:
    return available_bytes(root) // MB


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert left(tmp_path) == 1000
    process_in(tmp_path, "0::/gone")
    assert left(tmp_path) == 1000


def test_a_limit_binds_for_what_is_not_used_yet(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/box")
    group(tmp_path, "box", max=500 * MB, current=200 * MB)
    assert left(tmp_path) == 300


def test_a_parents_limit_binds_too(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/box/inner")
    group(tmp_path, "box", max=250 * MB, current=200 * MB)
    group(tmp_path, "box/inner", max=500 * MB, current=100 * MB)
    assert left(tmp_path) == 50


@pytest.mark.parametrize("limit", ["max", "", "nonsense", "12.5"])
def test_what_is_no_number_is_no_limit(tmp_path: Path, limit: str) -> None:
    process_in(tmp_path, "0::/box/inner")
    group(tmp_path, "box", max=400 * MB, current=0)
    group(tmp_path, "box/inner", max=limit, current=100 * MB)
    assert left(tmp_path) == 400


def test_half_of_the_files_is_no_limit(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/box")
    group(tmp_path, "box", max=500 * MB)
    assert left(tmp_path) == 1000


def test_a_limit_above_what_the_machine_has_does_not_help(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/box")
    group(tmp_path, "box", max=10**15, current=0)
    assert left(tmp_path) == 1000


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/box")
    group(tmp_path, "box", max=100 * MB, current=200 * MB)
    assert left(tmp_path) == 0


def test_files_that_were_read_can_be_dropped_again(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/box")
    stat = f"anon {50 * MB}\ninactive_file {300 * MB}\nactive_file {40 * MB}"
    group(tmp_path, "box", max=500 * MB, current=400 * MB, stat=stat)
    assert left(tmp_path) == 400


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/")
    group(tmp_path, "", max=300 * MB, current=100 * MB)
    assert left(tmp_path) == 200


def test_a_group_outside_of_what_is_mounted_ends_the_search(tmp_path: Path) -> None:
    process_in(tmp_path, "0::/../../elsewhere")
    group(tmp_path, "", max=300 * MB, current=100 * MB)
    assert left(tmp_path) <= 1000


def test_version_1(tmp_path: Path) -> None:
    process_in(tmp_path, "4:memory:/docker/abc", "1:name=systemd:/docker/abc")
    group(
        tmp_path,
        "memory",
        limit_in_bytes=300 * MB,
        usage_in_bytes=250 * MB,
        stat=f"total_inactive_file {20 * MB}",
    )
    assert left(tmp_path) == 70
    group(tmp_path, "memory", limit_in_bytes=9223372036854771712)  # how version 1 writes "no limit"
    assert left(tmp_path) == 1000
    group(tmp_path, "memory/docker/abc", limit_in_bytes=400 * MB, usage_in_bytes=10 * MB)
    assert left(tmp_path) == 390


def test_only_the_machine_keeps_a_reserve(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, reserve=200 * MB) == 800 * MB
    process_in(tmp_path, "0::/box")
    group(tmp_path, "box", max=500 * MB, current=0)
    assert available_bytes(tmp_path, reserve=200 * MB) == 500 * MB
    assert available_bytes(tmp_path, reserve=2000 * MB) == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), min_size=1, max_size=5))
def test_it_is_the_least_of_all_and_never_negative(
    tmp_path_factory: pytest.TempPathFactory, nested: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("machine")
    name = ""
    for i, (limit, used) in enumerate(nested):
        name = f"{name}/g{i}".lstrip("/")
        group(root, name, max=limit * MB, current=used * MB)
    process_in(root, "0::/" + name)
    assert left(root) == max(0, min(1000, *(limit - used for limit, used in nested)))


def test_of_this_process_and_machine() -> None:
    peak = peak_bytes()
    assert peak is not None and peak > 5 * MB
    if sys.platform == "linux":
        pss = pss_bytes()
        assert pss is not None and MB < pss <= psutil.Process().memory_info().rss + MB
    assert pss_bytes(2**22 + 1) is None, "a process that does not exist tells nothing"


def test_more_is_never_available_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0 <= available_bytes() <= total_bytes()

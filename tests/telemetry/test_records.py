"""A line for each request that ended, within a limit of disk, whatever happens to the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.request import Done, Failed, Timing
from edge_runtime.errors import QueueFull
from edge_runtime.telemetry import records
from edge_runtime.telemetry.records import Records, files, percentiles, read


def done(n: int = 5, gap_s: float = 0.02) -> Done:
    times = tuple(0.5 + gap_s * i for i in range(n))
    timing = Timing(0.1, times[0] if times else None, 1.0, times, 40, 8, n, 123_456_789)
    return Done("request", "stop", timing)


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_request_is_a_line(tmp_path: Path) -> None:
    written = Records(tmp_path / "new/folder", {"model": "tiny"}, Clock())
    written.write(done(), {"temperature_c": 61.5, "power_mode": None})
    written.write(Failed("r", QueueFull("full")), {})
    first, second = read(tmp_path / "new/folder").records
    assert first["model"] == "tiny" and first["end"] == "stop" and first["n_cached"] == 8
    assert first["ttft_s"] == 0.5 and first["itl_p50_s"] == first["itl_p99_s"] == 0.02
    assert first["tokens_per_s"] == 50 and first["temperature_c"] == 61.5 and first["power_mode"] is None
    assert second["end"] == "queue_full" and "ttft_s" not in second
    assert "request" not in json.dumps([first, second]), "ids are the client's own words"


@given(n=st.integers(0, 3))
def test_what_was_not_measured_is_none(n: int) -> None:
    told = records.of_event(done(n))
    assert (told["itl_p50_s"] is None) == (n < 2) and (told["ttft_s"] is None) == (n == 0)


def test_files_turn_over_by_size_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 1000)
    monkeypatch.setattr(records, "MAX_FILES", 4)
    clock = Clock()
    for i in range(100):
        clock.now += 1
        if i % 7 == 0:  # a server that starts again goes on with the file
            written = Records(tmp_path, {"i": i}, clock)
        written.write(done(), {})
    assert len(files(tmp_path)) == 4
    assert all(path.stat().st_size < 2000 for path in files(tmp_path))
    kept = [record["time"] for record in read(tmp_path).records]
    assert kept == sorted(kept) and kept[-1] == clock.now and len(kept) > 6
    assert kept == [clock.now - i for i in reversed(range(len(kept)))], "none in between is lost"


def test_files_turn_over_by_age(tmp_path: Path) -> None:
    clock = Clock()
    Records(tmp_path, {}, clock).write(done(), {})
    clock.now += records.MAX_AGE_S + 1
    Records(tmp_path, {}, clock).write(done(), {})
    assert len(files(tmp_path)) == 2 and len(read(tmp_path).records) == 2
    assert len(read(tmp_path, since=clock.now - 1).records) == 1


@given(st.integers(0, 400), st.binary(max_size=50))
def test_what_a_power_cut_leaves_costs_no_other_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    before = Records(folder, {})
    before.write(done(), {})
    path = files(folder)[0]
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut].rstrip(b"\n") + garbage.replace(b"\n", b""))
    Records(folder, {}).write(done(), {})
    found = read(folder)
    assert len(found.records) >= 2 and found.n_unreadable <= 1


def test_a_disk_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    written = Records(tmp_path / "file/records", {})
    for _ in range(3):
        written.write(done(), {})
    assert len(caplog.messages) == 1 and "not recorded" in caplog.messages[0]


def test_lines_of_other_versions_and_of_nobody_are_counted(tmp_path: Path) -> None:
    Records(tmp_path, {}).write(done(), {})
    with files(tmp_path)[0].open("a") as file:
        file.write('{"version": 99, "time": 1}\nnot json\n[1]\n{"version": "x", "time": 1}\n{"time": 1}\n')
    found = read(tmp_path)
    assert (len(found.records), found.n_other, found.n_unreadable) == (1, 1, 4)


def test_percentiles(tmp_path: Path) -> None:
    chance = random.Random(0)
    for gap in chance.sample([i / 1000 for i in range(1, 102)], 101):
        Records(tmp_path, {}).write(done(2, gap), {})
    found = {name: (n, values) for name, n, values in percentiles(read(tmp_path).records)}
    n, (low, middle, high, _) = found["itl_p50_s"]
    assert n == 101 and middle == pytest.approx(0.051) and (low, high) == (
        pytest.approx(0.006), pytest.approx(0.096),
    )  # fmt: skip
    assert not list(percentiles([]))

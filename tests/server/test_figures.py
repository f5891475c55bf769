"""The plan, the recorded percentiles and what the machine tells: everywhere the same, nothing invented."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edge_runtime.server.recorded import NAMES, Recorded
from edge_runtime.telemetry.records import percentiles, read
from tests.device import boards
from tests.server.machines import app_on
from tests.serving import RunningServer, chat, serving

FLAGS = ("--slots", "2", "--ctx", "512")


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state = {"MEDGE_STATE": str(tmp_path_factory.mktemp("state"))}
    with serving(tiny, *FLAGS, env=state) as server:
        yield server


def medge(*arguments: str) -> Any:
    command = [sys.executable, "-m", "edge_runtime", *arguments, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# -- the plan


def test_plan_is_worked_out_once_while_others_are_answered(server: RunningServer, tiny: Path) -> None:
    """First of this module: it needs a server that was not yet asked."""

    def plan() -> Any:
        with server.client() as client:
            return client.get("/plan").json()

    n_live, children = 0, set()
    with ThreadPoolExecutor(4) as pool, server.client() as client:
        asked = [pool.submit(plan) for _ in range(4)]
        while not all(future.done() for future in asked):
            begin = time.monotonic()
            assert client.get("/live").status_code == 200
            assert time.monotonic() - begin < 5
            children |= set(psutil.Process(server.process.pid).children())
            n_live += 1
    assert n_live > 5, "no other request was answered meanwhile"
    assert len(children) == 2, "the engine, and one process for all four"
    first, *others = [future.result() for future in asked]
    assert all(other == first for other in others) and plan() == first

    told = medge("plan", str(tiny), *FLAGS)
    assert set(first) == set(told) - {"less"}
    for name in ("model", "total_bytes", "gpu_bytes", "exact", "parts", "fits"):
        assert first[name] == told[name], name
    assert first["exact"] and first["total_bytes"] == sum(first["parts"].values())


# -- records


def test_stats_are_those_of_medge_stats(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.client() as client:
        for n in (1, 5, 9):
            client.post("/v1/chat/completions", json=chat("Hi", max_tokens=n, ignore_eos=True))
        client.post("/v1/chat/completions", json=chat("x" * 2000))  # refused: counts, and measures nothing
        stats = client.get("/stats").json()
    monkeypatch.setenv("MEDGE_STATE", psutil.Process(server.process.pid).environ()["MEDGE_STATE"])
    told = medge("stats")
    assert stats["recording"] is True and stats["n"] == told["n"] == 4
    assert stats["percentiles"] == {name: told["percentiles"][name] for name in NAMES}
    assert abs(stats["since"] - time.time()) < 60


def test_without_records(tiny: Path) -> None:
    with serving(tiny, "--ctx", "256", "--no-records") as server, server.client() as client:
        client.post("/v1/chat/completions", json=chat("Hi", max_tokens=3))
        assert client.get("/stats").json() == {"recording": False}


measured = st.none() | st.floats(0, 1e6)
record = st.fixed_dictionaries({"time": st.floats(0, 4e9), **dict.fromkeys(NAMES, measured)})
lines = st.one_of(
    record.map(lambda r: json.dumps({"version": 1, **r})),
    record.map(lambda r: json.dumps({"version": 2, **r})),
    record.map(lambda r: json.dumps({"version": 1, **r})[:20]),  # a power cut
    st.sampled_from(["", "null", "[1]", '{"version": 1}', '{"version": 1, "time": "now"}', "\x00\x00"]),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.lists(lines, max_size=4), st.booleans()), max_size=6))
def test_figures_are_the_records_percentiles_however_they_grow(
    steps: list[tuple[list[str], bool]],
) -> None:
    """After every few lines, and after a file was turned over, or the oldest one deleted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded = Recorded(folder)
        for i, (new, turn_over) in enumerate(steps):
            with (folder / "requests.jsonl").open("a") as file:
                file.write("".join(line + "\n" for line in new))
            if turn_over:
                (folder / "requests.jsonl").rename(folder / f"requests-{i:015}.jsonl")
            if i == 4:
                for old in sorted(folder.glob("requests-*"))[:1]:
                    old.unlink()
            found = read(folder).records
            figures = recorded.figures()
            assert figures["n"] == len(found)
            assert figures["since"] == (found[0]["time"] if found else None)
            expected = {name: (n, values) for name, n, values in percentiles(found) if name in NAMES}
            told = {
                name: (p["n"], (p["p5"], p["p50"], p["p95"], p["p99"]))
                for name, p in figures["percentiles"].items()
            }
            assert told == expected


def test_files_that_stay_are_not_read_again(tmp_path: Path) -> None:
    line = json.dumps({"version": 1, "time": 1.0, **dict.fromkeys(NAMES, 0.5)}) + "\n"
    (tmp_path / "requests-000000000000001.jsonl").write_text(line * 8000)
    (tmp_path / "requests.jsonl").write_text(line)
    recorded = Recorded(tmp_path)

    def cost_s() -> float:
        begin = time.process_time()
        assert recorded.figures()["n"] > 8000
        return time.process_time() - begin

    first = cost_s()
    with (tmp_path / "requests.jsonl").open("a") as file:
        file.write(line)
    assert cost_s() < first / 2
    assert recorded.figures()["n"] == 8002


# -- the machine


def families(client: httpx.Client) -> dict[str, Any]:
    """Samples of /metrics by name, as Prometheus reads them."""
    found = text_string_to_metric_families(client.get("/metrics").text)
    samples = {sample.name: (family.type, sample.value) for family in found for sample in family.samples}
    assert not any(math.isnan(value) for _, value in samples.values())
    return samples


def test_metrics_of_a_machine_that_tells(tiny: Path, tmp_path: Path) -> None:
    root = boards.build(tmp_path, boards.orin_nano())
    client = TestClient(app_on(root, tiny), base_url="http://localhost")
    samples = families(client)
    assert samples["medge_temperature_celsius"] == ("gauge", 50.062)
    assert samples["medge_throttled"] == ("gauge", 1)
    assert samples["medge_power_watts"] == ("gauge", pytest.approx(4.984 * 1.056))
    assert samples["medge_energy_joules_total"] == ("counter", 0)
    assert samples["medge_slots"] == ("gauge", 4)
    assert client.get("/live").json()["machine"]["power_mode"] == "MAXN_SUPER"


def test_what_a_machine_does_not_tell_is_left_out(tiny: Path, tmp_path: Path) -> None:
    client = TestClient(app_on(tmp_path, tiny), base_url="http://localhost")
    told = {name for name in families(client) if not name.endswith(("_created", "_bucket"))}
    assert not {name for name in told if any(word in name for word in ("temp", "throt", "watts", "joules"))}
    assert "medge_threads" not in told, "nothing has told yet how many the engine uses"
    assert set(client.get("/live").json()["machine"].values()) == {None}

"""What a look at the machine tells, on recorded machines and on this one."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from edge_runtime.telemetry import watch
from edge_runtime.telemetry.watch import Watch
from tests.device.boards import build


def test_a_laptop_that_gets_hot(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    rapl = "sys/class/powercap/intel-rapl:0"
    turn = {f"{rapl}/name": "package-0", f"{rapl}/max_energy_range_uj": "262143328850"}
    build(tmp_path, turn | {f"{zone}/type": "x86_pkg_temp"})
    build(tmp_path, {f"{zone}/temp": "61000", counter: "3", f"{rapl}/energy_uj": "1000000"})
    seen = Watch(lambda: [os.getpid()], tmp_path)
    seen.look()
    assert seen.facts["temperature_c"] == 61 and seen.facts["throttled"] is False
    assert seen.facts["energy_j"] == 0 and seen.facts["energy_source"] == "RAPL package"
    build(tmp_path, {f"{zone}/temp": "97000", counter: "9", f"{rapl}/energy_uj": "6000000"})
    seen.look()
    assert seen.facts["temperature_c"] == 97 and seen.facts["throttled"] is True
    assert seen.facts["energy_j"] == 5
    seen.look()
    assert seen.facts["throttled"] is False


def test_what_a_machine_does_not_tell_is_none(tmp_path: Path) -> None:
    seen = Watch(lambda: [], tmp_path)
    seen.look()
    assert set(seen.facts.values()) == {None}


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at without end, for under a hundredth of a core."""
    monkeypatch.setattr(watch, "PERIOD_S", 0.05)
    seen = Watch(lambda: [os.getpid()])

    async def run() -> None:
        task = asyncio.create_task(seen.run())
        await asyncio.sleep(0.3)
        task.cancel()

    asyncio.run(run())
    json.dumps(seen.facts)
    began = time.process_time()
    for _ in range(20):
        seen.look()
    assert (time.process_time() - began) / 20 < 0.01 * 5.0

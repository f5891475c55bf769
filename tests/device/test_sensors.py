"""A machine's heat, power and limits are told as they are; what it does not tell stays None."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.device.energy import EnergyMeter
from edge_runtime.device.sensors import Reading, Sensors, read
from tests.device import boards
from tests.device.boards import Files, build

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names with a colon")

NOTHING = Reading(**dict.fromkeys(Reading.__dataclass_fields__))


def test_an_intel_laptop_on_its_battery(tmp_path: Path) -> None:
    seen = read(build(tmp_path, boards.laptop()))
    assert (seen.temperature_c, seen.temperature_of) == (61.0, "x86_pkg_temp")
    assert (seen.core_throttle_count, seen.package_throttle_count) == (7, 5)
    assert seen.n_slowing == 0, "a lit screen, a slow radio and a fan slow no processor"
    assert (seen.governor, seen.power_mode) == ("powersave", "balanced")
    assert (seen.on_battery, seen.battery_percent) == (True, 80)
    assert (seen.power_w, seen.power_source) == (9.5, "battery")
    assert seen.energy_source == "RAPL package"
    assert (seen.board, seen.l4t, seen.over_current_count) == (None, None, None)


def test_the_same_laptop_whose_energy_counters_are_for_root_alone(tmp_path: Path) -> None:
    seen = read(build(tmp_path, boards.laptop_without_rapl()))
    assert seen.energy_source == "battery"
    assert replace(seen, energy_source="RAPL package") == read(build(tmp_path, boards.laptop()))


def test_an_amd_desktop(tmp_path: Path) -> None:
    seen = read(build(tmp_path, boards.desktop()))
    assert (seen.temperature_c, seen.temperature_of) == (55.0, "k10temp Tdie")
    assert seen.governor == "mixed"
    assert (seen.core_throttle_count, seen.package_throttle_count, seen.n_slowing) == (None, None, 0)
    assert (seen.on_battery, seen.battery_percent, seen.power_w, seen.power_source) == (None,) * 4
    assert seen.energy_source == "RAPL package"


def test_a_jetson_orin_nano(tmp_path: Path) -> None:
    seen = read(build(tmp_path, boards.orin_nano()))
    assert (seen.temperature_c, seen.temperature_of) == (50.062, "tj-thermal")
    assert (seen.n_slowing, seen.over_current_count) == (1, 28)
    assert seen.power_w == pytest.approx(4.984 * 1.056)
    assert (seen.power_source, seen.energy_source) == ("INA rails", "INA rails")
    assert (seen.board, seen.l4t) == ("NVIDIA Jetson Orin Nano Developer Kit", "36.3.0")
    assert (seen.power_mode, seen.governor, seen.on_battery) == ("MAXN_SUPER", "schedutil", None)


def test_a_jetson_agx_xavier(tmp_path: Path) -> None:
    seen = read(build(tmp_path, boards.agx_xavier()))
    assert (seen.temperature_c, seen.temperature_of) == (31.5, "CPU-therm"), "PMIC-Die is a fixed number"
    assert seen.power_w == pytest.approx(0.463 + 0.618 + 2.936 + 0.309 + 3.306)
    assert (seen.board, seen.l4t, seen.power_mode) == ("Jetson-AGX", "32.7.1", "mode 3")
    assert (seen.n_slowing, seen.over_current_count) == (0, None)


def test_a_container_tells_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == NOTHING
    for folder in ("sys/class/thermal", "sys/class/power_supply", "sys/devices/system/cpu/cpu0"):
        (tmp_path / folder).mkdir(parents=True)
    assert read(tmp_path) == NOTHING
    assert read(tmp_path / "nowhere") == NOTHING


@pytest.mark.parametrize("silent", [b"", b"\n", b"-256000\n", b"255000", b"max", b"45.5", b"4_5000", b"\xff"])
def test_a_zone_that_tells_no_temperature_is_passed_over(tmp_path: Path, silent: bytes) -> None:
    build(tmp_path, boards.zones(cpu_thermal=silent, gpu_thermal=40_000))
    assert read(tmp_path).temperature_of == "gpu-thermal"
    build(tmp_path, boards.zones(cpu_thermal=silent, gpu_thermal=silent))
    assert read(tmp_path).temperature_c is None


def test_the_firmwares_zone_speaks_only_where_nothing_else_does(tmp_path: Path) -> None:
    build(tmp_path, boards.zones(acpitz=90_000))
    assert read(tmp_path).temperature_of == "acpitz"
    build(tmp_path, {"sys/class/hwmon/hwmon0/name": "coretemp"})
    build(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": "44000"})
    assert read(tmp_path).temperature_of == "coretemp"


def test_tctl_is_told_where_there_is_no_tdie(tmp_path: Path) -> None:
    files = boards.desktop()
    del files["sys/class/hwmon/hwmon1/temp2_label"], files["sys/class/hwmon/hwmon1/temp2_input"]
    assert read(build(tmp_path, files)).temperature_of == "k10temp Tctl"


@given(
    before=st.lists(st.integers(0, 10**12), min_size=4, max_size=4),
    more=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_throttling_is_any_counter_that_grew(before: list[int], more: list[int]) -> None:
    def moment(values: list[int]) -> Reading:
        core, package, over_current, _ = values
        return replace(
            NOTHING,
            core_throttle_count=core,
            package_throttle_count=package,
            over_current_count=over_current,
            n_slowing=more[3],
        )

    later = moment([old + new for old, new in zip(before, more)])
    assert later.throttled_since(moment(before)) is any(more)


def test_who_tells_nothing_of_throttling_is_not_said_to_run_freely() -> None:
    assert NOTHING.throttled_since(NOTHING) is None
    assert replace(NOTHING, core_throttle_count=3).throttled_since(NOTHING) is None
    assert replace(NOTHING, n_slowing=0).throttled_since(NOTHING) is False


def test_a_core_that_goes_off_takes_its_count_away_and_not_back(tmp_path: Path) -> None:
    sensors = Sensors(build(tmp_path, boards.laptop()))
    before = sensors.read()
    shutil.rmtree(tmp_path / "sys/devices/system/cpu/cpu0")
    after = sensors.read()
    assert (after.core_throttle_count, after.package_throttle_count) == (None, 5)
    assert after.throttled_since(before) is False


def on_battery(root: Path, *supplies: Files) -> bool | None:
    shutil.rmtree(root / "sys", ignore_errors=True)
    for files in supplies:
        build(root, files)
    return read(root).on_battery


def test_on_battery_follows_the_adapter_and_else_the_batteries(tmp_path: Path) -> None:
    def battery(status: str, name: str = "BAT0") -> Files:
        return boards.supply(name, type="Battery", status=status)

    plugged, unplugged = (boards.supply("AC", type="Mains", online=n) for n in (1, 0))
    port = boards.supply("usb1", type="USB", online=1)
    idle_port = boards.supply("usb1", type="USB", online=0)
    assert on_battery(tmp_path, plugged, battery("Discharging")) is False, "a weak adapter feeds too"
    assert on_battery(tmp_path, unplugged, battery("Unknown")) is True
    assert on_battery(tmp_path, unplugged, port, battery("Discharging")) is True, "the port feeds a telephone"
    assert on_battery(tmp_path, port, battery("Not charging")) is False
    assert on_battery(tmp_path, idle_port, battery("Charging")) is False
    assert on_battery(tmp_path, battery("Full", "BAT0"), battery("Discharging", "BAT1")) is True
    assert on_battery(tmp_path, battery("Full")) is False
    assert on_battery(tmp_path, battery("Unknown")) is None
    assert on_battery(tmp_path, unplugged) is None, "without a battery, something else must feed it"
    assert on_battery(tmp_path, boards.supply("AC", type="Mains", online="max")) is None


@given(levels=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 10**8)), min_size=1, max_size=4))
def test_batteries_count_by_their_size(
    tmp_path_factory: pytest.TempPathFactory, levels: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("laptop")
    for i, (percent, size) in enumerate(levels):
        build(root, boards.supply(f"BAT{i}", type="Battery", capacity=percent, energy_full=size))
    seen = read(root).battery_percent
    full = sum(size for _, size in levels)
    assert seen == pytest.approx(sum(percent * size for percent, size in levels) / full)


def test_batteries_of_unknown_size_count_alike(tmp_path: Path) -> None:
    build(tmp_path, boards.supply("BAT0", type="Battery", capacity=20, energy_full=10))
    build(tmp_path, boards.supply("BAT1", type="Battery", capacity=40))
    build(tmp_path, boards.supply("BAT2", type="Battery", capacity=255))
    assert read(tmp_path).battery_percent == 30


def test_a_reading_follows_the_machine(tmp_path: Path) -> None:
    sensors = Sensors(build(tmp_path, boards.laptop()))
    before = sensors.read()
    build(tmp_path, boards.governors("performance", "performance", "performance", "performance"))
    build(tmp_path, boards.throttles([3, 4, 0, 1], package=5))
    build(tmp_path, boards.supply("AC", online=1) | boards.supply("BAT0", status="Charging", capacity=81))
    after = sensors.read()
    assert (after.governor, after.on_battery, after.battery_percent) == ("performance", False, 81)
    assert (after.power_w, after.power_source) == (None, None), "what charges is not what the machine uses"
    assert after.throttled_since(before) is True


@pytest.mark.parametrize("machine", boards.ALL)
def test_what_vanishes_after_it_was_found_is_not_told(tmp_path: Path, machine: Callable[[], Files]) -> None:
    sensors = Sensors(build(tmp_path, machine()))
    found = sensors.read()
    for folder in list(tmp_path.iterdir()):
        shutil.rmtree(folder)
    assert sensors.read() == replace(
        NOTHING, energy_source=found.energy_source, board=found.board, l4t=found.l4t
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("machine", boards.ALL)
def test_what_may_not_be_read_is_not_told(tmp_path: Path, machine: Callable[[], Files]) -> None:
    files = machine()
    build(tmp_path, files)
    for name in files:
        (tmp_path / name).chmod(0)
    assert read(tmp_path) == NOTHING


@pytest.mark.parametrize("machine", boards.ALL)
def test_folders_in_place_of_files_tell_nothing(tmp_path: Path, machine: Callable[[], Files]) -> None:
    for name in machine():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    assert read(tmp_path) == NOTHING


hostile: st.SearchStrategy[str | bytes] = st.one_of(
    st.binary(max_size=40),
    st.integers().map(lambda n: str(n).encode()),
    st.sampled_from(
        [b"", b"max", b"nan", b"-1", b"1e9", b"0", b"9" * 5000, b"\xff\xfe", b"pmode:", b"\0\0", b"package-0"]
    ),
)


@settings(max_examples=150, deadline=None)
@given(machine=st.sampled_from(boards.ALL), data=st.data())
def test_no_content_of_any_file_raises(
    tmp_path_factory: pytest.TempPathFactory, machine: Callable[[], Files], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("hostile")
    files = machine()
    some = st.dictionaries(st.sampled_from(sorted(files)), hostile, max_size=len(files))
    sensors, meter = Sensors(build(root, files)), EnergyMeter(root)
    for now_s in (0.0, 1.0):
        build(root, data.draw(some))
        for seen in (sensors.read(), read(root)):
            assert seen.temperature_c is None or -40 <= seen.temperature_c <= 150
            assert seen.battery_percent is None or 0 <= seen.battery_percent <= 100
            assert seen.power_w is None or seen.power_w > 0
            json.dumps(asdict(seen), allow_nan=False)
        other = EnergyMeter(root)
        for one in (meter, other):
            one.sample(now_s)
            joules = one.joules()
            assert joules is None or joules >= 0


def test_this_machine_can_be_read_often() -> None:
    sensors = Sensors()
    times_s = []
    for _ in range(20):
        began = time.perf_counter()
        sensors.read()
        times_s.append(time.perf_counter() - began)
    assert min(times_s) < 0.1, "firmware is slow, but not that slow"


def test_importing_it_takes_neither_torch_nor_the_engine() -> None:
    program = (
        "import sys, edge_runtime.device.sensors\n"
        "print({'torch', 'llama_cpp', 'numpy', 'edge_runtime.engine'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

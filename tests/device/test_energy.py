"""Joules are those of the best source, exact over a counter's turns, and None once some went unseen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.device.energy import EnergyMeter, Powers, Rails
from edge_runtime.device.supply import Supplies
from tests.device import boards
from tests.device.boards import Files, build

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names with a colon")

JOULE_UJ = 1_000_000


def joules_after(meter: EnergyMeter, now_s: float) -> float | None:
    meter.sample(now_s)
    return meter.joules()


def test_a_machine_without_a_source_tells_nothing(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    assert meter.source is None
    assert [joules_after(meter, second) for second in range(3)] == [None] * 3


def test_energy_counts_from_the_first_sample(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, boards.laptop()))
    assert meter.source == "RAPL package"
    assert meter.joules() is None, "nothing was measured yet"
    assert joules_after(meter, 0) == 0
    build(tmp_path, boards.rapl("0", "package-0", 4_000_000 + 25 * JOULE_UJ))
    assert joules_after(meter, 1) == pytest.approx(25)


def test_packages_are_summed_and_what_lies_within_or_around_them_is_not(tmp_path: Path) -> None:
    def server(joules: int) -> Files:
        uj = joules * JOULE_UJ
        names = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "1:0": "core", "2": "psys"}
        files: Files = {}
        for zone, name in names.items():
            files |= boards.rapl(zone, name, uj)
        mmio = "sys/class/powercap/intel-rapl-mmio:0"
        return files | {f"{mmio}/name": "package-0", f"{mmio}/energy_uj": str(uj)}

    meter = EnergyMeter(build(tmp_path, server(10)))
    meter.sample(0)
    build(tmp_path, server(30))
    assert joules_after(meter, 1) == pytest.approx(2 * 20)


def test_part_of_the_packages_is_no_source(tmp_path: Path) -> None:
    build(tmp_path, boards.rapl("0", "package-0", 1) | boards.rapl("1", "package-1", None))
    assert EnergyMeter(tmp_path).source is None


@settings(max_examples=60)
@given(
    start=st.integers(0, 10**9),
    range_uj=st.integers(10**9, 262_143_328_850),
    steps=st.lists(st.integers(0, 999 * JOULE_UJ), max_size=12),
)
def test_a_counter_that_turns_over_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, start: int, range_uj: int, steps: list[int]
) -> None:
    root = tmp_path_factory.mktemp("rapl")
    value = start % range_uj
    meter = EnergyMeter(build(root, boards.rapl("0", "package-0", value, range_uj)))
    meter.sample(0)
    for second, step in enumerate(steps, 1):
        value = (value + step) % range_uj
        build(root, boards.rapl("0", "package-0", value, range_uj))
        meter.sample(second)
    assert meter.joules() == pytest.approx(sum(steps) / JOULE_UJ)


def test_a_counter_that_was_set_back_ends_the_sum(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, boards.rapl("0", "package-0", 200_000 * JOULE_UJ)))
    meter.sample(0)
    build(tmp_path, boards.rapl("0", "package-0", 5 * JOULE_UJ))
    assert joules_after(meter, 2) is None, "62,000 J in 2 s: the laptop slept"
    build(tmp_path, boards.rapl("0", "package-0", 6 * JOULE_UJ))
    assert joules_after(meter, 3) is None
    anew = EnergyMeter(tmp_path)
    assert joules_after(anew, 4) == 0


def test_a_counter_without_a_range_cannot_turn_over(tmp_path: Path) -> None:
    files = boards.rapl("0", "package-0", 9 * JOULE_UJ)
    del files["sys/class/powercap/intel-rapl:0/max_energy_range_uj"]
    meter = EnergyMeter(build(tmp_path, files))
    meter.sample(0)
    energy = "sys/class/powercap/intel-rapl:0/energy_uj"
    build(tmp_path, {energy: str(11 * JOULE_UJ)})
    assert joules_after(meter, 1) == pytest.approx(2)
    build(tmp_path, {energy: "5"})
    assert joules_after(meter, 2) is None


def test_a_counter_that_cannot_be_read_for_a_while_loses_nothing(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, boards.rapl("0", "package-0", 0)))
    meter.sample(0)
    build(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": b""})
    assert joules_after(meter, 1) is None, "never the old sum as if nothing had been used"
    build(tmp_path, boards.rapl("0", "package-0", 30 * JOULE_UJ))
    assert joules_after(meter, 2) == pytest.approx(30)


@given(
    power=st.floats(0.1, 100),
    slope=st.floats(0, 10),
    gaps=st.lists(st.floats(0, 20), min_size=1, max_size=20),
)
def test_a_power_that_changes_steadily_is_integrated_exactly(
    power: float, slope: float, gaps: list[float]
) -> None:
    now = 0.0
    source = Powers("a line", lambda: power + slope * now)
    assert source.advance(now) == 0
    total = 0.0
    for gap in gaps:
        now += gap
        step = source.advance(now)
        assert step is not None and step >= 0
        total += step
    assert total == pytest.approx(power * now + slope * now**2 / 2, abs=1e-6)


def test_a_clock_that_goes_back_gives_no_energy_back() -> None:
    source = Powers("steady", lambda: 5.0)
    assert [source.advance(now) for now in (10.0, 12.0, 11.0)] == [0.0, 10.0, 0.0]


def test_a_jetsons_module_is_fed_through_one_rail(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path / "orin", boards.orin_nano()))
    assert meter.source == "INA rails"
    meter.sample(0)
    assert joules_after(meter, 10) == pytest.approx(10 * 4.984 * 1.056)
    assert Rails(build(tmp_path / "nano", boards.nano())).power_w() == pytest.approx(1.75)


def test_rails_are_summed_where_none_feeds_all(tmp_path: Path) -> None:
    rails = Rails(build(tmp_path, boards.agx_orin()))
    assert rails.power_w() == pytest.approx(2.4 + 0.4 + 4.0), "VDDQ is fed from VIN_SYS_5V0"


def test_a_rail_that_feeds_all_is_never_replaced_by_its_parts(tmp_path: Path) -> None:
    rails = Rails(build(tmp_path, {**boards.orin_nano(), "sys/class/hwmon/hwmon1/curr1_input": b""}))
    assert rails.power_w() is None
    build(tmp_path, boards.orin_nano())
    assert rails.power_w() is not None


def test_a_channel_without_a_sensor_is_left_out_and_a_lost_one_is_missed(tmp_path: Path) -> None:
    build(tmp_path, {**boards.agx_orin(), "sys/class/hwmon/hwmon3/curr2_input": b""})
    rails = Rails(tmp_path)
    assert rails.power_w() == pytest.approx(2.4 + 4.0)
    build(tmp_path, {"sys/class/hwmon/hwmon3/curr1_input": b""})
    assert rails.power_w() is None


def test_no_board_runs_on_nothing(tmp_path: Path) -> None:
    zero = boards.ina(1, ("VDD_IN", 0, 0))
    assert Rails(build(tmp_path, zero)).power_w() is None
    assert EnergyMeter(tmp_path).source is None


def test_a_battery_is_a_source_until_the_laptop_is_plugged_in(tmp_path: Path) -> None:
    meter = EnergyMeter(build(tmp_path, boards.laptop_without_rapl()))
    assert meter.source == "battery"
    meter.sample(0)
    build(tmp_path, boards.supply("BAT0", power_now=10_500_000))
    assert joules_after(meter, 2) == pytest.approx(20)
    build(tmp_path, boards.supply("AC", online=1) | boards.supply("BAT0", status="Charging"))
    assert joules_after(meter, 3) is None
    build(tmp_path, boards.supply("AC", online=0) | boards.supply("BAT0", status="Discharging"))
    assert joules_after(meter, 4) is None, "what the adapter gave went unseen"


def test_a_plugged_in_laptop_has_no_source(tmp_path: Path) -> None:
    plugged = {**boards.laptop_without_rapl(), **boards.supply("AC", online=1)}
    assert EnergyMeter(build(tmp_path, plugged)).source is None


@pytest.mark.parametrize(
    ("facts", "power_w"),
    [
        ({"power_now": 9_500_000}, 9.5),
        ({"power_now": -9_500_000}, 9.5),
        ({"current_now": 1_500_000, "voltage_now": 12_000_000}, 18.0),
        ({"current_now": -1_500_000, "voltage_now": 12_000_000}, 18.0),
        ({"power_now": 0, "current_now": 500_000, "voltage_now": 12_000_000}, 6.0),
        ({"power_now": 0}, None),
        ({"power_now": "unknown", "current_now": 0, "voltage_now": 12_000_000}, None),
        ({}, None),
    ],
)
def test_batteries_tell_power_or_current_and_voltage(
    tmp_path: Path, facts: dict[str, object], power_w: float | None
) -> None:
    build(tmp_path, boards.supply("BAT0", type="Battery", status="Discharging", **facts))
    told = Supplies(tmp_path).discharge_w()
    assert told == (None if power_w is None else pytest.approx(power_w))


def test_batteries_that_discharge_together_are_summed_or_not_told(tmp_path: Path) -> None:
    first = boards.supply("BAT0", type="Battery", status="Discharging", power_now=4_000_000)
    second = boards.supply("BAT1", type="Battery", status="Discharging", power_now=5_000_000)
    supplies = Supplies(build(tmp_path, first | second))
    assert supplies.discharge_w() == pytest.approx(9)
    build(tmp_path, boards.supply("BAT1", status="Full"))
    assert supplies.discharge_w() == pytest.approx(4)
    build(tmp_path, boards.supply("BAT1", status="Discharging", power_now="max"))
    assert supplies.discharge_w() is None

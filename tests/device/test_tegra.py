"""What Jetson boards print and store, over several boards and releases."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.tegra import Core, PowerModes, Rail, board, l4t, parse_tegrastats
from tests.device import boards
from tests.device.boards import build

NANO = (
    "RAM 2110/3964MB (lfb 12x2MB) SWAP 77/1982MB (cached 5MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [11%@1224,8%@1224,off,off] EMC_FREQ 0%@1600 GR3D_FREQ 3%@76 APE 25 PLL@31C CPU@33.5C PMIC@100C "
    "GPU@32C AO@38.5C thermal@32.75C POM_5V_IN 1871/1850 POM_5V_GPU 40/38 POM_5V_CPU 283/290"
)
TX2 = (
    "RAM 2204/7852MB (lfb 900x4MB) SWAP 0/3926MB (cached 0MB) CPU [9%@345,off,off,3%@345,1%@345,1%@345] "
    "EMC_FREQ 0% GR3D_FREQ 0% APE 150 MTS fg 1% bg 1% PLL@42.5C MCPU@42.5C PMIC@100C Tboard@40C GPU@41C "
    "BCPU@42.5C thermal@41.9C Tdiode@41.25C VDD_SYS_GPU 153/158 VDD_SYS_SOC 536/547 VDD_4V0_WIFI 633/527 "
    "VDD_IN 3140/3208 VDD_SYS_CPU 536/590 VDD_SYS_DDR 557/601"
)
AGX_XAVIER = (
    "RAM 9001/15692MB (lfb 3x2MB) SWAP 12/7846MB (cached 0MB) CPU [4%@1190,0%@1190,0%@1190,0%@1190,off,off,"
    "off,off] EMC_FREQ 0% GR3D_FREQ 0% AO@30C GPU@30.5C Tboard@31C Tdiode@32C AUX@30.5C CPU@31.5C "
    "thermal@30.8C PMIC@100C GPU 463/463 CPU 618/600 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3300"
)
XAVIER_NX = (
    "03-04-2025 08:15:31 RAM 3099/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [12%@1190,17%@1192,off,"
    "off,off,off] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C "
    "AO@45C GPU@45.5C PMIC@50C VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"
)
AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@2201] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 14%@[407,1300] NVDLA0_FREQ @1600 VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C "
    "Tboard@32C SOC2@40.093C GPU@-256C tj@44.343C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/391mW "
    "VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
ORIN_NANO = (
    "10-08-2025 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [38%@1497,0%@729,"
    "0%@729,0%@729,off,off] EMC_FREQ 15%@204 GR3D_FREQ 45%@1300 NVDEC off NVJPG off VIC off OFA off APE 200 "
    "cpu@48.562C soc2@46.593C gpu@49.625C tj@45.5C VDD_IN 4940mW/4935mW VDD_CPU_GPU_CV 512mW/544mW "
    "VDD_SOC 1420mW/1419mW"
)
OLDEST = "RAM 1710/7854MB (lfb 84x4MB) cpu [0%@499,off,7%] EMC 0%@665 APE 25 GR3D 6%@140"


def test_a_jetson_nano_with_jetpack_4() -> None:
    seen = parse_tegrastats(NANO)
    assert seen
    assert (seen.ram_used_mb, seen.ram_total_mb) == (2110, 3964), "IRAM is something else"
    assert (seen.swap_used_mb, seen.swap_total_mb) == (77, 1982)
    assert seen.cores == (Core(11, 1224), Core(8, 1224), None, None)
    assert (seen.gpu_percent, seen.gpu_mhz) == (3, 76)
    assert seen.temperatures_c["CPU"] == 33.5 and len(seen.temperatures_c) == 6
    assert seen.rails == {
        "POM_5V_IN": Rail(1871, 1850),
        "POM_5V_GPU": Rail(40, 38),
        "POM_5V_CPU": Rail(283, 290),
    }


def test_a_jetson_tx2_prints_no_frequency_of_its_gpu() -> None:
    seen = parse_tegrastats(TX2)
    assert seen
    assert (seen.gpu_percent, seen.gpu_mhz) == (0, None)
    assert len(seen.cores) == 6 and seen.cores[1] is None and seen.cores[3] == Core(3, 345)
    assert seen.rails["VDD_IN"] == Rail(3140, 3208) and len(seen.rails) == 6
    assert seen.temperatures_c["Tdiode"] == 41.25


def test_a_jetson_agx_xavier_has_rails_named_like_other_fields() -> None:
    seen = parse_tegrastats(AGX_XAVIER)
    assert seen
    assert list(seen.rails) == ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"]
    assert seen.rails["CPU"] == Rail(618, 600)
    assert seen.cores[0] == Core(4, 1190) and seen.cores[4:] == (None,) * 4


def test_a_jetson_xavier_nx_with_jetpack_5() -> None:
    seen = parse_tegrastats(XAVIER_NX)
    assert seen
    assert (seen.gpu_percent, seen.gpu_mhz) == (0, 114)
    assert seen.rails["VDD_CPU_GPU_CV"] == Rail(650, 670)
    assert seen.temperatures_c == {
        "AUX": 45, "CPU": 46.5, "thermal": 45.6, "AO": 45, "GPU": 45.5, "PMIC": 50,
    }  # fmt: skip


def test_a_jetson_agx_orin_leaves_out_what_is_off_or_not_connected() -> None:
    seen = parse_tegrastats(AGX_ORIN)
    assert seen
    assert (seen.gpu_percent, seen.gpu_mhz) == (14, 1300), "the faster one of two clusters"
    assert set(seen.temperatures_c) == {"CPU", "Tboard", "SOC2", "tj"}
    assert list(seen.rails) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert seen.cores == (Core(0, 729), Core(0, 2201))


def test_a_jetson_orin_nano_with_jetpack_6() -> None:
    seen = parse_tegrastats(ORIN_NANO)
    assert seen
    assert (seen.gpu_percent, seen.gpu_mhz) == (45, 1300)
    assert seen.temperatures_c["tj"] == 45.5
    assert seen.rails["VDD_IN"] == Rail(4940, 4935)


def test_jetpack_3_names_fields_otherwise_and_prints_fewer() -> None:
    seen = parse_tegrastats(OLDEST)
    assert seen
    assert seen.cores == (Core(0, 499), None, Core(7, None))
    assert (seen.gpu_percent, seen.gpu_mhz) == (6, 140)
    assert (seen.swap_used_mb, seen.swap_total_mb) == (None, None)
    assert seen.temperatures_c == {} and seen.rails == {}


def test_clusters_that_are_off_have_a_frequency_and_no_load() -> None:
    seen = parse_tegrastats("RAM 1/2MB CPU [1%@729] GR3D_FREQ @[0,0,0] VIC off")
    assert seen and (seen.gpu_percent, seen.gpu_mhz) == (None, 0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "tegrastats: command not found",
        "RAM 2110/3964MB (lfb 12x2MB) SWAP 77/1982MB",
        "CPU [11%@1224] GR3D_FREQ 3%@76",
        "RAM 2110/3964MB CPU []",
        "RAM 2110/3964MB CPU [11%@1224,1",
        "RAM 2110/3964MB CPU [11%@1224,on]",
        "RAM 2110/3964MB CPU [11%@fast]",
        "RAM much/3964MB CPU [11%@1224]",
        "RAM -5/3964MB CPU [11%@1224]",
        "IRAM 0/252MB CPU [11%@1224]",
    ],
)
def test_what_is_no_whole_line_is_none(line: str) -> None:
    assert parse_tegrastats(line) is None


@given(line=st.sampled_from([NANO, TX2, AGX_XAVIER, XAVIER_NX, AGX_ORIN, ORIN_NANO]), data=st.data())
def test_a_line_that_is_cut_off_is_none_or_tells_less(line: str, data: st.DataObject) -> None:
    whole = parse_tegrastats(line)
    seen = parse_tegrastats(line[: data.draw(st.integers(0, len(line)))])
    assert whole
    if seen:
        assert (seen.ram_used_mb, seen.cores) == (whole.ram_used_mb, whole.cores)
        assert set(seen.rails) <= set(whole.rails)
        assert seen.temperatures_c.items() <= whole.temperatures_c.items()
        if "mW" in line:  # a number without a unit may have lost its end
            assert seen.rails.items() <= whole.rails.items()


words = st.sampled_from(
    ["RAM", "1/2MB", "CPU", "[1%@2,off]", "GR3D_FREQ", "@[,]", "0%@[7]", "tj@", "a@1C", "NC", "1/2", "9" * 30]
)


@given(st.one_of(st.text(), st.lists(words).map(" ".join)))
def test_no_line_raises(line: str) -> None:
    parse_tegrastats(line)


@pytest.mark.parametrize(
    ("told", "release"),
    [
        ("# R36 (release), REVISION: 3.0, GCID: 36106755, BOARD: generic, EABI: aarch64", "36.3.0"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t186ref", "32.7.1"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178\n# KERNEL_VARIANT: oot", "35.4.1"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464", "38.2.0"),
        ("# R36 (release)", None),
        ("Ubuntu 22.04", None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_the_release_of_jetson_linux(tmp_path: Path, told: str | bytes, release: str | None) -> None:
    assert l4t(build(tmp_path, {"etc/nv_tegra_release": told})) == release


def test_a_pc_has_neither_board_nor_release_nor_mode(tmp_path: Path) -> None:
    assert (board(tmp_path), l4t(tmp_path), PowerModes(tmp_path).now()) == (None, None, None)


def test_the_power_mode_is_the_one_that_is_set_now(tmp_path: Path) -> None:
    modes = PowerModes(build(tmp_path, boards.orin_nano()))
    assert modes.now() == "MAXN_SUPER"
    for status, name in {
        "pmode:0001": "7W",
        "pmode:0": "15W",
        "pmode:0009": "mode 9",
        "fmode:cool": None,
    }.items():
        build(tmp_path, {"var/lib/nvpmodel/status": status})
        assert modes.now() == name

"""Machines as their kernels show them: files by path below a root, and the root that has them."""

from __future__ import annotations

from pathlib import Path

Files = dict[str, str | bytes]


def build(root: Path, files: Files) -> Path:
    """Write a machine's files, on top of what is there."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return root


def zones(**millidegrees: object) -> Files:
    """Thermal zones by type, with "_" for "-"; b"" is a zone that cannot be read."""
    files: Files = {}
    for i, (kind, value) in enumerate(millidegrees.items()):
        files[f"sys/class/thermal/thermal_zone{i}/type"] = kind.replace("_", "-")
        files[f"sys/class/thermal/thermal_zone{i}/temp"] = value if isinstance(value, bytes) else str(value)
    return files


def cooling(**states: int) -> Files:
    """Cooling devices by type, with "_" for "-"."""
    files: Files = {}
    for i, (kind, state) in enumerate(states.items()):
        files[f"sys/class/thermal/cooling_device{i}/type"] = kind.replace("_", "-")
        files[f"sys/class/thermal/cooling_device{i}/cur_state"] = str(state)
    return files


def governors(*names: str) -> Files:
    return {
        f"sys/devices/system/cpu/cpufreq/policy{i}/scaling_governor": name for i, name in enumerate(names)
    }


def throttles(core: list[int], package: int) -> Files:
    files: Files = {}
    for i, n in enumerate(core):
        files[f"sys/devices/system/cpu/cpu{i}/thermal_throttle/core_throttle_count"] = str(n)
        files[f"sys/devices/system/cpu/cpu{i}/thermal_throttle/package_throttle_count"] = str(package)
    return files


def rapl(zone: str, name: str, energy_uj: int | None, range_uj: int = 262_143_328_850) -> Files:
    """A domain such as "0" or "0:1"; without energy, its counter is not for everyone to read."""
    folder = f"sys/class/powercap/intel-rapl:{zone}"
    files: Files = {f"{folder}/name": name, f"{folder}/max_energy_range_uj": str(range_uj)}
    if energy_uj is not None:
        files[f"{folder}/energy_uj"] = str(energy_uj)
    return files


def supply(name: str, **facts: object) -> Files:
    return {f"sys/class/power_supply/{name}/{key}": str(value) for key, value in facts.items()}


def ina(hwmon: int, *channels: tuple[str, int, int]) -> Files:
    """An INA3221 as hwmon shows it: label, mV and mA of each channel, and the sum that is no rail."""
    folder = f"sys/class/hwmon/hwmon{hwmon}"
    files: Files = {f"{folder}/name": "ina3221"}
    for i, (label, millivolts, milliamperes) in enumerate(channels, 1):
        files[f"{folder}/in{i}_label"] = label
        files[f"{folder}/in{i}_input"] = str(millivolts)
        files[f"{folder}/curr{i}_input"] = str(milliamperes)
    files |= {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": "760"}
    return files | {f"{folder}/curr4_input": "360"}


def old_ina(address: str, *channels: tuple[str, int]) -> Files:
    """An INA3221 as NVIDIA's driver showed it up to JetPack 4: name and mW of each channel."""
    folder = f"sys/bus/i2c/drivers/ina3221x/{address}/iio:device0"
    files: Files = {"sys/bus/i2c/drivers/ina3221x/bind": b""}
    for i, (name, milliwatts) in enumerate(channels):
        files[f"{folder}/rail_name_{i}"] = name
        files[f"{folder}/in_power{i}_input"] = str(milliwatts)
    return files


def laptop() -> Files:
    """An Intel laptop on its battery, with RAPL for everyone to read."""
    return {
        **zones(acpitz=27_800, x86_pkg_temp=61_000, iwlwifi_1=71_000, INT3400_Thermal=20_000),
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
        **cooling(Processor=0, intel_powerclamp=-1, LCD=7, iwlwifi=3, Fan=1),
        **governors("powersave", "powersave", "powersave", "powersave"),
        **throttles([3, 3, 0, 1], package=5),
        **rapl("0", "package-0", 4_000_000),
        **rapl("0:0", "core", 3_000_000),
        **rapl("0:1", "uncore", 500_000),
        **rapl("1", "psys", 9_000_000),
        **supply("AC", type="Mains", online=0),
        **supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity=5),
        **supply(
            "BAT0",
            type="Battery",
            status="Discharging",
            capacity=80,
            power_now=9_500_000,
            energy_full=50_000_000,
        ),
        "sys/firmware/acpi/platform_profile": "balanced",
    }


def laptop_without_rapl() -> Files:
    """The same, with a kernel since 5.10, which shows energy counters to root alone."""
    return {name: value for name, value in laptop().items() if not name.endswith("energy_uj")}


def desktop() -> Files:
    """An AMD desktop: its RAPL goes by Intel's name, and Tctl is 27 degrees above the die."""
    return {
        "sys/class/hwmon/hwmon0/name": "nvme",
        "sys/class/hwmon/hwmon0/temp1_input": "78850",
        "sys/class/hwmon/hwmon1/name": "k10temp",
        "sys/class/hwmon/hwmon1/temp1_label": "Tctl",
        "sys/class/hwmon/hwmon1/temp1_input": "82000",
        "sys/class/hwmon/hwmon1/temp2_label": "Tdie",
        "sys/class/hwmon/hwmon1/temp2_input": "55000",
        "sys/class/hwmon/hwmon1/temp3_label": "Tccd1",
        "sys/class/hwmon/hwmon1/temp3_input": "53250",
        **zones(acpitz=16_800),
        **cooling(Processor=0),
        **governors("schedutil", "performance"),
        **rapl("0", "package-0", 65_532_000_000, 65_532_610_987),
        **rapl("0:0", "core", 12_000_000, 65_532_610_987),
    }


def orin_nano() -> Files:
    """A Jetson Orin Nano with JetPack 6."""
    return {
        **zones(
            cpu_thermal=49_906,
            gpu_thermal=b"",
            cv0_thermal=-256_000,
            soc0_thermal=48_500,
            soc2_thermal=47_000,
            tj_thermal=50_062,
        ),
        **cooling(
            cpufreq_cpu0=0, devfreq_17000000_gpu=0, pwm_fan=2, cpu_throttle_alert=1, gpu_throttle_alert=0
        ),
        **governors("schedutil", "schedutil"),
        **ina(1, ("VDD_IN", 4984, 1056), ("VDD_CPU_GPU_CV", 4976, 200), ("VDD_SOC", 4976, 296)),
        "sys/class/hwmon/hwmon3/name": "soctherm_oc",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "1",
        "sys/class/hwmon/hwmon3/oc1_throt_en": "1",
        "sys/class/hwmon/hwmon3/oc2_event_cnt": "0",
        "sys/class/hwmon/hwmon3/oc3_event_cnt": "27",
        **supply("ucsi-source-psy-1-00081", type="USB", online=0),
        "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36106755, BOARD: generic",
        "etc/nvpmodel.conf": (
            "# < POWER_MODEL ID=id_num NAME=mode_name >\n"
            "# < POWER_MODEL ID=2 NAME=OLD >\n"
            "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
            "< POWER_MODEL ID=1 NAME=7W >\nCPU_ONLINE CORE_4 0\n"
            "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=0 >"
        ),
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    }


def agx_orin() -> Files:
    """The power monitors of a Jetson AGX Orin: no rail feeds all."""
    return {
        **ina(3, ("VDD_GPU_SOC", 20_000, 120), ("VDD_CPU_CV", 20_000, 20), ("VIN_SYS_5V0", 5_000, 800)),
        **ina(4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5_000, 60), ("NC", 0, 0)),
    }


def agx_xavier() -> Files:
    """A Jetson AGX Xavier with JetPack 4."""
    return {
        **zones(AO_therm=30_000, CPU_therm=31_500, GPU_therm=30_500, AUX_therm=30_500, PMIC_Die=100_000),
        **cooling(thermal_fan_est=0, cpu_balanced=0),
        **old_ina("1-0040", ("GPU", 463), ("CPU", 618), ("SOC", 2936)),
        **old_ina("1-0041", ("CV", 0), ("VDDRQ", 309), ("SYS5V", 3306)),
        "proc/device-tree/model": b"Jetson-AGX\0",
        "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t186ref",
        "var/lib/nvpmodel/status": "pmode:0003",
    }


def nano() -> Files:
    """A Jetson Nano with JetPack 4."""
    return {
        **zones(AO_therm=38_500, CPU_therm=33_000, GPU_therm=31_500, PLL_therm=31_000, PMIC_Die=100_000),
        **old_ina("6-0040", ("POM_5V_IN", 1750), ("POM_5V_GPU", 80), ("POM_5V_CPU", 366)),
    }


ALL = (laptop, laptop_without_rapl, desktop, orin_nano, agx_orin, agx_xavier, nano)

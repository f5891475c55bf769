"""What this machine is: cores, instruction sets, memory, GPU. Facts only; nothing is decided here."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from .memory import available_bytes, total_bytes
from .nvidia import gpus
from .tegra import board

# The instruction sets that decide which of llama.cpp's kernels run, by their names in /proc/cpuinfo.
_INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),  # x86-64
    *("asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),  # aarch64
)


@dataclass(frozen=True)
class Machine:
    """Attributes that a system does not tell are None or empty, never guessed."""

    cpu: str
    architecture: str
    n_cores: int
    n_physical_cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    memory_available_bytes: int
    system: str
    kernel: str
    board: str | None
    gpus: tuple[str, ...]


def look() -> Machine:
    """Look at the machine now."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return Machine(
        cpu=info.get("model name") or info.get("Model") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        n_cores=usable_cores(),
        n_physical_cores=psutil.cpu_count(logical=False) or usable_cores(),
        instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
        memory_bytes=total_bytes(),
        memory_available_bytes=available_bytes(),
        system=platform.system(),
        kernel=platform.release(),
        board=board(),
        gpus=tuple(gpu.name for gpu in gpus()),
    )


def usable_cores() -> int:
    """Cores that this process may run on, which a container or taskset can make fewer."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """One thread a physical core: hyper-threads share the units that the kernels wait for."""
    return max(1, min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores()))


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return facts
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts

"""The machine is told as it is; what it does not tell stays empty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from edge_runtime.device import machine


def test_facts_agree_with_each_other() -> None:
    seen = machine.look()
    assert seen.cpu and seen.architecture and seen.system and seen.kernel
    assert 1 <= seen.n_cores <= (os.cpu_count() or 1)
    assert seen.n_physical_cores >= 1
    assert 0 <= seen.memory_available_bytes <= seen.memory_bytes
    assert set(seen.instruction_sets) <= set(machine._INSTRUCTION_SETS)
    assert json.loads(json.dumps(asdict(seen)))["cpu"] == seen.cpu


def test_threads_by_default_have_a_core_each() -> None:
    assert 1 <= machine.default_threads() <= machine.usable_cores()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_process_bound_to_one_core_takes_one_thread() -> None:
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{core}}})\n"
        "from edge_runtime.device.machine import default_threads, usable_cores\n"
        "print(usable_cores(), default_threads())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1"]


def test_a_machine_that_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError("hidden")

    monkeypatch.setattr(machine.Path, "read_text", refuse)
    seen = machine.look()
    assert seen.instruction_sets == () and seen.board is None
    assert seen.cpu

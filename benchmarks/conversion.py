"""How much time and memory does an export take?

Runs `python -m export` without the gates in a process of its own, samples its memory, and runs llama.cpp's
own llama-quantize, where it is given, on the same BF16 file for the same types. One JSON line a run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from export import card

from . import facts
from .processes import MemorySampler

RESULTS = Path(__file__).parent / "results" / "conversion.jsonl"
err = Console(stderr=True)
QUANTIZE = """
import json, pathlib, sys
from export.native import quantize
quantize(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]))
"""
STEP = re.compile(r"(\w+) +([\d.]+) s")


def main(
    base: Annotated[Path, typer.Argument(help="Model folder, such as benchmarks.shapes writes.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    target: Annotated[str, typer.Option(help="Recipe.")] = "cpu",
    adapter: Annotated[Optional[Path], typer.Option(help="LoRA adapter to merge.")] = None,  # noqa: UP045
    llama_quantize: Annotated[Optional[Path], typer.Option(help="llama.cpp's program.")] = None,  # noqa: UP045
    results: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Measure an export's steps and its peak memory."""
    command = [
        sys.executable, "-m", "export", "--base", base, "--target", target, "--out", out, "--keep-bf16",
        "--skip", "parity", "--skip", "retention",
    ]  # fmt: skip
    if adapter:
        command += ["--adapter", adapter]
    steps: dict[str, float] = {}
    peaks: dict[str, int | None] = {}
    began = at = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        with MemorySampler(process.pid) as memory:
            for line in process.stderr or ():
                err.print(line.rstrip(), highlight=False)
                now = time.perf_counter()
                for name, seconds in STEP.findall(line):
                    steps[name], peaks[name] = float(seconds), memory.peak_bytes_between(at, now)
                at = now
        wall = time.perf_counter() - began
    if process.returncode:
        raise typer.Exit(process.returncode)
    found = facts.about() | {
        "base": base.name,
        "target": Path(target).stem, "adapter": adapter is not None,
        "bytes": (out / "model.gguf").stat().st_size,
        "wall_s": wall, "steps_s": steps, "peak_pss_bytes": peaks,
    }  # fmt: skip
    if llama_quantize:
        found |= _in_turn(llama_quantize, out)
    facts.append(results, [found])
    Console().print_json(data=found)


def _in_turn(program: Path, folder: Path) -> dict[str, object]:
    """Seconds of llama-quantize and of ours for the same file and types, and our memory."""
    source, theirs, ours = folder / "model-bf16.gguf", folder / "theirs.gguf", folder / "ours.gguf"
    types = json.loads((folder / "model.json").read_text("utf-8"))["types"]
    rules = [w for n, kind in types.items() for w in ("--tensor-type", f"^{re.escape(n)}$={kind.lower()}")]
    commands = {
        "llama_quantize_s": [program, *rules, source, theirs, "Q4_0"],
        "quantize_s": [sys.executable, "-c", QUANTIZE, source, ours, json.dumps(types)],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    peaks = []
    for name in ("llama_quantize_s", "quantize_s", "quantize_s", "llama_quantize_s"):
        err.print(name.removesuffix("_s").replace("_", "-"), "…")
        began = time.perf_counter()
        with (
            subprocess.Popen(
                list(map(str, commands[name])), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process,
            MemorySampler(process.pid) as memory,
        ):
            status = process.wait()
        if status:
            raise typer.Exit(status)
        found[name].append(time.perf_counter() - began)
        if name == "quantize_s":
            peaks.append(memory.peak_bytes)
    same = card.types_of(theirs) == card.types_of(ours)
    theirs.unlink()
    ours.unlink()
    return {**found, "same_types": same, "quantize_peak_pss_bytes": peaks}


if __name__ == "__main__":
    typer.run(main)

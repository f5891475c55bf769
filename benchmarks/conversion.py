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
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from export import card

from . import facts
from .processes import MemorySampler

RESULTS = Path(__file__).parent / "results" / "conversion.jsonl"
STEP = re.compile(r"(\w+) +([\d.]+) s")


def main(
    base: Annotated[Path, typer.Argument(help="Model folder, such as benchmarks.shapes writes.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    target: Annotated[str, typer.Option(help="Recipe.")] = "cpu",
    llama_quantize: Annotated[Optional[Path], typer.Option(help="llama.cpp's program.")] = None,  # noqa: UP045
    results: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Measure an export's steps and its peak memory."""
    command = [
        sys.executable, "-m", "export", "--base", base, "--target", target, "--out", out, "--keep-bf16",
        "--skip", "parity", "--skip", "retention",
    ]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        with MemorySampler(process.pid) as memory:
            said = process.stderr.read() if process.stderr else ""
        wall = time.perf_counter() - began
    if process.returncode:
        raise typer.BadParameter(said.strip()[-300:])
    steps = {name: float(seconds) for name, seconds in STEP.findall(said)}
    found: dict[str, object] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": facts.machine(),
        "versions": facts.versions(), "commit": facts.git_commit(), "base": base.name, "target": target,
        "bytes": (out / "model.gguf").stat().st_size, "wall_s": wall, "steps_s": steps,
        "peak_pss_bytes": memory.peak_bytes,
    }  # fmt: skip
    if llama_quantize:
        types = json.loads((out / "model.json").read_text("utf-8"))["types"]
        rules = [
            w for n, kind in types.items() for w in ("--tensor-type", f"^{re.escape(n)}$={kind.lower()}")
        ]
        theirs = out / "llama-quantize.gguf"
        began = time.perf_counter()
        subprocess.run(
            [llama_quantize, *rules, out / "model-bf16.gguf", theirs, "Q4_0"], check=True, capture_output=True
        )
        found["llama_quantize_s"] = time.perf_counter() - began
        found["same_types"] = card.types_of(theirs) == card.types_of(out / "model.gguf")
        theirs.unlink()
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    Console().print_json(data=found)


if __name__ == "__main__":
    typer.run(main)

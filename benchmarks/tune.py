"""Which settings are the fastest for a model on this machine? One at a time, in turn; kept as a profile."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from edge_runtime.config import Settings
from edge_runtime.device.machine import usable_cores
from edge_runtime.errors import InvalidSetting, MedgeError
from edge_runtime.models import embedded, gguf, profile

from . import facts
from .paper import Case, Side, kv_types, measure

RESULTS = Path(__file__).parent / "results" / "tune.jsonl"
# What a setting must be worth to be changed: less may be chance.
LEAST_GAIN = 0.03

Values = dict[str, Any]  # by setting

err = Console(stderr=True, highlight=False)


def choices(header: gguf.GGUF) -> dict[str, list[Any]]:
    """The values to try, the default first. Threads first: they change the most."""
    n_cores, default = usable_cores(), Settings.model_validate({})
    threads = {default.threads, 1, n_cores, max(1, n_cores // 2), max(1, n_cores - 1)}
    return {
        "threads": sorted(threads, key=lambda n: (n != default.threads, n)),
        "batch": [default.batch, 64, 128, 512],
        "flash_attention": [True, False],
        "kv": kv_types(header),
    }


def flags(values: Values) -> tuple[str, ...]:
    """For `medge serve` and `medge plan`; threads are told apart from them."""
    return (
        "--batch", str(values["batch"]), "--kv", str(values["kv"]),
        "--flash-attention" if values["flash_attention"] else "--no-flash-attention",
    )  # fmt: skip


def possible(values: Values) -> bool:
    return bool(values["flash_attention"]) or values["kv"] == "f16"


def best_of(seconds: dict[Any, list[float]]) -> Any:
    """The default, which is first, unless another is faster by more than chance."""
    default, *_ = seconds
    fastest = min(seconds, key=lambda value: median(seconds[value]))
    return fastest if median(seconds[fastest]) < (1 - LEAST_GAIN) * median(seconds[default]) else default


def tune(path: Path, case: Case, n_rounds: int, limit_s: float) -> tuple[Values, list[dict[str, Any]]]:
    """The best values, and what each was worth; what is out of time keeps its default."""
    header, until = gguf.read(path), time.monotonic() + limit_s
    tried = choices(header)
    best: Values = {name: values[0] for name, values in tried.items()}
    worth: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, refresh_per_second=1) as progress:
        bar = progress.add_task("", total=n_rounds * sum(len(v) for v in tried.values() if len(v) > 1))
        for name, values in tried.items():
            ways = [v for v in values if possible(best | {name: v})]
            seconds: dict[Any, list[float]] = {value: [] for value in ways}
            for round_ in range(n_rounds if len(ways) > 1 else 0):
                for value in ways if round_ % 2 == 0 else reversed(ways):
                    if time.monotonic() > until:
                        break
                    progress.update(bar, description=f"{name} {value}")
                    with_it = best | {name: value}
                    side = Side("medge", "medge", path, flags(with_it))
                    found = measure(side, case, header.n_vocab, with_it["threads"], seed=round_)
                    seconds[value].append(found["total_s"])
                    worth.append({"setting": name, "value": value, "round": round_} | found)
                    progress.advance(bar)
            if all(seconds.values()):
                best[name] = best_of(seconds)
    return best, worth


def table(best: Values, worth: Sequence[dict[str, Any]]) -> Table:
    shown = Table("setting", "value", box=None, pad_edge=False)
    for name in ("answer s", "of the default", "prompt s", "ms a token", "peak MiB"):
        shown.add_column(name, justify="right")
    for name in dict.fromkeys(line["setting"] for line in worth):
        of = [line for line in worth if line["setting"] == name]
        default = median(line["total_s"] for line in of if line["value"] == of[0]["value"])
        for value in dict.fromkeys(line["value"] for line in of):
            lines = [line for line in of if line["value"] == value]
            total, prompt, token = (median(x[k] for x in lines) for k in ("total_s", "prompt_s", "token_s"))
            peak = max(line["peak_pss_bytes"] or 0 for line in lines)
            shown.add_row(
                name, f"[bold green]{value}[/]" if value == best[name] else str(value), f"{total:.2f}",
                f"{total / default:.3f}", f"{prompt:.2f}", f"{token * 1e3:.1f}", f"{peak / 2**20:,.0f}",
            )  # fmt: skip
    return shown


def main(
    model: Annotated[Optional[Path], typer.Argument(help="GGUF; the embedded model if left out.")] = None,  # noqa: UP045
    case: Annotated[str, typer.Option(help="Tokens read + written by the request that is timed.")] = "256+64",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each value is measured.")] = 3,
    minutes: Annotated[float, typer.Option(min=0.1, help="Begin nothing new after this time.")] = 15.0,
    keep: Annotated[bool, typer.Option(help="Write the profile that medge then uses.")] = True,
    out: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Find the fastest settings of a model on this machine, and keep them for `medge`."""
    try:
        path = (model or embedded.prepare()).resolve()
        header = gguf.read(path)
        if header.embeddings:
            raise InvalidSetting(f"{path} is an embedding model; the speed of answers is tuned here.")
        best, worth = tune(path, Case.of(case), rounds, 60 * minutes)
    except MedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    about = facts.about() | {"session": facts.now(), "model": path.name, "case": case, "best": best}
    facts.append(out, (about | line for line in worth))
    console = Console()
    console.print(table(best, worth))
    if not all(line["quiet"] for line in worth):
        console.print("[yellow]The machine was not quiet: repeat this when nothing else runs.[/]")
    left_out = [name for name in choices(header) if name not in {line["setting"] for line in worth}]
    if left_out:
        console.print(f"Not measured: {', '.join(left_out)}.", highlight=False)
    if keep:
        console.print(f"Kept: {profile.write(header, best)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

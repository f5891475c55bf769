"""`python -m distill`: the command."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from .errors import DistillError
from .progress import Progress, Report

app = typer.Typer(
    add_completion=False, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
err = Console(stderr=True)
LINE_EVERY_S = 60  # of progress, where there is no terminal
out = Console()

File = Annotated[Path, typer.Argument(help="The run's TOML file; ready ones are in distill/configs.")]
Only = Annotated[Optional[list[str]], typer.Option(help="A model of the file; all if left out.")]  # noqa: UP045


@app.callback()
def main() -> None:
    """Teach a small model what a large one knows, through LoRA, and measure what it learned.

    Each stage goes on where it was interrupted. With several GPUs:
    accelerate launch -m distill train CONFIG.toml
    """


@app.command()
def run(
    config: File,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Check all, print what it needs; load no model.")
    ] = False,
) -> None:
    """All stages: traces, then logits and training of every model of the file, evaluation."""
    with sentences():
        if dry:
            _dry_run(config)
            return
        with opened(config) as stages:
            stages.traces()
            for name in stages.config.models:
                stages.logits(name)
                stages.train(name)
            _report(stages)


@app.command()
def traces(config: File) -> None:
    """Ask the teacher's endpoint for answers to the training questions."""
    with sentences(), opened(config) as stages:
        stages.traces()


@app.command()
def logits(config: File, only: Only = None) -> None:
    """Ask the teachers what they expect at every token of the training answers."""
    with sentences(), opened(config) as stages:
        for name in only or stages.config.models:
            stages.logits(name)


@app.command()
def train(config: File, only: Only = None) -> None:
    """Train the models of the file, in its order."""
    with sentences(), opened(config) as stages:
        for name in only or stages.config.models:
            stages.train(name)


@app.command()
def evaluate(config: File) -> None:
    """Compare base, teachers and students on the development rows."""
    with sentences(), opened(config) as stages:
        _report(stages)


def _dry_run(path: Path) -> None:
    from itertools import chain

    from .config import load
    from .data import check_apart, read_all
    from .plan import plan

    config = load(path)
    train, development = (
        list(chain(*read_all(of, config.seed))) for of in (config.data.train, config.data.development)
    )
    check_apart(train, development)
    plans = plan(config, train)
    columns = (
        "model",
        "weights learn",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "a device",
        "time",
    )
    table = Table(*columns, box=None, pad_edge=False)
    assert config.machine
    room = config.machine.memory_gb
    for found in plans:
        sizes = (found.weights, found.gradients, found.optimizer, found.activations, found.logits)
        total = f"{found.total / 1e9:.1f} GB"
        table.add_row(
            found.name,
            f"{found.trained / 1e6:,.1f} M of {found.parameters / 1e6:,.0f} M",
            *(f"{size / 1e9:.1f} GB" for size in sizes),
            f"[bold red]{total} of {room:g}[/]" if found.total > room * 1e9 else f"{total} of {room:g}",
            f"{found.seconds / 3600:.1f} h",
        )
    out.print(f"{len(train):,} training rows, {len(development):,} development rows; no question is in both.")
    if config.traces:
        asked = len(train) * config.traces.samples
        out.print(f"{asked:,} answers are asked of {config.traces.model}, {config.traces.in_flight} at once.")
    out.print(table)
    if large := [found.name for found in plans if found.total > room * 1e9]:
        raise DistillError(
            f"{large[0]} does not fit into {room:g} GB: take a smaller micro_batch or max_tokens, "
            "gradient_checkpointing, quantized_base, or more devices with fsdp."
        )


def _report(stages: Any) -> None:
    from .report import summary, tables

    found = stages.evaluate()
    for table in tables(found):
        out.print(table)
    path = stages.config.out / "evaluation.json"
    path.write_text(json.dumps(summary(found), indent=1) + "\n", "utf-8")
    err.print(f"The same as JSON: {path}", highlight=False, soft_wrap=True)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    from .config import load

    config = load(path)  # a wrong key is named before torch is loaded, which takes seconds
    from .stages import Run

    with Display() as display:
        yield Run(config, display)


class Display(Progress):
    """A bar for what is counted, a line for the rest; where it goes into a file, a line now and then."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Report]:
        self._bars.start()
        task = self._bars.add_task(name, total=None, rate="")
        shown = self._bars.tasks[-1]
        began = told = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal told
            speed = shown.speed
            self._bars.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")
            if not err.is_terminal and done and (now := time.monotonic()) - told > LINE_EVERY_S:
                told, rate = now, done / (now - began)
                left = (total - done) / rate / 60
                self.say(f"{name}: {done:,} of {total:,}, {rate:,.0f}/s, {left:.0f} min left")

        yield report
        self._bars.remove_task(task)
        self._bars.stop()
        self.say(f"{name}: {time.monotonic() - began:.1f} s")

    def say(self, text: str) -> None:
        err.print(text, highlight=False, soft_wrap=True)


@contextmanager
def sentences() -> Iterator[None]:
    """Errors of ours as one sentence, and exit status 1."""
    try:
        yield
    except DistillError as error:
        err.print("[bold red]distill:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        err.print(
            "[bold red]distill:[/] The disk is full; what is complete is kept. Free some, and run again."
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("Interrupted; the same command goes on where this one was.", highlight=False)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    sys.exit(app())

"""`python -m export`: the command."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from .errors import ExportError
from .progress import Progress, Report

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
err = Console(stderr=True)
out = Console()


@app.callback(invoke_without_command=True)
def export(
    context: typer.Context,
    base: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Model folder in Hugging Face's form, GGUF file, organization/name on the hub, or embedded."
        ),
    ] = None,
    adapter: Annotated[Optional[Path], typer.Option(help="LoRA adapter folder that peft saved.")] = None,  # noqa: UP045
    calibration: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Text that shows what matters: .jsonl rows with question and answer, or plain text."
        ),
    ] = None,
    evaluation: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--eval", help="Held-out text for the gates, in the same forms; multiple choice with options."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="cpu, cuda, jetson, or a recipe of your own: FILE.toml.")
    ] = "cpu",
    recipe: Annotated[
        str,
        typer.Option(
            help="plain: the target's own types. auto: more bits where they are measured to matter most."
        ),
    ] = "plain",
    bits: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Budget in bits a weight, such as 4.8; with --recipe auto.", min=1, max=16),
    ] = None,
    max_bytes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Budget for the file in bytes; with --recipe auto.", min=1),
    ] = None,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Where model.gguf and model.json go."),
    ] = None,
    keep_bf16: Annotated[bool, typer.Option("--keep-bf16", help="Keep model-bf16.gguf as well.")] = False,
    skip: Annotated[list[str], typer.Option(help="A gate not to run: parity or retention.")] = [],  # noqa: B006
) -> None:
    """Make a 4-bit GGUF of a model and its LoRA adapter, and prove that it is the same model.

    Merges the adapter, converts to BF16 GGUF, compares that with the model in torch (parity gate), quantizes
    with an importance matrix, and measures what 4 bits lost (retention gate). A failed gate leaves no model.
    Interrupted, the same command goes on where it was.
    """
    if context.invoked_subcommand:
        return
    with sentences():
        if base is None or folder is None:
            raise ExportError(
                f"{'--base' if base is None else '--out'} is needed; see python -m export --help."
            )
        if unknown := set(skip) - {"parity", "retention"}:
            raise ExportError(f"--skip {min(unknown)}: no such gate; there are parity and retention.")
        if recipe not in ("plain", "auto"):
            raise ExportError(f"--recipe {recipe}: there are plain and auto; your own file goes to --target.")
        if recipe == "plain" and (bits or max_bytes):
            raise ExportError(f"{'--bits' if bits else '--max-bytes'} needs --recipe auto.")
        if bits and max_bytes:
            raise ExportError("--bits and --max-bytes are two budgets; give one.")
        from .budget import Budget
        from .hub import locate
        from .pipeline import Export, Options

        path, hub_name = locate(base)
        options = Options(
            base=path,
            out=folder,
            calibration=calibration,
            evaluation=evaluation,
            adapter=adapter,
            hub_name=hub_name,
            target=target,
            budget=Budget(max_bytes, bits) if recipe == "auto" else None,
            keep_bf16=keep_bf16,
            skip=frozenset(skip),
            command=shlex.join(["python", "-m", "export", *sys.argv[1:]]),
        )
        with Display() as display:
            card = Export(options, display).run()
        if card["choices"]:
            out.print(reasons(card["choices"]))
        out.print(summary(card, folder))


@app.command()
def verify(model: Annotated[Path, typer.Argument(help="model.gguf, with model.json beside it.")]) -> None:
    """Check a GGUF against its card."""
    with sentences():
        from .card import verify as check

        with Display() as display, display.step("verify") as report:
            card = check(model, report)
        said = f"{model} is {card['name']}, recipe {card['recipe']}, as its card says."
        out.print(said, highlight=False, soft_wrap=True)


@app.command()
def lora(
    base: Annotated[str, typer.Option(help="The base: model folder, GGUF file, or name on the hub.")],
    adapter: Annotated[Path, typer.Option(help="LoRA adapter folder that peft saved.")],
    file: Annotated[Path, typer.Option("--out", help="The GGUF file to write.")],
) -> None:
    """Write an adapter as a GGUF of its own, a few MB, for devices that have the base already."""
    with sentences():
        from .checkpoint import read_json
        from .families import Family
        from .hub import locate
        from .lora import write
        from .merge import Adapter
        from .unpack import read_config

        path, _ = locate(base)
        config = read_config(path) if path.is_file() else read_json(path / "config.json")
        with Display() as display, display.step("lora") as report:
            write(Adapter(adapter), Family.of(config), file, report)
        out.print(f"{file}: {file.stat().st_size / 1e6:.1f} MB", highlight=False)


@app.command(name="unpack")
def unpack_command(
    model: Annotated[str, typer.Argument(help="A GGUF file, or embedded for the package's SmolLM2.")],
    folder: Annotated[Path, typer.Argument(help="Where the folder in Hugging Face's form goes.")],
) -> None:
    """Write a GGUF as a folder that torch reads: to train it, for example."""
    with sentences():
        from .hub import locate
        from .unpack import unpack

        path, _ = locate(model)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ExportError(f"{folder} exists and is no empty folder; take another, or remove it.")
        with Display() as display, display.step("unpack") as report:
            unpack(path, folder, report)
        out.print(f"{folder} holds {path.name} as transformers reads it.", highlight=False, soft_wrap=True)


class Rate(ProgressColumn):
    """Of what is counted, a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")


class Display(Progress):
    """One progress display for the whole run; where it goes into a file, a line for each step."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Report]:
        task = self._bars.add_task(name, total=None)
        began = time.monotonic()
        yield lambda done, total: self._bars.update(task, completed=done, total=total)
        finished = self._bars.tasks[task].total or 1
        self._bars.update(task, completed=finished, total=finished)
        if not err.is_terminal:
            err.print(f"{name:<12} {time.monotonic() - began:.1f} s", highlight=False)

    def skipped(self, name: str) -> None:
        self._bars.add_task(f"{name} (done before)", total=1, completed=1)
        if not err.is_terminal:
            err.print(f"{name} (done before)", highlight=False)


@contextmanager
def sentences() -> Iterator[None]:
    """Errors of ours as one sentence, and exit status 1."""
    try:
        yield
    except ExportError as error:
        err.print("[bold red]export:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("Interrupted; the same command goes on where this one was.", highlight=False)
        raise typer.Exit(130) from None


def reasons(choices: list[dict[str, Any]]) -> Table:
    """Which matrices got which type, and why: the most sensitive first."""
    table = Table("matrices", "type", "MB", "smallest", "its KL", "left", box=None, pad_edge=False)
    for choice in sorted(choices, key=lambda choice: -choice["kl_of_smallest"]):
        raised = choice["type"] != choice["smallest"]
        table.add_row(
            choice["group"],
            f"[bold]{choice['type']}[/]" if raised else choice["type"],
            f"{choice['bytes'] / 1e6:.2f}",
            choice["smallest"],
            f"{choice['kl_of_smallest']:.5f}",
            f"{choice['kl_expected']:.5f}",
        )
    return table


def summary(card: dict[str, Any], folder: Path) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    file = card["file"]
    table.add_row("model", f"{folder / 'model.gguf'}")
    table.add_row("size", f"{file['bytes'] / 1e6:,.1f} MB, in BF16 {file['bf16_bytes'] / 1e6:,.1f} MB")
    table.add_row("recipe", card["recipe"])
    if found := card["parity"]:
        table.add_row(
            "parity",
            f"{found['n_texts']} texts with the same tokens; top token equal at {found['top1']:.2%} of "
            f"{found['n_positions']:,} positions, mean KL {found['mean_kl']:.1e}",
        )
    if found := card["retention"]:
        table.add_row(
            "retention",
            f"perplexity {found['perplexity']:.3f}, {found['perplexity_ratio']:.3f} of BF16's; mean KL "
            f"{found['mean_kl']:.4f}, 99th percentile {found['kl_p99']:.3f}; top token equal at "
            f"{found['top1']:.1%}",
        )
        if found["n_questions"]:
            low, high = found["accuracy_interval"]
            table.add_row(
                "questions",
                f"{found['accuracy']:.1%} of {found['n_questions']}, BF16 {found['accuracy_bf16']:.1%}; "
                f"difference {low:+.1%} to {high:+.1%}, p = {found['p_value']:.2f}",
            )
    return table


if __name__ == "__main__":
    sys.exit(app())

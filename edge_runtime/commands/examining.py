"""`medge eval`: how well a model answers questions whose answers are known."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape

from .. import __version__
from ..config import Settings, state_dir
from ..errors import InvalidSetting
from .loading import find_model, fitting, make_worker
from .options import ENGINE_SETTINGS, Json, err, out, with_settings

if TYPE_CHECKING:
    from ..exam.exam import Exam
    from ..exam.results import Header, Line, Results
    from ..models.store import ModelFile
    from ..prompts.template import Template

# Settings of the engine that answers or their times depend on.
TOLD = ("slots", "ctx", "kv", "flash_attention", "threads", "gpu_layers", "batch")


@with_settings("slots", *ENGINE_SETTINGS)
def evaluate(
    settings: Settings,
    files: Annotated[list[Path], typer.Argument(help="JSON lines: questions with options or an answer.")],
    by: Annotated[
        str,
        typer.Option(
            help="likelihood compares the given answers, one prompt at a time unless --slots says more; "
            "generate lets the model write one.",
            metavar="likelihood|generate",
        ),
    ] = "likelihood",
    template: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Of multiple choice by generate: exam, one of yours that takes options, or none for the "
            "question and its options alone. Default: exam. Free text takes the template that fits, or none."
        ),
    ] = None,
    samples: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=1000, help="By generate: answers a question, each with its own seed."),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=(1 << 32) - 1001, help="By generate: of the first sample. Default: 0."),
    ] = None,
    temperature: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, max=2, help="By generate: 0 always takes the most probable token."),
    ] = None,
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=1 << 20, help="By generate: tokens of thoughts and answer. Default: the template's."
        ),
    ] = None,
    max_thinking_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0, max=1 << 20, help="By generate: of them at most thoughts. Default: the template's."
        ),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only the first so many rows of each file."),
    ] = None,
    result: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--out",
            help="Where results are written, an answer a line; a run that was stopped goes on there. "
            "Default: a file among medge's own.",
        ),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Results of another model, to compare question by question."),
    ] = None,
    keep_text: Annotated[
        bool, typer.Option("--keep-text", help="Write questions and answers to the results, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Examine a model: how many questions it answers rightly, how sure that is, and what it costs."""
    from ..exam.exam import Exam
    from ..exam.results import load
    from ..exam.rows import read
    from ..exam.tables import tables
    from ..tables import rich_table

    written = {"template": template, "samples": samples, "seed": seed, "temperature": temperature,
               "max_tokens": max_tokens, "max_thinking_tokens": max_thinking_tokens}  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    if by not in ("likelihood", "generate"):
        raise InvalidSetting(f"--by {by}: there are likelihood and generate.")
    if by == "likelihood" and given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise InvalidSetting(f"{flag} is for --by generate: nothing is written by likelihood. Leave it out.")
    exam = Exam(
        tuple(read(files, limit)),
        by="generate" if by == "generate" else "likelihood",
        limit=limit,
        keep_text=keep_text,
        **given,
    )
    other = load(against) if against else None
    sat = sit(exam, settings, find_model(settings), result)
    report = sat.report(other)
    if as_json:
        print(json.dumps(report | {"out": str(sat.path)}, ensure_ascii=False))
        return
    for table in tables(report):
        out.print(rich_table(table), end="\n\n")
    if report["too_long"]:
        out.print(_too_long(report["too_long"]), style="yellow", highlight=False, soft_wrap=True)
    err.print(f"Results: {escape(str(sat.path))}", style="dim", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Sat:
    """An examination that is over."""

    exam: Exam
    header: Header
    lines: Mapping[tuple[str, int], Line]
    path: Path

    def report(self, other: tuple[Header, Mapping[tuple[str, int], Line]] | None = None) -> dict[str, Any]:
        """All figures; with `other`, the header and lines of another run, also both compared.

        Raises:
            InvalidSetting: there is nothing to compare.
        """
        from ..exam import summary

        found = summary.report(self.exam, self.header, self.lines)
        if other:
            found["against"] = summary.against((self.header, self.lines), other)
        return found


def sit(exam: Exam, settings: Settings, model: ModelFile, path: Path | None = None) -> Sat:
    """Ask whatever has not been asked yet, and keep each answer as soon as it is there.

    Args:
        path: of the results; None takes a file of medge's own, the same for the same run.

    Raises:
        InvalidSetting: the model writes no text, or cannot be asked in this way; results of another run.
        MedgeError: a row or the model cannot be used.
        typer.Exit: Ctrl-C, which has been told of.
    """
    from ..exam import results
    from ..exam.exam import NONE, check, digest
    from ..prompts.template import load as load_templates

    if model.header.embeddings:
        raise InvalidSetting(
            f"{model.name} is an embedding model and answers no questions. Name a text model with --model."
        )
    if exam.by == "generate" and not model.header.chat_template:
        raise InvalidSetting(f"{model.name} has no chat template to be asked with. Take --by likelihood.")
    templates = load_templates(settings.template_folder) if exam.by == "generate" else {}
    check(exam, templates)
    settings = fitting(settings.model_copy(update=_for_throughput(exam, settings)), model)
    of = results.header(
        {"name": model.name, "sha256": _sha256(model.path)},
        [{"name": f.name, "sha256": f.sha256, "n": len(f.rows)} for f in exam.files],
        exam.settings
        | {"medge": __version__}
        | {name: getattr(settings, name) for name in TOLD}
        | ({"templates": digest(templates)} if exam.by == "generate" and exam.template != NONE else {}),
    )
    path = path or results.default_path(state_dir() / "exams", of)
    with results.Results(path, of) as kept:
        todo = [
            (row, sample)
            for sample in range(exam.samples)
            for file in exam.files
            for row in file.rows
            if (row.id, sample) not in kept.lines
        ]
        if todo:
            try:
                asyncio.run(_ask_all(exam, settings, model, templates, kept, todo))
            except KeyboardInterrupt:
                n_all = len(kept.lines) + sum((row.id, s) not in kept.lines for row, s in todo)
                err.print(
                    f"Stopped after {len(kept.lines):,} of {n_all:,} answers, which are in "
                    f"{escape(str(path))}. The same command goes on.",
                    highlight=False, soft_wrap=True,
                )  # fmt: skip
                raise typer.Exit(130) from None
        return Sat(exam, of, dict(kept.lines), path)


async def _ask_all(
    exam: Exam,
    settings: Settings,
    model: ModelFile,
    templates: Mapping[str, Template],
    kept: Results,
    todo: list[Any],
) -> None:
    from ..exam.sitting import Sitting
    from ..prompts.thinking import family

    worker = make_worker(settings, model)
    try:
        with err.status(f"Loading {escape(model.name)}"):
            await worker.start()
            await worker.wait_ready()
        tally = _Tally()
        for line in kept.lines.values():
            tally.add(line)
        sitting = Sitting(
            worker, settings.slots, exam, templates, model.name, family(model.header.chat_template)
        )
        n_done = len(kept.lines)
        with _progress() as progress:
            bar = progress.add_task(tally.said, total=n_done + len(todo), completed=n_done, rate="")
            began = asyncio.get_running_loop().time()

            def on_line(line: Line) -> None:
                kept.add(line)
                tally.add(line)
                took = asyncio.get_running_loop().time() - began
                rate = (len(kept.lines) - n_done) / took if took else 0.0
                progress.update(bar, advance=1, description=tally.said, rate=f"{rate:.2f}/s")

            await sitting.run(todo, on_line)
    finally:
        await worker.stop(0)


@dataclass
class _Tally:
    """What is known while answers come, in a few words."""

    right: list[bool] = field(default_factory=list)
    covered: list[bool] = field(default_factory=list)
    nats: float = 0.0
    n_answer: int = 0

    def add(self, line: Line) -> None:
        if "right" in line:
            self.right.append(line["right"])
        self.covered += line.get("covered", ())
        if "n_answer" in line:
            self.nats -= line["nats"]
            self.n_answer += line["n_answer"]

    @property
    def said(self) -> str:
        parts = []
        if self.right:
            parts.append(f"{100 * sum(self.right) / len(self.right):.1f} % right")
        if self.covered:
            parts.append(f"{100 * sum(self.covered) / len(self.covered):.1f} % covered")
        if self.n_answer:
            parts.append(f"{self.nats / self.n_answer:.3f} nats a token")
        return ", ".join(parts) or "asking"


def _progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        # What is left is guessed from the last minutes: questions differ in length.
        speed_estimate_period=180,
    )


def _for_throughput(exam: Exam, settings: Settings) -> dict[str, Any]:
    """What suits an examination better than a server, where nobody asked for something else."""
    better: dict[str, Any] = {"step_limit_ms": 60_000.0}  # nobody reads along while prompts are read
    if exam.by == "likelihood":
        better["prefix_tokens"] = 0  # scored prompts share no beginnings
        if "slots" not in settings.model_fields_set:
            # Prompts that are scored at once share the rows of logits of a step: 4 read 118 tokens a second,
            # one 117 to 138 (2 cores, 135M, cases of 280 tokens), with a quarter of the KV memory.
            better["slots"] = 1
    return better


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _too_long(ids: list[str]) -> str:
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5:,} more" if len(ids) > 5 else "")
    return (
        f"Not asked, because a slot is too small for them: {escape(shown)}. A larger --ctx would take them."
    )

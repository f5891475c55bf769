"""How many examination questions do models answer? By likelihood and by generating, model against model.

Asks through what `medge eval` runs, over the development rows, and adds nothing of its own but who, when and
where. A run that was stopped goes on: answers lie among medge's own files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from edge_runtime.commands.examining import Sat, sit
from edge_runtime.commands.loading import find_model
from edge_runtime.config import load
from edge_runtime.errors import InvalidSetting, MedgeError
from edge_runtime.exam import summary, tables
from edge_runtime.exam.exam import Exam, Way
from edge_runtime.exam.rows import QuestionFile, read
from edge_runtime.tables import markdown_table

from . import facts

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
DATA = Path(__file__).parents[2] / "shared" / "data"
EMBEDDED = "embedded"
WAYS: tuple[Way, ...] = ("likelihood", "generate")

Record = dict[str, Any]  # one line of the results file
err = Console(stderr=True, highlight=False)


def exams(paths: Sequence[Path], ways: Sequence[Way], limit: int | None, samples: int) -> Iterator[Exam]:
    """One exam a way. By generating there are only the files that a written answer can be judged in."""
    files = read(paths, limit)
    for way in ways:
        own = tuple(file for file in files if way == "likelihood" or _is_judged(file))
        if own:
            yield Exam(own, way, samples=1 if way == "likelihood" else samples, limit=limit)


def _is_judged(file: QuestionFile) -> bool:
    return all(row.options or row.must_have for row in file.rows)


def records(report: Record, about: Record) -> Iterator[Record]:
    """One line a file, with its subjects within."""
    groups = [*report["multiple_choice"], *report["free_text"]]
    for file in report["files"]:
        of_file = [group for group in groups if group["file"] == file["name"]]
        whole, *subjects = of_file
        yield about | {
            "file": file["name"],
            "file_sha256_16": file["sha256"][:16],
            "way": report["settings"]["by"],
            "settings": report["settings"],
            "figures": whole,
            "subjects": subjects,
        }


def examine(
    models: Sequence[str], paths: Sequence[Path], ways: Sequence[Way], limit: int | None, samples: int,
    settings: Record, out: Path,
) -> Iterator[tuple[str, Sat]]:  # fmt: skip
    """All runs, each with its model's name; its lines are written as soon as it is over."""
    about = facts.about()
    about |= {"session": about["time"]}
    for name in models:
        given = load({**settings, "model": None if name == EMBEDDED else name})
        model = find_model(given)
        for exam in exams(paths, ways, limit, samples):
            err.print(f"{model.name} by {exam.by}", style="dim")
            sat = sit(exam, given, model)
            who = {"model": facts.model_file(model.path) | {"name": model.name}}
            facts.append(out, records(sat.report(), about | who))
            yield model.name, sat


def markdown(runs: Sequence[tuple[str, Sat]]) -> str:
    """The tables of all runs, then models two by two on the same questions."""
    parts = []
    for name, sat in runs:
        parts.append(f"**{name}, by {sat.exam.by}**")
        parts += [markdown_table(made) for made in tables.tables(sat.report())]
    for way in WAYS:
        own = [(name, sat) for name, sat in runs if sat.exam.by == way]
        pairs = [(name, summary.against((a.header, a.lines), (b.header, b.lines)))
                 for (name, a), (_, b) in combinations(own, 2)]  # fmt: skip
        if pairs:
            parts += [f"**McNemar's exact test, by {way}**", markdown_table(tables.paired(pairs))]
    return "\n\n".join(parts)


def main(
    models: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="GGUF files, names on the hub, or embedded.", show_default=EMBEDDED),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder with *_dev.jsonl.")] = DATA,
    by: Annotated[Optional[str], typer.Option(help="Only likelihood, or only generate.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="Rows of each file.")] = None,  # noqa: UP045
    samples: Annotated[int, typer.Option(min=1, help="Written answers a question.")] = 1,
    slots: Annotated[Optional[int], typer.Option(help="Questions at once.")] = None,  # noqa: UP045
    ctx: Annotated[Optional[int], typer.Option(help="Tokens a slot.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Examine models on the development rows, and print the tables as Markdown."""
    paths = sorted(data.glob("*_dev.jsonl"))
    if not paths:
        err.print(f"There are no *_dev.jsonl in {data}; nothing is asked. Name the folder with --data.")
        return
    try:
        ways = tuple(way for way in WAYS if by in (None, way))
        if not ways:
            raise InvalidSetting(f"--by {by}: there are {' and '.join(WAYS)}.")
        settings = {"slots": slots, "ctx": ctx}
        runs = list(examine(models or [EMBEDDED], paths, ways, limit, samples, settings, out))
        print(markdown(runs))
    except MedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)

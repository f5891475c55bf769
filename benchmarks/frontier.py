"""How many bytes buy how much of a model, at which speed?

Makes the usual types and ours of one model, and measures each on held-out text: a table, a picture, and one
JSON line a type. Speeds are taken in turn, A B C A B C, as ratios to plain Q4_0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from export import budget, parity
from export.__main__ import Display, sentences
from export.compare import Difference
from export.hub import locate
from export.native import Array, Model, quantize
from export.pipeline import Export, Options, Prepared, spread
from export.recipe import Recipe, shapes_of
from export.text import read_rows

from . import facts

RESULTS = Path(__file__).parent / "results" / "frontier.jsonl"
PICTURE = Path(__file__).parents[1] / "docs" / "frontier.png"
BASELINE = "Q4_0"
N_PROMPT, N_DECODE = 448, 64

console = Console(stderr=True)
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Candidate:
    """A way to hold the model: types by matrix, or one of llama.cpp's own mixtures."""

    name: str
    types: Mapping[str, str] | str
    weighted: bool  # with the importance matrix


@dataclass
class Point:
    """What was measured of a candidate. Speeds in tokens a second, one number a round."""

    name: str
    ours: bool
    n_bytes: int
    perplexity_ratio: float
    mean_kl: float
    top1: float
    prompt: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def candidates(made: Prepared, recipe: Recipe, sizes: list[int]) -> Iterator[Candidate]:
    for mixture in ("Q8_0", "Q4_1", "Q4_K_M", "IQ4_NL", BASELINE):
        yield Candidate(mixture, mixture, False)
    for mixture in ("Q4_K_M", "IQ4_NL", "Q4_0"):
        yield Candidate(f"{mixture} + importance", mixture, True)
    shapes = shapes_of(made.bf16)
    yield Candidate(recipe.name, recipe.types(shapes), True)
    for size in sizes:
        room = budget.Budget(max_bytes=size).for_matrices(made.bf16, recipe)
        types = budget.types(budget.choose(made.groups or [], shapes, room))
        yield Candidate(f"{recipe.name}, auto {size / 1e6:g} MB", types, True)


def lost(path: Path, texts: list[list[int]], before: list[Array]) -> Difference:
    difference = Difference()
    with Model(path) as model:
        for tokens, reference in zip(texts, before):
            difference.add(tokens, reference, model.logits(tokens))
    return difference


def speeds(path: Path, tokens: list[int]) -> tuple[float, float]:
    """Prompt and decode speed, after a warm-up."""
    with Model(path) as model:
        model.log_likelihoods(tokens[:64], [tokens[:1]])
        began = time.perf_counter()
        model.log_likelihoods(tokens, [tokens[:1]])
        read = time.perf_counter()
        for i in range(N_DECODE):
            model.step(tokens[i], len(tokens) + i)
        return len(tokens) / (read - began), N_DECODE / (time.perf_counter() - read)


@app.command()
def main(
    base: Annotated[str, typer.Option(help="Model folder, GGUF file, or name on the hub.")],
    calibration: Annotated[Path, typer.Option(help="Text for the importance matrix and sensitivities.")],
    evaluation: Annotated[Path, typer.Option("--eval", help="Held-out text.")],
    work: Annotated[Path, typer.Option(help="Folder for the models; what is there is used again.")],
    target: Annotated[str, typer.Option(help="The recipe of ours to compare.")] = "cpu",
    max_mb: Annotated[list[float], typer.Option(help="Sizes for --recipe auto.")] = [86, 89, 92, 96],  # noqa: B006
    n_tokens: Annotated[int, typer.Option(help="Of held-out text.", min=256)] = 10_000,
    n_rounds: Annotated[int, typer.Option(help="Of the speeds.", min=1)] = 5,
    results: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
    picture: Annotated[Path, typer.Option(help="The plot.")] = PICTURE,
) -> None:
    """Measure the types that a model can be held in: bytes, perplexity, KL, and both speeds."""
    with sentences(), Display() as display:
        path, hub_name = locate(base)
        export = Export(
            Options(base=path, out=work, calibration=calibration, evaluation=evaluation, hub_name=hub_name,
                    target=target, budget=budget.Budget(), skip=frozenset({"parity", "retention"})),
            display,
        )  # fmt: skip
        made = export.prepare()
        points, prompt = _quality(made, export.recipe, [int(mb * 1e6) for mb in max_mb], work, evaluation,
                                  n_tokens, display)  # fmt: skip
        with display.step("speed") as report:
            for done in range(n_rounds * len(points)):
                point = points[done % len(points)]
                for found, speed in zip(
                    (point.prompt, point.decode), speeds(_file(work, point.name), prompt)
                ):
                    found.append(speed)
                report(done + 1, n_rounds * len(points))
    about = facts.about() | {
        "base": path.name, "calibration": calibration.name, "evaluation": evaluation.name,
        "n_tokens": n_tokens,
    }  # fmt: skip
    facts.append(results, (about | asdict(point) for point in points))
    Console().print(table(points))
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(points).savefig(picture, dpi=130)
    console.print(f"Written: {escape(str(results))}, {escape(str(picture))}", highlight=False)


def _quality(
    made: Prepared,
    recipe: Recipe,
    sizes: list[int],
    work: Path,
    evaluation: Path,
    n_tokens: int,
    display: Display,
) -> tuple[list[Point], list[int]]:
    """Make every candidate and compare it with BF16. Also gives a prompt for the speeds."""
    points = []
    with Model(made.bf16) as model, display.step("BF16") as report:
        texts = parity.windows(model.tokenize, [row.text for row in spread(read_rows(evaluation))], n_tokens)
        before = []
        for done, tokens in enumerate(texts, 1):
            before.append(model.logits(tokens))
            report(done, len(texts))
    found = list(candidates(made, recipe, sizes))
    with display.step("quality") as report:
        for done, candidate in enumerate(found, 1):
            file = _file(work, candidate.name)
            quantize(made.bf16, file, candidate.types, made.means if candidate.weighted else None)
            d = lost(file, texts, before)
            ours = not isinstance(candidate.types, str)
            points.append(
                Point(candidate.name, ours, file.stat().st_size, d.perplexity_ratio, d.mean_kl, d.top1)
            )
            report(done, len(found))
    return points, [token for tokens in texts for token in tokens][:N_PROMPT]


def _file(work: Path, name: str) -> Path:
    return work / f"{name}.gguf"


def ratios(points: list[Point], what: str) -> dict[str, float]:
    """Median over rounds of the speed relative to plain Q4_0's in the same round."""
    baseline = getattr(next(p for p in points if p.name == BASELINE), what)
    return {p.name: median(a / b for a, b in zip(getattr(p, what), baseline)) for p in points}


def table(points: list[Point]) -> Table:
    prompt, decode = ratios(points, "prompt"), ratios(points, "decode")
    shown = Table(Column("as", no_wrap=True), box=None, pad_edge=False)
    for column in ("MB", "perplexity", "mean KL", "same top", "prompt", "decode"):
        shown.add_column(column, justify="right")
    for p in sorted(points, key=lambda p: p.n_bytes):
        shown.add_row(
            f"[bold]{p.name}[/]" if p.ours else p.name,
            f"{p.n_bytes / 1e6:.1f}",
            f"{p.perplexity_ratio:.3f}",
            f"{p.mean_kl:.4f}",
            f"{p.top1:.1%}",
            f"{median(p.prompt):.0f} ({prompt[p.name]:.2f})",
            f"{median(p.decode):.0f} ({decode[p.name]:.2f})",
        )
    return shown


def draw(points: list[Point]) -> Any:
    """Loss over bytes, and loss over prompt speed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    sides = {
        "size, MB": {p.name: p.n_bytes / 1e6 for p in points},
        "prompt speed, of plain Q4_0's": ratios(points, "prompt"),
    }
    for axis, (label, x) in zip(axes, sides.items()):
        for p in points:
            colour = "#0b6e5f" if p.ours else "#8a8f98"
            axis.scatter(x[p.name], p.mean_kl, color=colour, marker="o" if p.ours else "s", zorder=3)
            # To the left where another point at this height lies to the right.
            at_height = (q for q in points if q is not p and 0.9 < q.mean_kl / p.mean_kl < 1.1)
            side = -1 if any(x[q.name] > x[p.name] for q in at_height) else 1
            axis.annotate(p.name, (x[p.name], p.mean_kl), xytext=(side * 5, 3), textcoords="offset points",
                          ha="left" if side > 0 else "right", fontsize=7, color=colour)  # fmt: skip
        axis.set_xlabel(label)
        axis.set_yscale("log")
        axis.grid(alpha=0.25, which="both")
        axis.margins(x=0.36)
    axes[0].set_ylabel("mean KL to BF16, nats a token (less is better)")
    return figure


if __name__ == "__main__":
    app()

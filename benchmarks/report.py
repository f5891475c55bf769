"""All results as one page that opens without a network, as pictures, and as tables for README.

Reads `benchmarks/results/*.jsonl`, measures nothing. Lines of another form are left out and counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from jinja2 import Environment
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich.console import Console

from edge_runtime.tables import Rows, markdown_table

from . import frontier, savings, tables
from .savings import Record

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
OURS, THEIRS = "#0b6e5f", "#8a8f98"
PARTS = {"weights": "#0b6e5f", "KV memory": "#3fa796", "computing": "#e0a458", "the programs": "#8a8f98"}
OTHER = "#c9ccd1"

PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>medge, measured</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1d2429; background: #fff; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #dde1e4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
small { color: #59636b; }
</style>
<h1>medge, measured</h1>
{% for s in sections %}
<section><h2>{{ s.title }}</h2><p>{{ s.about }}</p>
{% if s.svg %}<figure aria-label="{{ s.title }}">{{ s.svg | safe }}</figure>{% endif %}
<div class="scroll"><table><tr>{% for c in s.made.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in s.made.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div><p><small>{{ s.source }}</small></p></section>
{% endfor %}
{% for name, n in left_out.items() %}<p>{{ n }} lines of {{ name }} are of another form and left out.</p>
{% endfor %}</html>
"""


@dataclass
class Section:
    """One thing that was measured.

    Attributes:
        name: of its picture's file.
        source: when, where and with what.
    """

    name: str
    title: str
    about: str
    made: Rows
    source: str
    figure: Figure | None = None

    @property
    def svg(self) -> str:
        if not self.figure:
            return ""
        text = StringIO()
        self.figure.savefig(text, format="svg", bbox_inches="tight")
        return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def read(path: Path, *keys: str) -> tuple[list[Record], int]:
    """The lines that have these keys, and how many others there are."""
    found, others = [], 0
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            [record[key] for key in ("machine", "commit", *keys)]
            found.append(record)
        except (ValueError, KeyError, TypeError):
            others += 1
    return found, others


def source(records: Sequence[Record]) -> str:
    """When, where and with what these were measured, and whether something disturbed it."""
    first, machine = records[0], records[0]["machine"]
    noisy = sum(r.get("quiet") is False for r in records)
    when = (first.get("time") or first.get("session") or "")[:10]
    text = f"{when}, {machine['cpu']}, {machine['n_cores']} cores, {machine['ram_bytes'] / 2**30:.0f} GiB"
    text += f", commit {str(first['commit'])[:10]}"
    return text + (
        f"; {noisy} of {len(records)} measurements while the machine was not quiet" if noisy else ""
    )


def newest(records: Sequence[Record], key: str = "session") -> list[Record]:
    return [r for r in records if r[key] == records[-1][key]]


# -- 16 and 4 bits


def paper_sections(records: Sequence[Record]) -> Iterator[Section]:
    """The last session of each model."""
    for model in dict.fromkeys(r["model"] for r in records):
        own = newest([r for r in records if r["model"] == model])
        synthetic = (
            " Weights are random: memory and speed do not depend on them." if own[0]["synthetic"] else ""
        )
        memory, latency = savings.PAPER.values()
        for case in dict.fromkeys(r["case"] for r in own):
            of_case = [r for r in own if r["case"] == case and "left_out" not in r]
            if not of_case:
                continue
            about = (
                f"{case} tokens read and written.{synthetic} The paper's model took {memory:.3f} of "
                f"the memory and {latency:.3f} of the latency of the one before."
            )
            yield Section(
                f"paper-{model}-{case}".lower().replace("+", "-"), f"{model}: 16 bits against 4", about,
                savings.cost(of_case, case), source(of_case), draw_paper(of_case, case),
            )  # fmt: skip
            yield Section(
                "", f"{model}, {case}: what the memory is", "", savings.parts(of_case, case), source(of_case)
            )


def draw_paper(records: Sequence[Record], case: str) -> Figure:
    """Memory by part, and time of the prompt and of a token."""
    figure = Figure(figsize=(10, 0.5 * len(savings.sides(records)) + 1.6), layout="constrained")
    memory, prompt, token = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    found = savings.memory_parts(records, case)
    names = list(found)[::-1]
    left = dict.fromkeys(names, 0.0)
    for part, colour in PARTS.items():
        sizes = [found[name].get(part, 0.0) for name in names]
        memory.barh(names, sizes, left=[left[n] for n in names], color=colour, label=part)
        left = {name: left[name] + size for name, size in zip(names, sizes)}
    rest = [max(0.0, found[name]["peak"] - left[name]) for name in names]
    memory.barh(names, rest, left=[left[n] for n in names], color=OTHER, label="rest of the peak")
    for name in names:
        end = max(found[name]["peak"], left[name])
        memory.annotate(f"{found[name]['peak']:,.0f}", (end, name), xytext=(4, 0),
                        textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    memory.set_xlabel("peak memory, MiB")
    memory.margins(x=0.16)
    for axis, what, scale, label in (
        (prompt, "prompt_s", 1, "prompt, s"),
        (token, "token_s", 1e3, "ms a token"),
    ):
        values = [median(savings.of_side(records, name, case, what)) * scale for name in names]
        axis.barh(names, values, color=[OURS if n.startswith("medge") else THEIRS for n in names])
        for name, value in zip(names, values):
            told = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            axis.annotate(told, (value, name), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
        axis.set_xlabel(label)
        axis.margins(x=0.3)
    for axis in (memory, prompt, token):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    return figure


# -- servers


def serving_sections(records: Sequence[Record]) -> Iterator[Section]:
    for workload, own in tables.by_workload(records):
        rows = [[r.label, r.a, r.b, r.ratio, r.target] for r in tables.table_rows(workload, own)]
        yield Section(
            f"serving-{workload.name}", f"medge and llama-server: {workload.name}", workload.about,
            Rows(("", "medge", "llama-server", "ratio (rounds)", "to reach"), rows), source(own),
            draw_latency(own, "short_" if workload.with_long else ""),
        )  # fmt: skip


def draw_latency(records: Sequence[Record], kind: str) -> Figure:
    """From the median to the worst, for both servers: first tokens, and the tokens after them."""
    figure = Figure(figsize=(10, 1.9), layout="constrained")
    ways = (
        ("to the first token, ms", f"ttft_{kind}p50_s", f"ttft_{kind}p95_s"),
        ("between two tokens, ms", "itl_p50_s", "itl_p99_s"),
    )
    for axis, (label, middle, high) in zip(figure.subplots(1, 2, sharey=True), ways):
        for side, name, colour in (("b", "llama-server", THEIRS), ("a", "medge", OURS)):
            own = [r["figures"] for r in records if r["side"] == side]
            points = [[f[key] * 1e3 for f in own if f.get(key) is not None] for key in (middle, high)]
            if not all(points):
                continue
            low, top = (median(values) for values in points)
            axis.plot([low, top], [name, name], color=colour, lw=3, solid_capstyle="round")
            axis.scatter([low], [name], color=colour, s=60, zorder=3)
            axis.scatter([top], [name], color="white", edgecolor=colour, s=60, lw=2, zorder=3)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{label}: median ● and {high.split('_')[-2]} ○")
        axis.margins(y=0.5)
        axis.grid(axis="x", alpha=0.25, which="both")
        axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


# -- the rest


def frontier_section(records: Sequence[Record]) -> Section:
    own = newest(records, "time")
    points = [frontier.Point(**{f.name: r[f.name] for f in fields(frontier.Point)}) for r in own]
    prompt, decode = frontier.ratios(points, "prompt"), frontier.ratios(points, "decode")
    rows = [
        [p.name, f"{p.n_bytes / 1e6:.1f}", f"{p.perplexity_ratio:.3f}", f"{p.mean_kl:.4f}", f"{p.top1:.1%}",
         f"{prompt[p.name]:.2f}", f"{decode[p.name]:.2f}"]
        for p in sorted(points, key=lambda p: p.n_bytes)
    ]  # fmt: skip
    columns = ("as", "MB", "perplexity, of BF16's", "mean KL", "same top token", "prompt", "decode")
    return Section(
        "frontier", f"Types of {own[0]['base']}", "Speeds are shares of plain Q4_0's in the same round.",
        Rows(columns, rows), source(own), frontier.draw(points),
    )  # fmt: skip


def ceiling_section(records: Sequence[Record]) -> Section:
    """The newest line of each machine and model: machines side by side."""
    last = {(r["machine"]["cpu"], r["machine"]["n_cores"], r["model"]): r for r in records}
    rows = [
        [f"{r['machine']['cpu']}, {r['n_threads']} threads", r["model"], f"{r['read_bytes_per_s'] / 1e9:.1f}",
         f"{r['tokens_per_s']:,.1f}", f"{r['of_bandwidth']:.0%}", f"{r['operations_per_s'] / 1e9:,.0f}",
         f"{r['prompt_tokens_per_s']:,.0f}", f"{r['of_arithmetic']:.0%}"]
        for r in last.values()
    ]  # fmt: skip
    columns = (
        "machine", "model", "reads GB/s", "answer tok/s", "of what it reads", "float32 G/s", "prompt tok/s",
        "of what it computes",
    )  # fmt: skip
    return Section(
        "", "What the machine could do", "One request alone.", Rows(columns, rows), source(records)
    )


def tune_section(records: Sequence[Record]) -> Section:
    own = newest(records)
    rows = []
    for setting in dict.fromkeys(r["setting"] for r in own):
        of = [r for r in own if r["setting"] == setting]
        default = median(r["total_s"] for r in of if r["value"] == of[0]["value"])
        for value in dict.fromkeys(r["value"] for r in of):
            took = median(r["total_s"] for r in of if r["value"] == value)
            rows.append([setting, str(value), f"{took:.2f}", f"{took / default:.3f}"])
    columns = ("setting", "value", f"answer s, {own[0]['case']} tokens", "of the default")
    return Section("", f"What settings are worth: {own[0]['model']}", "", Rows(columns, rows), source(own))


def training_section(records: Sequence[Record]) -> Section:
    beside = {"trl": "TRL's SFTTrainer", "logits": "ours with a teacher's kept logits"}
    rows = []
    for r in records:
        (_, ours), (side, other) = r["tokens_per_s"].items()
        label = f"{r['model']}, batch {r['batch']}, beside {beside[side]}"
        rows.append([label, f"{median(ours):,.0f}", f"{median(other):,.0f}", f"{r['ratio']:.2f}"])
    columns = ("tokens a second", "ours on the rows", "the other", "ratio")
    return Section("", "Training", "", Rows(columns, rows), source(records))


def turns_section(records: Sequence[Record]) -> Section:
    own = newest(records)
    waits = {side: [[t["ttft_s"] for t in r["turns"]] for r in own if r["side"] == side] for side in "ab"}
    rows = []
    for number, (a, b) in enumerate(zip(zip(*waits["a"]), zip(*waits["b"])), 1):
        rows.append([str(number), f"{median(a):.2f}", f"{median(b):.2f}", f"{median(a) / median(b):.2f}"])
    about = f"A model that thinks; {own[0]['thoughts']} of {own[0]['max_tokens']} tokens are thoughts."
    columns = ("turn", "medge, s to the first token", "llama-server", "ratio")
    return Section("", "Turns of a conversation", about, Rows(columns, rows), source(own))


def quality_section(records: Sequence[Record]) -> Section:
    last = {(r["model"]["name"], r["way"], r["file"]): r for r in records}
    rows = []
    for (model, way, file), record in last.items():
        found = record["figures"]
        if found.get("accuracy") is None:
            continue
        shares = [found["accuracy"], *found["accuracy_interval"], found["majority"], found["chance"]]
        right, low, high, majority, chance = (f"{share:.1%}" for share in shares)
        name = f"{model}, {file.removesuffix('_dev.jsonl')}"
        rows.append([name, way, f"{found['n']:,}", right, f"{low} to {high}", majority, chance])
    columns = ("questions", "by", "n", "right", "95 %", "majority", "chance")
    return Section("", "The exam", "Development rows.", Rows(columns, rows), source(records))


def sections(folder: Path) -> tuple[list[Section], dict[str, int]]:
    """All that can be shown, and how many lines of which file cannot."""
    known: dict[str, tuple[tuple[str, ...], Any]] = {
        "paper": (("session", "case", "side", "model", "synthetic"), paper_sections),
        "serving": (("session", "workload", "side", "round", "figures"), serving_sections),
        "ceiling": (("model", "of_bandwidth", "of_arithmetic", "prompt_tokens_per_s"), ceiling_section),
        "tune": (("session", "setting", "value", "total_s", "case"), tune_section),
        "frontier": (("time", "base", *(f.name for f in fields(frontier.Point))), frontier_section),
        "turns": (("session", "side", "turns", "thoughts", "max_tokens"), turns_section),
        "quality": (("session", "model", "way", "file", "figures"), quality_section),
        "training": (("model", "batch", "tokens_per_s", "ratio"), training_section),
    }
    found: list[Section] = []
    left_out = {}
    for name, (keys, make) in known.items():
        records, others = read(folder / f"{name}.jsonl", *keys)
        if others:
            left_out[f"{name}.jsonl"] = others
        if records:
            made = make(records)
            found += [made] if isinstance(made, Section) else list(made)
    return found, left_out


def markdown(found: Sequence[Section]) -> str:
    lines = []
    for s in found:
        lines += [f"**{s.title}**: {s.about}".rstrip(": "), ""]
        lines += [markdown_table(s.made), "", s.source, ""]
    return "\n".join(lines)


def page(found: Sequence[Section], left_out: dict[str, int]) -> str:
    """HTML that needs nothing else."""
    return Environment(autoescape=True).from_string(PAGE).render(sections=found, left_out=left_out)


def main(
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    pictures: Annotated[Path, typer.Option(help="Folder for the pictures.")] = DOCS,
    results: Annotated[Path, typer.Option(help="Folder with the results.")] = RESULTS,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables, and write nothing.")
    ] = False,
) -> None:
    """Write all results as one page and its pictures."""
    found, left_out = sections(results)
    if not found:
        print(f"error: {results} holds no results.", file=sys.stderr)
        raise typer.Exit(1)
    if as_markdown:
        print(markdown(found))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(found, left_out), "utf-8")
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = [s for s in found if s.figure and s.name]
    for section in drawn:
        assert section.figure
        section.figure.savefig(pictures / f"{section.name}.png", dpi=130, bbox_inches="tight")
    Console(stderr=True).print(
        f"{out}: {len(found)} tables; {len(drawn)} pictures in {pictures}.", highlight=False
    )


if __name__ == "__main__":
    typer.run(main)

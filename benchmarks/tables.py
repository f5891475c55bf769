"""Two servers' figures side by side: medians of the rounds, ratios, targets.

Reads the records that `serving` writes and prints them; measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_runtime.errors import InvalidSetting

from .client import Figures
from .workloads import MAX_TOKENS, WORKLOADS, Workload

Record = dict[str, Any]  # one line of the results file


@dataclass(frozen=True)
class Figure:
    """How one figure is shown: the value times `scale`, with `n_digits` after the point."""

    name: str
    label: str
    scale: float = 1.0
    n_digits: int = 0

    def number(self, value: float) -> str:
        return f"{value * self.scale:,.{self.n_digits}f}"

    def text(self, figures: Figures) -> str:
        value = figures.get(self.name)
        return "-" if value is None else self.number(value)


FIGURES = (
    Figure("tokens_per_s", "tok/s", n_digits=1),
    Figure("ttft_p50_s", "TTFT p50 ms", 1e3),
    Figure("ttft_p95_s", "TTFT p95 ms", 1e3),
    Figure("ttft_short_p50_s", "short TTFT p50 ms", 1e3),
    Figure("ttft_short_p95_s", "short TTFT p95 ms", 1e3),
    Figure("ttft_long_p50_s", "long TTFT p50 ms", 1e3),
    Figure("ttft_long_p95_s", "long TTFT p95 ms", 1e3),
    Figure("itl_p50_s", "ITL p50 ms", 1e3, 1),
    Figure("itl_p99_s", "ITL p99 ms", 1e3),
    Figure("itl_max_s", "ITL max ms", 1e3),
    Figure("e2e_p50_s", "end to end p50 ms", 1e3),
    Figure("peak_pss_bytes", "peak PSS MiB", 1 / 2**20),
    Figure("pss_growth", "PSS, last quarter / first", n_digits=3),
    Figure("prompt_tokens_p50", "prompt tokens"),
    Figure("prompt_tokens_short_p50", "short prompt tokens"),
    Figure("prompt_tokens_long_p50", "long prompt tokens"),
    Figure("tokens_per_chunk", "tokens per chunk", n_digits=2),
    Figure("client_cpu_share", "load generator, % of a core", 1e2, 1),
    Figure("n_cut_short", f"answers under {MAX_TOKENS} tokens"),
    Figure("n_errors", "errors"),
)


@dataclass(frozen=True)
class Row:
    label: str
    a: str
    b: str
    ratio: str = ""
    target: str = ""
    is_met: bool | None = None


def one_line(record: Record) -> str:
    """A finished run in a few words, for the progress display."""
    names = ("tokens_per_s", "ttft_p50_s", "itl_p99_s", "peak_pss_bytes")
    shown = [f"{figure.label} {figure.text(record['figures'])}" for figure in FIGURES if figure.name in names]
    return ", ".join([*shown, *(f"ERROR {error}" for error in record["errors"])])


def table_rows(workload: Workload, records: Sequence[Record]) -> list[Row]:
    """Medians of the rounds; the ratio of medians A/B with the least and the most of any round.

    No target is met or missed where requests failed.
    """
    rows = []
    is_valid = not any(record["figures"].get("n_errors") for record in records)
    for figure in FIGURES:
        if _is_beside_the_point(figure, workload):
            continue
        by_round: dict[str, dict[int, float]] = {"a": {}, "b": {}}
        for record in records:
            value = record["figures"].get(figure.name)
            if value is not None:
                by_round[record["side"]][record["round"]] = value
        a, b = (median(each.values()) if each else None for each in by_round.values())
        target = workload.targets.get(figure.name)
        ratio = a / b if a is not None and b else None
        shown = ""
        if ratio is not None and not figure.name.startswith(("n_", "prompt", "client")):
            both = by_round["a"].keys() & by_round["b"].keys()
            ratios = [by_round["a"][n] / by_round["b"][n] for n in both if by_round["b"][n]]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
            shown = f"{ratio:.2f}{spread}"
        judged = ratio if target is None or target.of == "ratio" else a
        rows.append(
            Row(
                figure.label,
                "-" if a is None else figure.number(a),
                "-" if b is None else figure.number(b),
                shown,
                "" if target is None else str(target),
                target.met(judged) if target and judged is not None and is_valid else None,
            )
        )
    return rows


def _is_beside_the_point(figure: Figure, workload: Workload) -> bool:
    if figure.name == "pss_growth":
        return "pss_growth" not in workload.targets
    if workload.with_long:
        return figure.name.startswith(("ttft_p", "prompt_tokens_p"))
    return "_short_p" in figure.name or "_long_p" in figure.name


def by_workload(records: Sequence[Record]) -> list[tuple[Workload, list[Record]]]:
    """Of each workload the records of its newest session, in the order of `WORKLOADS`."""
    newest = {record["workload"]: record["session"] for record in records}
    return [
        (workload, [r for r in records if (r["workload"], r["session"]) == (name, newest[name])])
        for name, workload in WORKLOADS.items()
        if name in newest
    ]


def print_tables(records: Sequence[Record], console: Console) -> None:
    for workload, own in by_workload(records):
        table = Table(title=f"{workload.name}: {workload.about}", title_justify="left")
        for heading in ("", "A", "B", "A/B (rounds)", "target"):
            table.add_column(heading, justify="right" if heading else "left")
        for row in table_rows(workload, own):
            verdict = {None: "", True: " [green]met", False: " [red]missed"}[row.is_met]
            table.add_row(row.label, row.a, row.b, row.ratio, row.target + verdict)
        console.print(table)
    for side, command in sorted({(r["side"], r["command"]) for r in records}):
        console.print(escape(f"{side.upper()}: {command}"), soft_wrap=True, highlight=False)


def markdown(path: Path) -> str:
    """The newest session of each workload in a results file, as Markdown.

    Raises:
        InvalidSetting: there is no such file, or it holds no results.
    """
    if not path.is_file():
        raise InvalidSetting(f"There are no results in {path}; run this once without --table.")
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[Record] = [json.loads(line) for line in lines if line.strip()]
    if not records:
        raise InvalidSetting(f"{path} is empty; run this once without --table.")
    parts = []
    for workload, own in by_workload(records):
        parts += [
            f"**{workload.name}**: {workload.about} ({_provenance(own)})",
            "",
            "| | A | B | A/B (rounds) | target |",
            "| --- | --: | --: | --: | --- |",
        ]
        for row in table_rows(workload, own):
            verdict = {None: "", True: ", met", False: ", **missed**"}[row.is_met]
            parts.append(f"| {row.label} | {row.a} | {row.b} | {row.ratio} | {row.target}{verdict} |")
        parts.append("")
    return "\n".join(parts)


def _provenance(records: Sequence[Record]) -> str:
    first = records[0]
    machine, settings, model = first["machine"], first["settings"], first["model"]
    commands = {record["side"]: record["command"] for record in records}
    servers = [
        f"{side.upper()} is {_who(command, first['versions'], side)}"
        for side, command in sorted(commands.items())
    ]
    return ", ".join(
        [
            first["session"][:10],
            f"{machine['cpu']}, {machine['n_cores']} cores",
            f"{model['name']} {model['sha256_16']}",
            f"{settings['n_slots']} slots of {settings['n_ctx']}, {settings['n_threads']} threads",
            f"{len({record['round'] for record in records})} rounds",
            *servers,
            *([first["note"]] if first["note"] else []),
        ]
    )


def _who(command: str, versions: dict[str, str | None], side: str) -> str:
    if "edge_runtime" in command:
        return f"medge {versions['medge']} (llama-cpp-python {versions['llama-cpp-python']})"
    printed = (versions.get(side) or "").partition("\n")[0]
    return f"`{command.split()[0].strip('{}')}` {printed}".strip()

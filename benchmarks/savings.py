"""What 16 and 4 bits take, side by side: reads what `paper` has measured, and measures nothing itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Column, Table

from edge_runtime.errors import InvalidSetting

RESULTS = Path(__file__).parent / "results" / "paper.jsonl"
# arXiv 2505.00025: what its model takes less than the one it replaces. Of what, it does not say.
PAPER = {"memory": 0.647, "latency": 0.124}

Record = dict[str, Any]  # one line of the results file


def ratio(of: Sequence[float], to: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of medians, and its 95 % interval by bootstrap over rounds."""
    chance = np.random.default_rng(seed)
    drawn = [np.median(chance.choice(values, (2000, len(values))), axis=1) for values in (of, to)]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return median(of) / median(to), float(low), float(high)


def read(path: Path) -> list[Record]:
    """All lines, of all sessions.

    Raises:
        InvalidSetting: there are none, or a line is not one of ours.
    """
    try:
        lines: list[Record] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for line in lines:
            line["session"], line["case"], line["side"], line["round"]
    except FileNotFoundError:
        raise InvalidSetting(f"There are no results at {path} yet.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSetting(f"{path} holds a line that is no result of this benchmark: {error!r}.") from None
    return lines


def of_side(records: Sequence[Record], name: str, case: str, what: str) -> list[float]:
    return [r[what] for r in records if r["side"] == name and r["case"] == case and r.get(what) is not None]


def table(records: Sequence[Record], case: str) -> Table:
    """Memory and time of all sides in one case, beside the first side's."""
    shown = Table(Column(f"{case} tokens", no_wrap=True), box=None, pad_edge=False)
    for name in (
        "peak MiB",
        "of the first",
        "prompt s",
        "of it",
        "ms a token",
        "of it",
        "answer s",
        "of it",
        "(95 %)",
    ):
        shown.add_column(name, justify="right")
    names = list(dict.fromkeys(r["side"] for r in records))
    for name in names:
        cells = [name]
        for what, scale, form in (("peak_pss_bytes", 2**-20, ",.0f"), ("prompt_s", 1, ",.1f"),
                                  ("token_s", 1e3, ",.0f"), ("total_s", 1, ",.1f")):  # fmt: skip
            ours, first = of_side(records, name, case, what), of_side(records, names[0], case, what)
            cells.append(format(median(ours) * scale, form) if ours else "-")
            cells.append(f"{ratio(ours, first)[0]:.3f}" if ours and first else "-")
            if what == "total_s":
                cells.append("{1:.2f} to {2:.2f}".format(*ratio(ours, first)) if ours and first else "-")
        shown.add_row(*cells)
    return shown


def parts_table(records: Sequence[Record], case: str) -> Table:
    """What the peak is made of; for medge `medge plan` said it before it was loaded."""
    columns = ("weights", "KV memory", "computing", "the programs")
    shown = Table(Column("MiB", no_wrap=True), box=None, pad_edge=False)
    for name in (*columns, "sum", "peak", "sum / peak"):
        shown.add_column(name, justify="right")
    for name in dict.fromkeys(r["side"] for r in records):
        of = [r for r in records if r["side"] == name and r["case"] == case and r.get("peak_pss_bytes")]
        if of:
            peak, parts = median(r["peak_pss_bytes"] for r in of), of[0]["parts"]
            total = sum(parts.values())
            cells = [f"{parts[c] / 2**20:,.0f}" if c in parts else "" for c in columns]
            shown.add_row(
                name, *cells, f"{total / 2**20:,.0f}", f"{peak / 2**20:,.0f}", f"{total / peak:.3f}"
            )
    return shown

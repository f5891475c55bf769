"""Recorded requests for people: percentiles, how they ended, and how long a first token took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from rich.table import Table

from ..telemetry.records import Found, percentiles

WIDTH = 40
LABELS = {
    "queued_s": ("wait for a slot", "s"),
    "ttft_s": ("first token", "s"),
    "itl_p50_s": ("between tokens, median", "ms"),
    "itl_p99_s": ("between tokens, 99 %", "ms"),
    "tokens_per_s": ("speed", "tok/s"),
    "total_s": ("whole answer", "s"),
    "n_prompt": ("prompt", "tokens"),
    "n_generated": ("answer", "tokens"),
}


def percentile_table(found: Found) -> Table:
    table = Table("", "unit", "5 %", "median", "95 %", "99 %", "requests", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, n, values in percentiles(found.records):
        label, unit = LABELS[name]
        scale = 1000 if unit == "ms" else 1
        table.add_row(label, unit, *(number(value * scale) for value in values), f"{n:,}")
    return table


def ttft_table(records: Sequence[dict[str, Any]]) -> Table:
    """How many requests had their first token within what time: a bar for each doubling."""
    table = Table("first token within", "", "requests", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    values = np.array([r["ttft_s"] for r in records if isinstance(r.get("ttft_s"), (int, float))])
    if not values.size:
        return table
    steps = np.ceil(np.log2(np.maximum(values, 0.0625))).astype(int)
    counts = Counter(steps.tolist())
    for step in range(min(counts), max(counts) + 1):
        bar = "█" * round(counts[step] / max(counts.values()) * WIDTH)
        table.add_row(f"{2.0**step:g} s", bar or ("▏" if counts[step] else ""), f"{counts[step]:,}")
    return table


def summary(found: Found) -> str:
    """In a sentence or two: how many, from when on, how they ended, and what could not be read."""
    first, last = (
        datetime.fromtimestamp(found.records[i]["time"]).strftime("%Y-%m-%d %H:%M") for i in (0, -1)
    )
    ends = Counter(str(record.get("end")) for record in found.records)
    said = f"{len(found.records):,} requests from {first} to {last}: "
    said += ", ".join(f"{n:,} {end}" for end, n in ends.most_common())
    if found.n_unreadable:
        said += f". {found.n_unreadable:,} lines cannot be read"
    if found.n_other:
        said += f". {found.n_other:,} are of another version"
    return said + "."


def number(value: float) -> str:
    """With three figures that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

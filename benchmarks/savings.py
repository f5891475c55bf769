"""What 16 and 4 bits take, side by side: reads what `paper` has measured, and measures nothing itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge_runtime.errors import InvalidSetting
from edge_runtime.tables import Rows

RESULTS = Path(__file__).parent / "results" / "paper.jsonl"
# arXiv 2505.00025: 64.7 % and 12.4 % less than the model that its own replaces. Which, it does not say.
PAPER = {"memory": 0.353, "latency": 0.876}

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


def sides(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(r["side"] for r in records))


def cost(records: Sequence[Record], case: str) -> Rows:
    """Memory and time of all sides in one case, as ratios to the first side's."""
    names = sides(records)
    columns = [f"{case} tokens"]
    rows = [[name] for name in names]
    for what, label, scale, form in (
        ("peak_pss_bytes", "peak MiB", 2**-20, ",.0f"), ("prompt_s", "prompt s", 1, ",.1f"),
        ("token_s", "ms a token", 1e3, ",.0f"), ("total_s", "whole answer s", 1, ",.1f"),
    ):  # fmt: skip
        columns += [label, "of the first (95 %)"]
        first = of_side(records, names[0], case, what)
        for row, name in zip(rows, names):
            ours = of_side(records, name, case, what)
            row.append(format(median(ours) * scale, form) if ours else "-")
            row.append(shown(ours, first) if ours and first and name != names[0] else "")
    return Rows(tuple(columns), rows)


def shown(of: Sequence[float], to: Sequence[float]) -> str:
    """A ratio and its interval; one round has none."""
    middle, low, high = ratio(of, to)
    return f"{middle:.3f}" + (f" ({low:.2f} to {high:.2f})" if len(of) > 1 else "")


def memory_parts(records: Sequence[Record], case: str) -> dict[str, dict[str, float]]:
    """MiB of each part by side, as told before or by the framework, and the measured `peak`."""
    found = {}
    for name in sides(records):
        of = [r for r in records if r["side"] == name and r["case"] == case and r.get("peak_pss_bytes")]
        if of:
            peak = median(r["peak_pss_bytes"] for r in of)
            found[name] = {part: n / 2**20 for part, n in (of[0]["parts"] | {"peak": peak}).items()}
    return found


def parts(records: Sequence[Record], case: str) -> Rows:
    """What the peak is made of; of medge `medge plan` said it before it was loaded."""
    names = ("weights", "KV memory", "computing", "the programs")
    rows = []
    for name, found in memory_parts(records, case).items():
        peak = found.pop("peak")
        total = sum(found.values())
        known = [f"{found[part]:,.0f}" if part in found else "" for part in names]
        rows.append([name, *known, f"{total:,.0f}", f"{peak:,.0f}", f"{total / peak:.3f}"])
    return Rows(("MiB", *names, "sum", "peak", "sum / peak"), rows)

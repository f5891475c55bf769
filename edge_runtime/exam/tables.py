"""The figures of an examination as tables, for any form of them. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..tables import Rows

Figures = Mapping[str, Any]

_COST = ("tokens", "s")
_MEASURES = {"accuracy": "accuracy", "accuracy_per_byte": "a byte"}


def tables(report: Figures) -> list[Rows]:
    """All tables of a report."""
    made = []
    if report["multiple_choice"]:
        made.append(choice(report["multiple_choice"]))
    if report["free_text"]:
        made.append(free(report["free_text"]))
    if report.get("against"):
        made.append(paired([(report["model"]["name"], report["against"])]))
    return made


def choice(groups: Sequence[Figures]) -> Rows:
    per_byte = any("accuracy_per_byte" in g for g in groups)
    samples = any("consistency" in g for g in groups)
    columns = [
        "multiple choice",
        "n",
        "right, % (95 %)",
        *(["a byte"] if per_byte else ["unanswered", "cut"]),
    ]
    columns += ["always the same", "by vote"] if samples else []
    rows = []
    for g in groups:
        row = [_name(g), f"{g['n']:,}", _with_interval(g, "accuracy")]
        if per_byte:
            row.append(_percent(g.get("accuracy_per_byte")))
        else:
            row += [f"{g['n_unanswered']:,}", f"{g['n_cut']:,}"]
        if samples:
            row += [_percent(g.get("consistency")), _percent(g.get("vote_accuracy"))]
        rows.append([*row, _percent(g["majority"]), _percent(g["chance"]), *_cost(g)])
    return Rows((*columns, "majority", "chance", *_COST), rows)


def free(groups: Sequence[Figures]) -> Rows:
    weighed = any("nats_per_token" in g for g in groups)
    columns = ("nats a token", "answer tokens") if weighed else ("covered, %", "statements", "cut")
    rows = []
    for g in groups:
        row = [_name(g), f"{g['n']:,}"]
        if weighed:
            nats = g.get("nats_per_token")
            row += ["-" if nats is None else f"{nats:.3f}", f"{g.get('n_answer_tokens', 0):,}"]
        else:
            row += [_percent(g.get("covered")), f"{g.get('n_statements', 0):,}", f"{g.get('n_cut', 0):,}"]
        rows.append([*row, *_cost(g)])
    return Rows(("free text", "n", *columns, *_COST), rows)


def paired(pairs: Sequence[tuple[str, Figures]]) -> Rows:
    """Models two by two: who has right what the other has not."""
    rows = [
        [f"{first} / {found['model']['name']}", _MEASURES[m["measure"]],
         *(f"{m[name]:,}" for name in ("n", "both", "only_this", "only_other", "neither")), _p(m["p"])]
        for first, found in pairs
        for m in found["measures"]
    ]  # fmt: skip
    columns = ("first / second", "by", "n", "both right", "only first", "only second", "neither", "p")
    return Rows(columns, rows, n_names=2)


def _name(group: Figures) -> str:
    return f"· {group['subject']}" if group["subject"] else str(group["file"])


def _cost(group: Figures) -> list[str]:
    """Tokens read and written, and seconds in a slot, of a question's answer."""
    if group["n_prompt_mean"] is None:
        return ["-", "-"]
    return [f"{group['n_prompt_mean']:,.0f}+{group['n_generated_mean']:,.0f}", f"{group['seconds_mean']:.2f}"]


def _with_interval(group: Figures, measure: str) -> str:
    if group.get(measure) is None:
        return "-"
    low, high = group[f"{measure}_interval"]
    return f"{100 * group[measure]:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"

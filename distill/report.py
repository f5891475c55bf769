"""Models side by side: tables for people, the same numbers as JSON."""

from __future__ import annotations

from typing import Any, TypeAlias

from rich.table import Table

from .evaluate import Answers, ratio, sign_test, wilson

# Answers by model and file; the first model is the base.
Found: TypeAlias = "dict[str, dict[str, Answers]]"


def summary(found: Found) -> dict[str, Any]:
    """Everything that the tables show, and intervals."""
    base, *_ = found
    files = list(found[base])
    text = [f for f in files if found[base][f].nats]
    questions = [f for f in files if found[base][f].right_text]
    return {
        "nll": {file: {name: _nll(found[name][file], found[base][file]) for name in found} for file in text},
        "questions": {
            file: {
                name: _accuracy([found[name][f] for f in of], [found[base][f] for f in of]) for name in found
            }
            for file, of in {
                **{f: [f] for f in questions},
                **({"all": questions} if questions else {}),
            }.items()
        },
    }


def _nll(answers: Answers, base: Answers) -> dict[str, Any]:
    value, low, high = ratio(answers, base)
    return {"nll": answers.nll, "n_tokens": sum(answers.n_tokens), "to_base": value, "interval": [low, high]}


def _accuracy(answers: list[Answers], base: list[Answers]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": sum(len(a.right_text) for a in answers)}
    found["majority"] = sum((a.majority or 0) * len(a.right_text) for a in answers) / found["n"]
    for kind in ("text", "letter"):
        ours = [right for a in answers for right in getattr(a, f"right_{kind}")]
        theirs = [right for a in base for right in getattr(a, f"right_{kind}")]
        lost = sum(b and not a for a, b in zip(ours, theirs))
        won = sum(a and not b for a, b in zip(ours, theirs))
        found[kind] = {
            "accuracy": sum(ours) / len(ours), "interval": wilson(sum(ours), len(ours)),
            "lost": lost, "won": won, "p": sign_test(lost, won),
        }  # fmt: skip
    return found


def tables(found: Found) -> list[Table]:
    facts, names = summary(found), list(found)
    text = Table("nats per answer token", *names, box=None, pad_edge=False)
    for file, values in facts["nll"].items():
        cells = [
            f"{v['nll']:.3f}"
            + (f"\n{v['to_base']:.3f} ({v['interval'][0]:.3f}–{v['interval'][1]:.3f})" if i else "")
            for i, v in enumerate(values[name] for name in names)
        ]
        text.add_row(file, *cells)
    questions = Table("right answers", "n", "majority", *names, box=None, pad_edge=False)
    for file, values in facts["questions"].items():
        first = values[names[0]]
        for kind in ("text", "letter"):
            cells = [
                f"{v[kind]['accuracy']:.1%}" + (f"  p = {v[kind]['p']:.2g}" if i else "")
                for i, v in enumerate(values[name] for name in names)
            ]
            questions.add_row(f"{file}, by {kind}", str(first["n"]), f"{first['majority']:.1%}", *cells)
    return [table for table in (text, questions) if table.row_count]

"""How well kinds are told apart: F1 and confusion matrix, of counts by what is right and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

K = TypeVar("K")


def f1(pairs: Counter[tuple[K, K]]) -> dict[K, float]:
    """For each kind that there is."""
    right, found = Counter[K](), Counter[K]()
    for (a, b), n in pairs.items():
        right[a] += n
        found[b] += n
    return {kind: 2 * pairs[kind, kind] / (right[kind] + found[kind]) for kind in right}


def macro_f1(pairs: Counter[tuple[K, K]]) -> float:
    scores = f1(pairs)
    return sum(scores.values()) / len(scores)


def matrix(pairs: Counter[tuple[str, str]], kinds: Sequence[str]) -> str:
    """A line for what is right, a column for what was found."""
    scores = f1(pairs)
    lines = [" " * 13 + "".join(f"{name[:5]:>6}" for name in kinds) + "    F1"]
    for right in kinds:
        counts = "".join(f"{pairs[right, found] or '.':>6}" for found in kinds)
        lines.append(f"{right:13}{counts}{scores[right]:6.2f}")
    return "\n".join(lines)

"""What counts of right and wrong say: pure functions, no rows and no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb, sqrt
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

# The standard normal's 97.5 % quantile: 95 % lie between it and its negative.
Z_95 = 1.959963984540054


def wilson(n_right: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), which stays within 0 and 1 and is honest for small `n`.

    Args:
        n_right: may be a fraction, where each question counts with its mean over samples.

    Returns:
        lower and upper limit; all of 0 to 1 where nothing was asked.
    """
    if n == 0:
        return 0.0, 1.0
    share, spread = n_right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(max(0.0, share * (1 - share) / n + spread / (4 * n)))
    # Rounding would leave the ends a hair beside 0 and 1, and beside the share itself.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def mcnemar(n_first: int, n_second: int) -> float:
    """Two-sided exact p of McNemar's test (McNemar 1947, by the binomial): is one of two models better?

    Args:
        n_first: questions that only the first has right.
        n_second: questions that only the second has right.
    """
    n = n_first + n_second
    tail = sum(comb(n, k) for k in range(min(n_first, n_second) + 1))
    return min(1.0, 2 * tail / (1 << n))


def majority_share(answers: Sequence[T]) -> float:
    """What one would have right who always gave the most frequent answer; 0 of no answers."""
    return max(Counter(answers).values()) / len(answers) if answers else 0.0


def vote(answers: Sequence[T | None]) -> T | None:
    """The most frequent answer; among equals the one given first. None, no answer, has no vote."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=counts.__getitem__) if counts else None


def agrees(answers: Sequence[object]) -> bool:
    """Whether all are the same answer; none at all is no answer to agree on."""
    return len(set(answers)) == 1 and answers[0] is not None

"""Prompts that many requests share: kept once, copied to the slots that need them.

A sequence holds the KV of a list of tokens. This module knows which sequence begins with what, and keeps
the beginnings that two requests had in common after both are gone, within a limit of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

# A shorter beginning is quicker to read than to keep track of.
MIN_SHARED = 32


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common at the beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # the first difference is in [low, high)
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass
class Kept:
    """One kept beginning. `tokens` is empty while the sequence is free."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    last_used: int = 0


class PrefixStore:
    """Beginnings kept in sequences of their own, the least recently used leaving first.

    Args:
        sequences: ids that belong to this store alone.
        max_tokens: the sum of all kept beginnings never exceeds this.
        copy: `copy(source, target, n)` makes an empty target begin with the first n tokens of source.
        clear: empties a sequence.
    """

    def __init__(
        self,
        sequences: Iterable[int],
        max_tokens: int,
        copy: Callable[[int, int, int], None],
        clear: Callable[[int], None],
    ) -> None:
        self._kept = [Kept(s) for s in sequences]
        self._max_tokens = max_tokens
        self._copy = copy
        self._clear = clear
        self._clock = 0

    @property
    def n_tokens(self) -> int:
        return sum(len(k.tokens) for k in self._kept)

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The kept sequence with the longest common beginning, and its length; (-1, 0) if none."""
        best, length = None, 0
        for kept in self._kept:
            n = common_length(kept.tokens, tokens)
            if n > length:
                best, length = kept, n
        if best is None:
            return -1, 0
        self._clock += 1
        best.last_used = self._clock
        return best.sequence, length

    def keep(self, source: int, tokens: Sequence[int]) -> None:
        """Keep `tokens`, with which `source` begins, unless that beginning is kept already."""
        n = len(tokens)
        if n < MIN_SHARED or n > self._max_tokens or not self._kept:
            return
        if any(common_length(k.tokens, tokens) >= n for k in self._kept):
            return
        by_age = sorted(self._kept, key=lambda k: (bool(k.tokens), k.last_used))
        # A kept beginning of this one is covered by it from now on.
        covered = [k for k in by_age if k.tokens and common_length(k.tokens, tokens) == len(k.tokens)]
        target = (covered or by_age)[0]
        self._drop(target)
        for kept in by_age:
            if self.n_tokens + n <= self._max_tokens:
                break
            self._drop(kept)
        self._clock += 1
        target.tokens, target.last_used = list(tokens), self._clock
        self._copy(source, target.sequence, n)

    def clear(self) -> None:
        """Give everything back."""
        for kept in self._kept:
            self._drop(kept)

    def _drop(self, kept: Kept) -> None:
        if kept.tokens:
            self._clear(kept.sequence)
            kept.tokens = []

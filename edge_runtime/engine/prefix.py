"""Prompts that many requests share: read once, kept, and copied to the slots that need them.

This module knows which beginnings are kept, within a limit of tokens. What the KV memory of a beginning
looks like is up to the caller: here it is bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A shorter beginning is quicker to read than to keep track of.
MIN_SHARED = 32

# What more conversations than this have sent, such as a system prompt, is nobody's own.
MAX_OWNERS = 16


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
    """A kept beginning: its tokens, and a sequence's state after exactly these.

    `owners` are the conversations that sent it. None: it is not theirs alone, and outlives them.
    """

    tokens: list[int]
    state: bytes
    last_used: int
    owners: set[str] | None

    def add_owner(self, conversation: str | None) -> None:
        if self.owners is not None and conversation is not None:
            self.owners.add(conversation)
        if conversation is None or len(self.owners or ()) > MAX_OWNERS:
            self.owners = None


class PrefixStore:
    """Beginnings that requests had in common, the least recently used leaving first.

    Args:
        max_tokens: the sum over all kept beginnings never exceeds this.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._kept: list[Kept] = []
        self._clock = 0

    @property
    def n_tokens(self) -> int:
        return sum(len(kept.tokens) for kept in self._kept)

    def find(self, tokens: Sequence[int]) -> tuple[Kept | None, int]:
        """The kept beginning that has most in common with `tokens`, and how much."""
        best, length = None, 0
        for kept in self._kept:
            n = common_length(kept.tokens, tokens)
            if n > length:
                best, length = kept, n
        return best, length

    def use(self, kept: Kept, conversation: str | None) -> None:
        """Note that a request has copied a kept beginning."""
        kept.last_used = self._tick()
        kept.add_owner(conversation)

    def wants(self, tokens: Sequence[int]) -> bool:
        """Whether `keep` would take them: long enough, within the limit, and not kept already."""
        n = len(tokens)
        return MIN_SHARED <= n <= self._max_tokens and self.find(tokens)[1] < n

    def keep(self, tokens: Sequence[int], state: bytes, conversations: Iterable[str | None]) -> None:
        """Keep a beginning that `wants` asked for; what it continues, and what is old, makes room.

        `conversations` are those that sent it; None for a request without one.
        """
        n = len(tokens)
        self._kept = [k for k in self._kept if common_length(k.tokens, tokens) < len(k.tokens)]
        self._kept.sort(key=lambda k: k.last_used)
        while self.n_tokens + n > self._max_tokens:
            self._kept.pop(0)
        new = Kept(list(tokens), state, self._tick(), set())
        for conversation in conversations:
            new.add_owner(conversation)
        self._kept.append(new)

    def forget(self, conversation: str) -> None:
        """Drop what only this conversation sent."""
        for kept in self._kept:
            if kept.owners is not None:
                kept.owners.discard(conversation)
        self._kept = [k for k in self._kept if k.owners is None or k.owners]

    def clear(self) -> None:
        """Give everything back."""
        self._kept.clear()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

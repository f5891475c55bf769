"""Notices that an answer goes round in circles. Knows token ids, and nothing of what they mean."""

from __future__ import annotations

import numpy as np

# A circle of more tokens than this is not looked for: it is left to the limit of tokens.
MAX_PERIOD = 128

# A circle counts once it has gone round so often ...
MIN_ROUNDS = 4

# ... and for so many tokens: the line under a table's head is a circle too, and a short one.
MIN_TOKENS = 64


class Repetition:
    """Looks for an end of the text that is one piece several times over, token by token the same.

    A circle of p tokens is noticed within max(MIN_TOKENS, MIN_ROUNDS * p) tokens of its beginning, so within
    512 at most. Circles whose rounds differ are not seen: a number that counts up may as well be the days of
    a dosing plan, which must not be cut. The limits of tokens end those.
    """

    def __init__(self) -> None:
        self._latest = np.full(MAX_PERIOD, -1, dtype=np.int64)  # newest first
        self._matches = np.zeros(MAX_PERIOD, dtype=np.int64)  # by period - 1: tokens that repeat it, in a row
        periods = np.arange(1, MAX_PERIOD + 1)
        self._enough = np.maximum(MIN_TOKENS, MIN_ROUNDS * periods) - periods

    def feed(self, token: int) -> bool:
        """Take the next token; True while the text ends in a circle."""
        self._matches = (self._matches + 1) * (self._latest == token)
        self._latest[1:] = self._latest[:-1]
        self._latest[0] = token
        return bool((self._matches >= self._enough).any())

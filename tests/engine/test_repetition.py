"""Circles are noticed within their bound, and nothing else is."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.repetition import MAX_PERIOD, MIN_ROUNDS, MIN_TOKENS, Repetition


def noticed(tokens: list[int]) -> list[bool]:
    repetition = Repetition()
    return [repetition.feed(token) for token in tokens]


def circles(tokens: list[int]) -> bool:
    """The rule, said in another way: the end is one piece several times over."""
    for period in range(1, min(MAX_PERIOD, len(tokens)) + 1):
        n = max(MIN_TOKENS, MIN_ROUNDS * period)
        end = tokens[-n:]
        if len(end) == n and all(end[i] == end[i - period] for i in range(period, n)):
            return True
    return False


@given(
    st.lists(st.integers(0, 200), max_size=300),
    st.lists(st.integers(0, 200), min_size=1, max_size=MAX_PERIOD),
)
def test_a_circle_is_noticed_within_its_bound(before: list[int], piece: list[int]) -> None:
    n = max(MIN_TOKENS, MIN_ROUNDS * len(piece))
    circle = (piece * n)[:n]
    assert noticed(before + circle)[-1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda p: p * 40), max_size=4))
def test_it_follows_the_rule_at_every_token(pieces: list[list[int]]) -> None:
    tokens = [token for piece in pieces for token in piece]
    assert noticed(tokens) == [circles(tokens[: i + 1]) for i in range(len(tokens))]


def test_lists_that_count_up_are_no_circles() -> None:
    words = [[1, 2, 3, 4, 5, 1000 + i, 6, 7] for i in range(200)]
    assert not any(noticed([token for line in words for token in line]))


def test_text_without_a_circle_is_left_alone() -> None:
    draw = random.Random(0)
    assert not any(noticed([draw.randrange(50) for _ in range(20_000)]))

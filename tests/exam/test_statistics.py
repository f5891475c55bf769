"""Intervals, tests and votes, against closed forms."""

from __future__ import annotations

from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.exam.statistics import Z_95, agrees, majority_share, mcnemar, vote, wilson

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_holds_the_shares_that_a_score_test_does_not_refuse(pair: tuple[int, int]) -> None:
    """Its ends are the roots p of |share - p| = z sqrt(p (1 - p) / n)."""
    k, n = pair
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        assert abs(k / n - end) == pytest.approx(Z_95 * sqrt(end * (1 - end) / n), abs=1e-7)


@given(counts)
def test_wilson_is_the_same_from_both_sides(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = wilson(k, n)
    assert (1 - high, 1 - low) == pytest.approx(wilson(n - k, n))


def test_wilson_of_known_cases() -> None:
    assert wilson(0, 0) == (0, 1)
    # None of ten: z^2 / (n + z^2).
    assert wilson(0, 10) == (0, pytest.approx(Z_95**2 / (10 + Z_95**2)))
    # Newcombe 1998, table I: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(15, 148) == (pytest.approx(0.0624, abs=1e-4), pytest.approx(0.1605, abs=1e-4))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_probability_and_has_no_side(b: int, c: int) -> None:
    p = mcnemar(b, c)
    assert 0 < p <= 1 and p == mcnemar(c, b)
    if b == c:
        assert p == 1
    if b + c:
        as_likely = [k for k in range(b + c + 1) if comb(b + c, k) <= comb(b + c, b)]
        assert p == pytest.approx(sum(comb(b + c, k) for k in as_likely) / 2 ** (b + c))


@given(st.integers(1, 1000))
def test_mcnemar_of_one_side_alone(n: int) -> None:
    assert mcnemar(0, n) == pytest.approx(min(1.0, 2 / 2**n))


@given(st.lists(st.sampled_from("ABC") | st.none()))
def test_votes_and_majorities(answers: list[str | None]) -> None:
    winner, given_ = vote(answers), [a for a in answers if a]
    assert (winner is None) == (not given_)
    if winner:
        assert given_.count(winner) == max(map(given_.count, given_))
    assert majority_share(given_) == (given_.count(winner) / len(given_) if winner else 0)
    assert agrees(answers) == bool(winner and given_.count(winner) == len(answers))


def test_among_equals_the_first_wins() -> None:
    assert vote(["B", "A", "A", "B"]) == "B"
    assert not agrees([None, None])

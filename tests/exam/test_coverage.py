"""Which statements an answer makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.exam.coverage import covered, words


@pytest.mark.parametrize(
    ("statement", "answer", "is_made"),
    [
        ("give oxygen", "First, GIVE high-flow oxygen.", True),
        ("give oxygen", "Give fluids. Oxygen is not needed.", False),
        ("oxygen give", "Give oxygen.", False),
        ("Ácido fólico", "acido folico, 5 mg", True),
        ("5 mg", "acido folico 5mg", True),
        ("0.5 mg", "Take 0,5 mg at night.", True),
        ("0.5 mg", "Take 5 mg at night.", False),
        ("beta-blocker", "Stop the beta blocker", True),
        ("oxygen", "oxygenation", False),
        ("补液", "首先应该补液，然后观察。", True),
        ("首先 补液", "首先应该补液。", True),
        ("补液 首先", "首先应该补液。", False),
        ("补液", "补充液体。", False),
        ("aspirin", "Do not give aspirin.", True),  # it counts words and understands none
        ("adrenaline", "", False),
    ],
)
def test_a_statement(statement: str, answer: str, is_made: bool) -> None:
    assert covered([(statement,)], answer) == [is_made]


def test_any_alternative_will_do() -> None:
    assert covered([("adrenaline", "epinephrine"), ("steroid",)], "Epinephrine 0.5 mg i.m.") == [True, False]


@given(st.lists(st.from_regex("[a-z]{1,8}", fullmatch=True), min_size=1, max_size=12), st.data())
def test_words_in_their_order_are_enough(said: list[str], data: st.DataObject) -> None:
    kept = [word for word in said if data.draw(st.booleans())] or said[:1]
    assert covered([(" ".join(kept),)], f"({', '.join(said)})!".upper()) == [True]


@given(st.text())
def test_a_text_covers_its_own_words(text: str) -> None:
    found = words(text)
    if found:
        assert covered([(" ".join(found),)], " ".join(found)) == [True]

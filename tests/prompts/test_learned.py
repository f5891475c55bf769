"""What the learned network adds, on texts that neither it nor the rules were made with."""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.prompts import learned, red_flags
from edge_runtime.prompts.router import TEMPLATES, Classified, classify

from .scoring import macro_f1, matrix

# Written by others than the rules and the texts that were learned, without a look at either, and used for
# nothing but these numbers.
ROWS = [
    json.loads(line) for line in Path(__file__).with_name("measured.jsonl").read_text("utf-8").splitlines()
]
SOME = [row for row in ROWS if row.get("flags")]
NONE = [row for row in ROWS if row.get("flags") == []]
ASKED = [row for row in ROWS if "template" in row]


@cache
def of(text: str) -> Classified:
    return classify(text)


def flagged(rows: list[dict[str, Any]]) -> float:
    return sum(bool(of(row["text"]).flags) for row in rows) / len(rows)


def kinds(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((row["template"], of(row["text"]).template) for row in rows)


def test_emergencies_are_found() -> None:
    rules = sum(bool(red_flags.find(row["text"])) for row in SOME) / len(SOME)
    named = sum(not set(of(row["text"]).red_flags).isdisjoint(row["flags"]) for row in SOME) / len(SOME)
    alarms = flagged(NONE)
    precision = flagged(SOME) * len(SOME) / (flagged(SOME) * len(SOME) + alarms * len(NONE))
    print(
        f"{len(SOME)} emergencies: found {flagged(SOME):.3f} (by rules {rules:.3f}), the right one "
        f"{named:.3f}; {len(NONE)} near misses: flagged {alarms:.3f}; precision {precision:.3f}"
    )
    assert len(SOME) >= 300
    assert len(NONE) >= 300
    assert flagged(SOME) >= 0.98
    assert named >= 0.9
    assert precision >= 0.83
    assert rules < flagged(SOME) - 0.1


@pytest.mark.parametrize("language", ["en", "es", "fr", "zh"])
def test_no_language_is_left_behind(language: str) -> None:
    def spoken(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if row["language"] == language]

    assert flagged(spoken(SOME)) >= 0.96
    assert flagged(spoken(NONE)) <= 0.25
    assert macro_f1(kinds(spoken(ASKED))) >= 0.85


def test_the_template_that_is_asked_for_is_found() -> None:
    audience = sum(of(row["text"]).audience == row["audience"] for row in ASKED) / len(ASKED)
    language = sum(of(row["text"]).language == row["language"] for row in ASKED) / len(ASKED)
    found = kinds(ASKED)
    print(f"{len(ASKED)} texts: macro-F1 {macro_f1(found):.3f}, audience {audience:.3f}")
    print(matrix(found, TEMPLATES))
    assert macro_f1(found) >= 0.9
    assert audience >= 0.95
    assert language >= 0.98


def test_calm_questions_are_seldom_flagged() -> None:
    calm = [row for row in ASKED if row["template"] in ("general", "prevention", "medication", "laboratory")]
    print(f"{flagged(calm):.3f} of {len(calm)}")
    assert flagged(calm) <= 0.12


@pytest.mark.parametrize("id", ["stroke", red_flags.UNCLEAR])
def test_what_may_be_an_emergency_is_told_with_an_if(id: str) -> None:
    told = red_flags.notice((red_flags.RedFlag(id, (), certain=False),), "en")
    assert told.startswith("If this is happening now")
    assert "stroke" not in told


def test_thoughts_of_suicide_are_never_answered_with_an_if() -> None:
    possible = red_flags.RedFlag("suicidal_intent", (), certain=False)
    assert red_flags.notice((possible,), "fr") == red_flags.notice(
        (red_flags.RedFlag("suicidal_intent", ()),), "fr"
    )


@pytest.mark.parametrize("text", ["fever", "pain " * 100, "Headache?", "fièvre", "fiebre", "发烧", "头疼"])
def test_one_word_is_no_emergency(text: str) -> None:
    assert of(text).flags == ()


def test_its_words_are_words_of_the_text() -> None:
    for row in ROWS[::5]:
        reading = learned.network().read(row["text"])
        words = reading.words(reading.net.labels[0], 5)
        assert len(words) <= 5
        assert set(words) <= set(learned.tokens(row["text"]))


@given(st.text(max_size=400))
def test_any_text_can_be_read(text: str) -> None:
    reading = learned.network().read(text, ["rule", "no such hint"])
    assert all(-1e4 < score < 1e4 for score in reading.scores.values())


def test_the_words_that_were_taken_away_were_those_that_decided() -> None:
    text = "My dad slurs his words and his left arm hangs down since breakfast"
    reading = learned.network().read(text)
    words = reading.words("flag:stroke")
    assert words
    less = " ".join(word for word in text.split() if word not in words)
    assert learned.network().read(less).scores["flag:stroke"] < reading.scores["flag:stroke"]


def test_it_is_fast_and_soon_ready() -> None:
    def seconds(text: str) -> float:
        start = time.thread_time()
        learned.network().read(text)
        return time.thread_time() - start

    text = " ".join((ROWS[0]["text"] + " ").split() * 20)[:600]
    assert min(seconds(text) for _ in range(200)) < 0.002
    start = time.thread_time()
    learned.Network(learned.FILE)
    assert time.thread_time() - start < 0.5

"""What a question asks for: labelled texts in four languages, then rules that hold for any text.

Of `router.jsonl`, `tune` was looked at while the words were chosen. `test` was written before any of them;
its errors have been seen; the network has learned from both. `unseen` was written after most.
"""

from __future__ import annotations

import json
import random
import sys
import time
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.prompts import red_flags, template
from edge_runtime.prompts.router import FILE, LANGUAGES, TEMPLATES, Classified, _Router, classify

from .scoring import macro_f1, matrix

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = tomllib.loads(FILE.read_text("utf-8"))
DATA = Path(__file__).parents[3] / "shared" / "data"  # rows that may be measured but not kept here
MATERIAL = {"exam", "evidence", "summary"}


class Row(NamedTuple):
    text: str
    language: str
    template: str
    audience: str
    split: str


LINES = Path(__file__).with_name("router.jsonl").read_text("utf-8").splitlines()
ROWS = [Row(**json.loads(line)) for line in LINES]


@cache
def of(text: str) -> Classified:
    return classify(text)


def rows(split: str) -> list[Row]:
    return [row for row in ROWS if row.split == split]


# The labelled texts.


@pytest.mark.parametrize("split", ["tune", "test", "unseen"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_template_is_asked_for_in_each_language(split: str, language: str) -> None:
    assert {row.template for row in rows(split) if row.language == language} == set(TEMPLATES)
    assert len({row.text for row in ROWS}) == len(ROWS)
    assert len(rows("test")) >= 240


# `test` shares author and manner with `tune`, so it flatters. `unseen` has fewer of the usual words; the
# network has not learned from it. See test_learned for what to expect of new texts.
@pytest.mark.parametrize(("split", "least"), [("tune", 0.95), ("test", 0.95), ("unseen", 0.84)])
def test_the_template_is_found(split: str, least: float) -> None:
    pairs = Counter((row.template, of(row.text).template) for row in rows(split))
    macro = macro_f1(pairs)
    print(f"{split}: {len(rows(split))} texts, macro-F1 {macro:.3f}\n{matrix(pairs, TEMPLATES)}")
    assert macro >= least


@pytest.mark.parametrize("split", ["tune", "test", "unseen"])
def test_language_and_audience_are_found(split: str) -> None:
    n = len(rows(split))
    language = sum(of(row.text).language == row.language for row in rows(split)) / n
    audience = sum(of(row.text).audience == row.audience for row in rows(split)) / n
    print(f"{split}: language {language:.3f}, audience {audience:.3f}")
    assert language >= 0.99
    assert audience >= 0.93


def test_what_is_surer_is_more_often_right() -> None:
    sure = [of(r.text).template == r.template for r in rows("unseen") if of(r.text).confidence >= 0.8]
    rest = [of(r.text).template == r.template for r in rows("unseen") if of(r.text).confidence < 0.8]
    print(f"unseen: {sum(sure)} of {len(sure)} right from 0.8 on, {sum(rest)} of {len(rest)} below")
    assert sum(sure) / len(sure) > 0.9 > sum(rest) / len(rest)


def measured(name: str, kind: str, n: int) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: rows of public data sets that the repository does not hold")
    found = [
        row for row in map(json.loads, path.open(encoding="utf-8")) if kind in ("", row.get("question_type"))
    ]
    return random.Random(1).sample(found, min(n, len(found)))


@pytest.mark.parametrize(
    ("kind", "right", "least"),
    [
        ("treatment", "treatment", 0.95),
        ("prevention", "prevention", 0.95),
        ("exams and tests", "laboratory", 0.9),
        ("symptoms", "general", 0.9),
        ("inheritance", "general", 0.9),
    ],
)
def test_questions_of_medquad(kind: str, right: str, least: float) -> None:
    asked = measured("qa_medquad_train.jsonl", kind, 100)
    assert sum(of(row["question"]).template == right for row in asked) >= least * len(asked)


@pytest.mark.parametrize("form", ["\n{}. {}", "\n{}) {}", " ({}) {}", "\n{} {}"])
@pytest.mark.parametrize("name", ["medqa", "medmcqa", "casimedicos-es", "frenchmedmcqa", "cmb"])
def test_questions_of_examinations(name: str, form: str) -> None:
    asked = measured(f"mcq_{name}_train.jsonl", "", 40)
    texts = [row["question"] + "".join(form.format(*o) for o in row["options"].items()) for row in asked]
    assert sum(classify(text).template == "exam" for text in texts) >= 0.9 * len(texts)


def test_questions_with_an_abstract() -> None:
    asked = measured("mcq_pubmedqa_train.jsonl", "", 100)
    found = [classify(f"{row['question']}\n{row['context']}").template for row in asked]
    assert found.count("evidence") >= 0.75 * len(asked)


# Emergencies.


@pytest.mark.parametrize(
    "row", [row for row in ROWS if red_flags.find(row.text)], ids=lambda row: row.text[:40]
)
def test_red_flags_make_an_emergency_of_all_but_material(row: Row) -> None:
    found = of(row.text)
    assert found.red_flags == tuple(flag.id for flag in red_flags.find(row.text))
    assert found.template == (row.template if row.template in MATERIAL else "emergency")


@pytest.mark.parametrize(
    "text",
    [
        "what do I do? 1) my dad has crushing chest pain 2) he is sweating 3) his arm hurts 4) he is grey",
        "Summarise this: my wife has slurred speech and her face droops on one side",
        "according to the study, my son having a seizure for ten minutes now is dangerous?",
    ],
)
def test_what_happens_to_a_patient_now_is_not_material(text: str) -> None:
    assert of(text).red_flags
    assert of(text).template == "emergency"


# Any text.

HOSTILE = {
    "nothing": "",
    "spaces": " \n\t ",
    "emoji": "😷🩺💊🤒",
    "control characters": "\x00\x1b[31m\x7f\u202e\u200f",
    "lone surrogate": "\ud800",
    "right to left": "ما هي أعراض السكري؟",
    "marks": "\u0301\u0316" * 3000,
    "digits": "12345678901234567890 " * 50,
    "signs": "?!.,;:()[]" * 500,
    "one letter": "x" * 10_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_text_that_says_nothing_is_general(text: str) -> None:
    found = classify(text)
    assert (found.template, found.language, found.red_flags) == ("general", None, ())
    assert found.confidence < 0.3


TERMS = [
    (group, name, language, term)
    for group in ("terms", "voice")
    for name, languages in TABLE[group].items()
    for language, weights in languages.items()
    for terms in weights.values()
    for term in terms
]
PIECES = [term.strip("*") for *_, term in TERMS] + [word for row in ROWS for word in row.text.split()]


@settings(max_examples=200)
@given(st.text(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join))
def test_any_text_gets_an_answer_in_its_own_words(text: str) -> None:
    found = classify(text)
    assert found == classify(text)
    assert found.template in TEMPLATES
    assert found.language in (None, *LANGUAGES)
    assert found.audience in ("clinician", "patient")
    assert 0 <= found.confidence <= 1
    assert all(word in unicodedata.normalize("NFC", text) for word in found.why)
    assert not any(flag.certain for flag in found.flags) or found.template in {"emergency", *MATERIAL}
    assert list(found.as_json()) == ["template", "language", "audience", "confidence", "why", "red_flags"]


def test_all_words_at_once_are_no_error() -> None:
    # Over 8,000 characters only the ends would be read.
    for i in range(0, len(PIECES), 800):
        assert 0 <= classify(" ".join(PIECES[i : i + 800])[:8000]).confidence <= 1


def test_of_a_long_text_both_ends_are_read() -> None:
    filler = "y " * 500_000
    assert classify(f"what is the dose of amoxicillin? {filler}").template == "medication"
    assert classify(f"{filler} what is the dose of amoxicillin?").template == "medication"
    assert classify(f"{filler} my father has crushing chest pain").template == "emergency"


@pytest.mark.parametrize("form", ["NFD", "NFC"])
def test_how_letters_are_stored_does_not_matter(form: Literal["NFC", "NFD"]) -> None:
    for row in ROWS:
        other = classify(unicodedata.normalize(form, row.text))
        assert (other.template, other.language) == (of(row.text).template, of(row.text).language)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("阿莫西林的劑量是多少？", "medication"),
        ("無痛性黃疸的鑑別診斷", "differential"),
        ("請總結這份病歷", "summary"),
        ("老年高血壓如何治療？", "treatment"),
        ("子宮頸癌篩檢和疫苗接種", "prevention"),
        ("我媽媽的腳腫，要緊嗎", "patient"),
    ],
)
def test_traditional_characters_are_read(text: str, right: str) -> None:
    assert (of(text).template, of(text).language) == (right, "zh")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("amoxicilin dosege for a toddler", "medication"),
        ("flu vaccinaton for nurses", "prevention"),
        ("interpretaton of thyroid values", "laboratory"),
        ("diferential diagnossis of ankle swelling", "differential"),
        ("tratameinto de la gastritis", "treatment"),
        ("prevencón del tétanos", "prevention"),
        ("traitment de la sinusite", "treatment"),
    ],
)
def test_words_may_be_misspelt(text: str, right: str) -> None:
    assert of(text).template == right


@pytest.mark.parametrize(
    "text",
    [
        "Was sind die Nebenwirkungen von Metformin bei älteren Patienten?",
        "Quali sono gli effetti collaterali della metformina negli anziani?",
        "Quais são os efeitos colaterais da metformina em idosos?",
        "Wat zijn de bijwerkingen van metformine bij ouderen?",
        "Каковы побочные эффекты метформина?",
        "糖尿病の治療について教えてください",
        "당뇨병 치료는 어떻게 하나요?",
        "मधुमेह का इलाज क्या है?",
    ],
)
def test_other_languages_are_not_taken_for_one_of_ours(text: str) -> None:
    assert of(text).language is None


# The words themselves.


def test_the_templates_are_those_that_there_are() -> None:
    assert set(TEMPLATES) == set(template.load())
    assert set(TABLE["terms"]) == set(TEMPLATES) - {"patient"}
    assert set(TABLE["voice"]) == {"patient", "clinician"}
    assert {name for form in TABLE["form"] for name in form["weights"]} <= {*TEMPLATES, "clinician"}


def test_no_term_is_written_twice() -> None:
    assert [term for term, n in Counter(TERMS).items() if n > 1] == []


# Time.


def seconds(text: str) -> float:
    start = time.thread_time()
    classify(text)
    return time.thread_time() - start


def test_a_hundred_words_take_milliseconds() -> None:
    text = " ".join(
        (
            "The patient is a woman of 62 with type 2 diabetes who takes metformin; her creatinine rose to "
            "1.9 mg/dl over two months, she feels tired and her ankles swell in the evening. " * 5
        ).split()[:100]
    )
    classify(text)
    # The fastest run: other programs on the same cores must not fail the test.
    fastest = min(seconds(text) for _ in range(500))
    print(f"{1000 * fastest:.2f} ms")
    assert fastest < 0.004  # 1.7 to 2 ms, half of it for red flags, with a training on the same cores


def test_a_megabyte_takes_no_longer_than_its_ends() -> None:
    assert min(seconds("what is the dose of metformin in renal failure? " * 20_000) for _ in range(3)) < 0.3


def test_it_is_ready_soon() -> None:
    def load() -> float:
        start = time.thread_time()
        _Router(tomllib.loads(FILE.read_text("utf-8")))
        return time.thread_time() - start

    fastest = min(load() for _ in range(5))
    print(f"{1000 * fastest:.0f} ms")
    assert fastest < 0.2

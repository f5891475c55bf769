"""Files of questions: what is read from them, and what is refused, with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import InvalidSetting, NotFound
from edge_runtime.exam.exam import Exam, check, written
from edge_runtime.exam.rows import Row, read
from edge_runtime.prompts import template
from edge_runtime.prompts.thinking import Family

GOOD: dict[str, Any] = {
    "id": "1", "question": "Which?", "options": {"A": "this", "B": "that"}, "answer": "B", "source": "x",
}  # fmt: skip


def file(folder: Path, *lines: object, name: str = "q.jsonl") -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / name).write_bytes(b"\n".join(texts))
    return folder / name


def test_what_a_row_says(tmp_path: Path) -> None:
    statements = {"id": "2", "question": "And?", "must_have": ["fluid", ["adrenaline", "epinephrine"]]}
    path = file(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD | {"topic": "t"}).encode(), b"", statements)
    (found,) = read([path])
    first, second = found.rows
    assert first == Row("1", "Which?", options={"A": "this", "B": "that"}, answer="B", subject="t")
    assert second.must_have == (("fluid",), ("adrenaline", "epinephrine")) and second.answer == ""
    (less,) = read([path], limit=1)
    assert less.rows == (first,) and less.sha256 == found.sha256 and found.name == "q.jsonl"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]", "no object"),
        (b'"a"', "no object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (GOOD | {"id": None}, "id is missing"),
        (GOOD | {"id": " "}, "id is empty"),
        (GOOD | {"id": 7}, "id is 7, which is no text"),
        (GOOD | {"question": None}, "question is missing"),
        (GOOD | {"question": "\n"}, "question is empty"),
        (GOOD | {"question": "\ud800"}, "half a character"),
        (GOOD | {"answer": None}, "answer is missing"),
        (GOOD | {"answer": "C"}, "'C' is none of the options A, B"),
        (GOOD | {"answer": "that"}, "none of the options"),
        (GOOD | {"options": {}}, "two or more choices"),
        (GOOD | {"options": {"A": "one"}, "answer": "A"}, "two or more choices"),
        (GOOD | {"options": ["this", "that"]}, "two or more choices"),
        (GOOD | {"options": {"A": "this", "1": "that"}}, "'1' is named by no letter"),
        (GOOD | {"options": {"A": "this", "B": ""}}, "option B is empty"),
        (GOOD | {"options": {"A": "this", "B": 2}}, "option B is 2"),
        (GOOD | {"must_have": ["x"]}, "do not go together"),
        ({"id": "1", "question": "?", "must_have": []}, "no list of statements"),
        ({"id": "1", "question": "?", "must_have": "x"}, "no list of statements"),
        ({"id": "1", "question": "?", "must_have": ["x", "!"]}, "has no words"),
        ({"id": "1", "question": "?", "must_have": [[]]}, "has no words"),
        ({"id": "1", "question": "?", "must_have": [3]}, "is 3, which is no text"),
        (GOOD, "the id '1' is also that of"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_line(line: object, said: str, tmp_path: Path) -> None:
    path = file(tmp_path, GOOD if said.startswith("the id") else GOOD | {"id": "other"}, line)
    with pytest.raises(InvalidSetting) as caught:
        read([path], limit=1)
    assert str(caught.value).startswith(f"{path}, line 2: ") and said in str(caught.value)
    assert str(caught.value)[-1] == "." and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none.jsonl", "cannot be read"),
        (tmp_path, "is no file"),
        (file(tmp_path, b"\n\n"), "holds no questions"),
    ):
        with pytest.raises(InvalidSetting, match=said):
            read([path])
    path = file(tmp_path, GOOD)
    with pytest.raises(InvalidSetting, match="also that of"):
        read([path, file(tmp_path, GOOD, name="r.jsonl")])


def test_rows_that_only_the_other_way_can_ask(tmp_path: Path) -> None:
    templates = template.load()
    text = file(tmp_path, {"id": "t", "question": "?", "answer": "long"})
    with pytest.raises(InvalidSetting, match="neither options nor must_have"):
        check(Exam(tuple(read([text])), "generate"), templates)
    check(Exam(tuple(read([text]))), {})
    statements = file(tmp_path, {"id": "s", "question": "?", "must_have": ["x"]})
    with pytest.raises(InvalidSetting, match="no answer whose likelihood"):
        check(Exam(tuple(read([statements]))), {})
    options = tuple(read([file(tmp_path, GOOD)]))
    with pytest.raises(NotFound, match="Did you mean exam"):
        check(Exam(options, "generate", "exams"), templates)
    own = templates["evidence"].model_copy(update={"id": "own"})
    with pytest.raises(InvalidSetting, match="no place for options"):
        check(Exam(options, "generate", "own"), {**templates, "own": own})


@pytest.mark.parametrize("language", ["en", "es", "fr", "zh", "it"])
def test_prompts_of_multiple_choice(language: str) -> None:
    templates = template.load()
    row = Row("1", "Which?", language, "An abstract.", options={"A": "this", "B": "that"}, answer="A")
    exam = Exam((), "generate", seed=5, temperature=0.0)
    asked = written(row, exam, 2, templates, "m", Family())
    spoken = language if language != "it" else "en"
    assert asked.messages[0]["content"] == templates["exam"].system(spoken)
    user = asked.messages[-1]["content"]
    assert "An abstract." in user and "A. this\nB. that" in user
    assert (
        asked.request.grammar and asked.request.sampling.seed == 7 and asked.request.sampling.temperature == 0
    )
    budget = templates["exam"].budget
    assert asked.request.max_tokens == asked.answer_tokens == budget.max_answer_tokens
    thinker = written(row, exam, 2, templates, "m", Family(thinks=True, sampling={"top_k": 3}))
    assert thinker.request.max_tokens == budget.max_answer_tokens + budget.max_thinking_tokens
    assert thinker.request.sampling.top_k == 3 and thinker.max_thoughts == budget.max_thinking_tokens
    plain = written(row, Exam((), "generate", "none", max_tokens=9), 0, {}, "m", Family())
    (message,) = plain.messages
    assert message["content"].startswith("An abstract.\n\nWhich?\n\nA. this\nB. that\n\n")
    assert plain.request.grammar is None and plain.request.max_tokens == 9


def test_free_text_takes_the_template_that_fits() -> None:
    templates = template.load()
    row = Row("1", "What is the dose of amoxicillin for a child of 12 kg?", must_have=(("mg",),))
    asked = written(row, Exam((), "generate"), 0, templates, "m", Family())
    assert asked.messages[0]["content"] == templates["medication"].system("en") and not asked.request.grammar

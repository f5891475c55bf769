"""Figures by hand: groups, samples, rows too long, and two models side by side."""

from __future__ import annotations

from typing import Any

import pytest

from edge_runtime.errors import InvalidSetting
from edge_runtime.exam import results, summary, tables
from edge_runtime.exam.exam import Exam
from edge_runtime.exam.rows import QuestionFile, Row
from edge_runtime.exam.statistics import wilson
from edge_runtime.tables import markdown_table, rich_table

OPTIONS = {"A": "x", "B": "y", "C": "z", "D": "u"}


def question(name: str, answer: str = "A", subject: str = "") -> Row:
    return Row(name, "?", options=OPTIONS, answer=answer, subject=subject)


def answered(row: Row, predicted: str | None, sample: int = 0, **more: Any) -> dict[str, Any]:
    cost = {"n_prompt": 10, "n_generated": 2, "seconds": 0.5}
    given = {"predicted": predicted, "right": predicted == row.answer}
    return {"id": row.id, "sample": sample, "end": "stop", **cost, **given, **more}


def sat(exam: Exam, *lines: dict[str, Any], name: str = "m") -> tuple[results.Header, dict[results.Key, Any]]:
    files = [{"name": f.name, "sha256": f.sha256, "n": len(f.rows)} for f in exam.files]
    header = results.header({"name": name, "sha256": "0"}, files, exam.settings)
    return header, {(line["id"], line["sample"]): line for line in lines}


def test_a_file_and_its_subjects() -> None:
    rows = [question(f"{i}", "AAB"[i % 3], f"s{i % 2}") for i in range(12)]
    rows += [question(f"o{i}", "B", f"rare{i}") for i in range(3)]
    exam = Exam((QuestionFile("f", "1", tuple(rows)),), "generate")
    lines = [answered(row, "A" if i else None) for i, row in enumerate(rows)]
    lines[-1] = {"id": rows[-1].id, "sample": 0, "end": "too_long"}
    report = summary.report(exam, *sat(exam, *lines))
    whole, *subjects = report["multiple_choice"]
    n_right = sum(line.get("right", False) for line in lines)
    assert (whole["n"], whole["n_too_long"], whole["n_unanswered"], whole["n_cut"]) == (14, 1, 1, 0)
    assert whole["accuracy"] == n_right / 14 and whole["accuracy_interval"] == wilson(n_right, 14)
    assert whole["majority"] == 8 / 14 and whole["chance"] == 0.25
    assert (whole["n_prompt_mean"], whole["seconds_mean"]) == (10, 0.5)
    assert [s["subject"] for s in subjects] == ["s0", "s1", "other"]
    assert sum(s["n"] for s in subjects) == 14 and report["too_long"] == ["o2"]
    assert report["free_text"] == []


def test_beyond_ten_subjects_the_rest_is_one() -> None:
    rows = [question(f"{s}.{i}", subject=f"s{s}") for s in range(15) for i in range(2 + (s == 14))]
    exam = Exam((QuestionFile("f", "1", tuple(rows)),), "generate")
    report = summary.report(exam, *sat(exam, *(answered(row, "A") for row in rows)))
    names = [g["subject"] for g in report["multiple_choice"]]
    assert names[:2] == [None, "s14"] and names[-1] == "other" and len(names) == 12
    assert report["multiple_choice"][-1]["n"] == 10


def test_samples() -> None:
    rows = (question("1"), question("2"), question("3"))
    exam = Exam((QuestionFile("f", "1", rows),), "generate", samples=3)
    given = {"1": "AAA", "2": "ABA", "3": "BBA"}
    lines = [answered(row, given[row.id][s], s) for row in rows for s in range(3)]
    (whole,) = summary.report(exam, *sat(exam, *lines))["multiple_choice"]
    assert whole["n"] == 3 and whole["accuracy"] == pytest.approx(6 / 9)
    assert whole["accuracy_interval"] == pytest.approx(wilson(2, 3))
    assert whole["consistency"] == pytest.approx(1 / 3) and whole["vote_accuracy"] == pytest.approx(2 / 3)


def test_free_text_of_two_files() -> None:
    texts = [Row(f"{i}", "?", answer="text") for i in range(2)]
    exam = Exam(tuple(QuestionFile(f"f{i}", f"{i}", (row,)) for i, row in enumerate(texts)))
    cost = {"sample": 0, "end": "scored", "n_prompt": 4, "n_generated": 0, "seconds": 1.0}
    lines = [
        {"id": "0", "nats": -2.0, "n_answer": 2, **cost},
        {"id": "1", "nats": -9.0, "n_answer": 3, **cost},
    ]
    report = summary.report(exam, *sat(exam, *lines))
    assert [g["nats_per_token"] for g in report["free_text"]] == [1, 3, pytest.approx(11 / 5)]
    assert report["free_text"][-1]["file"] == "all"
    covered = Exam((QuestionFile("c", "1", (Row("c", "?", must_have=(("a",), ("b",))),)),), "generate")
    told = summary.report(covered, *sat(covered, {"id": "c", "covered": [True, False], **cost}))
    assert told["free_text"][0]["covered"] == 0.5


def test_two_models() -> None:
    rows = tuple(question(f"{i}") for i in range(20))
    exam = Exam((QuestionFile("f", "1", rows),), "generate")
    mine = sat(exam, *(answered(row, "A" if i < 15 else "B") for i, row in enumerate(rows)))
    theirs = sat(exam, *(answered(row, "A" if i < 6 else None) for i, row in enumerate(rows[:18])), name="n")
    found = summary.against(mine, theirs)
    (measure,) = found["measures"]
    counts = [measure[name] for name in ("n", "both", "only_this", "only_other", "neither")]
    assert counts == [18, 6, 9, 0, 3] and measure["p"] == pytest.approx(2 / 2**9)
    other_way = summary.against(theirs, mine)["measures"][0]
    assert (other_way["only_this"], other_way["only_other"], other_way["p"]) == (0, 9, measure["p"])
    same = summary.against(mine, mine)["measures"][0]
    assert same["p"] == 1 and same["only_this"] == same["only_other"] == 0


def test_models_that_were_asked_other_questions() -> None:
    exams = [Exam((QuestionFile("f", sha, (question("1"),)),), "generate") for sha in ("1", "2")]
    mine, theirs = (sat(exam, answered(question("1"), "A")) for exam in exams)
    with pytest.raises(InvalidSetting, match="no question of multiple choice in common"):
        summary.against(mine, theirs)


def test_tables_hold_what_was_found() -> None:
    rows = (question("1", subject="a|b"), question("2", subject="a|b"), question("3"), question("4"))
    exam = Exam((QuestionFile("f[red].jsonl", "1", rows),), "generate", samples=2)
    ran = sat(exam, *(answered(row, "A", s) for row in rows for s in (0, 1)))
    report = summary.report(exam, *ran) | {"against": summary.against(ran, ran)}
    made = tables.tables(report)
    assert len(made) == 2 and all(len(row) == len(m.columns) for m in made for row in m.rows)
    text = markdown_table(made[0])
    assert "| f[red].jsonl | 4 | 100.0 (51.0-100.0) | 0 | 0 | 100.0 | 100.0 |" in text
    assert "m / m" in markdown_table(made[1]) and rich_table(made[0]).row_count == len(made[0].rows)

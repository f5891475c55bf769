"""What the answers of an examination come to: figures by file and subject, and two models side by side.

Knows neither how rows were asked nor how figures are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import InvalidSetting
from .exam import Exam
from .results import TOO_LONG, Header, Key, Line
from .rows import QuestionFile, Row
from .statistics import agrees, majority_share, mcnemar, vote, wilson

Figures = dict[str, Any]
# Rows with their answers, one a sample.
Answered: TypeAlias = Sequence[tuple[Row, Sequence[Line]]]

# Subjects of a file beyond the largest ones are put together.
MAX_SUBJECTS = 10
OTHER = "other"
ALL = "all"

# What is right or wrong of a line, and the answer that it is about.
MEASURES = {"accuracy": ("right", "predicted"), "accuracy_per_byte": ("right_per_byte", "predicted_per_byte")}


def report(exam: Exam, header: Header, lines: Mapping[Key, Line]) -> Figures:
    """All figures of a run.

    `multiple_choice` and `free_text` hold one entry a file, one a subject where it has several, and one for
    all files where there are several. Rows too long for a slot are counted in `n_too_long` and nowhere else.
    """
    found: Figures = {"model": header["model"], "files": header["files"], "settings": header["settings"]}
    found |= {"multiple_choice": [], "free_text": []}
    kinds: tuple[tuple[str, Callable[[Answered], Figures]], ...]
    kinds = (("multiple_choice", _choice), ("free_text", _free))
    for kind, figures in kinds:
        for file, subject, rows in _groups(exam.files, kind == "multiple_choice"):
            asked = [(row, answers) for row in rows if (answers := _answers(row, lines))]
            answered = [(row, answers) for row, answers in asked if answers[0]["end"] != TOO_LONG]
            counts = {"n": len(answered), "n_too_long": len(asked) - len(answered)}
            who = {"file": file, "subject": subject}
            found[kind].append(who | counts | _cost(answered) | figures(answered))
    found[TOO_LONG] = [
        line["id"] for line in lines.values() if line["end"] == TOO_LONG and not line["sample"]
    ]
    return found


def _groups(files: Sequence[QuestionFile], choice: bool) -> Iterator[tuple[str, str | None, list[Row]]]:
    """Name of the file, subject or None, and rows of one kind."""
    everything: list[Row] = []
    n_files = 0
    for file in files:
        rows = [row for row in file.rows if bool(row.options) == choice]
        if not rows:
            continue
        everything += rows
        n_files += 1
        yield file.name, None, rows
        subjects = Counter(row.subject for row in rows if row.subject)
        largest = [name for name, n in subjects.most_common(MAX_SUBJECTS) if n > 1]
        for name in largest if len(largest) > 1 else ():
            yield file.name, name, [row for row in rows if row.subject == name]
        rest = [row for row in rows if row.subject not in largest]
        if rest and len(largest) > 1:
            yield file.name, OTHER, rest
    if n_files > 1:
        yield ALL, None, everything


def _answers(row: Row, lines: Mapping[Key, Line]) -> list[Line]:
    """A row's lines in the order of samples."""
    found: list[Line] = []
    while line := lines.get((row.id, len(found))):
        found.append(line)
    return found


def _cost(answered: Answered) -> Figures:
    """Means of an answer: tokens, and the seconds that it held a slot, others beside it."""
    lines = [line for _, own in answered for line in own]
    return {
        f"{name}_mean": sum(line[name] for line in lines) / len(lines) if lines else None
        for name in ("n_prompt", "n_generated", "seconds")
    }


def _choice(answered: Answered) -> Figures:
    """Accuracies with Wilson's interval. Over several samples a question counts with its mean."""
    lines = [line for _, own in answered for line in own]
    n = len(answered)
    figures: Figures = {}
    for measure, (right, _) in MEASURES.items():
        if not lines or right not in lines[0]:
            continue
        n_right = sum(sum(line[right] for line in own) / len(own) for _, own in answered)
        figures |= {measure: n_right / n, f"{measure}_interval": wilson(n_right, n)}
    figures |= {
        "majority": majority_share([row.answer for row, _ in answered]),
        "chance": sum(1 / len(row.options) for row, _ in answered) / n if n else None,
        "n_unanswered": sum(line["predicted"] is None for line in lines),
        "n_cut": _n_cut(lines),
    }
    if any(len(own) > 1 for _, own in answered):
        given = [(row, [line["predicted"] for line in own]) for row, own in answered]
        figures["consistency"] = sum(agrees(answers) for _, answers in given) / n
        figures["vote_accuracy"] = sum(vote(answers) == row.answer for row, answers in given) / n
    return figures


def _free(answered: Answered) -> Figures:
    lines = [line for _, own in answered for line in own]
    n_answer = sum(line.get("n_answer", 0) for line in lines)
    if n_answer:
        return {
            "nats_per_token": -sum(line["nats"] for line in lines) / n_answer,
            "n_answer_tokens": n_answer,
        }
    made = [statement for line in lines for statement in line.get("covered", ())]
    if made:
        return {"covered": sum(made) / len(made), "n_statements": len(made), "n_cut": _n_cut(lines)}
    return {}


def _n_cut(lines: Sequence[Line]) -> int:
    return sum(line["end"] == "length" for line in lines)


def against(mine: tuple[Header, Mapping[Key, Line]], other: tuple[Header, Mapping[Key, Line]]) -> Figures:
    """Two models on the same questions of multiple choice, by McNemar's exact test.

    Over several samples a model's answer is what most of its samples say.

    Raises:
        InvalidSetting: they have no question in common.
    """
    files = [{f["sha256"] for f in header["files"]} for header, _ in (mine, other)]
    votes = [_votes(lines) for _, lines in (mine, other)]
    found: Figures = {"model": other[0]["model"], "settings": other[0]["settings"], "measures": []}
    for measure in MEASURES:
        first, second = (own.get(measure, {}) for own in votes)
        shared = first.keys() & second.keys() if files[0] & files[1] else ()
        if shared:
            pairs = Counter((first[key], second[key]) for key in shared)
            found["measures"].append({
                "measure": measure,
                "n": len(shared),
                "both": pairs[True, True],
                "only_this": pairs[True, False],
                "only_other": pairs[False, True],
                "neither": pairs[False, False],
                "p": mcnemar(pairs[True, False], pairs[False, True]),
            })  # fmt: skip
    if not found["measures"]:
        raise InvalidSetting(
            f"The results of {other[0]['model']['name']} have no question of multiple choice in common with "
            "these. Compare runs over the same files."
        )
    return found


def _votes(lines: Mapping[Key, Line]) -> dict[str, dict[str, bool]]:
    """By measure, for each question whether the voted answer is right."""
    by_id: dict[str, list[Line]] = {}
    for (row_id, _), line in sorted(lines.items()):
        if "predicted" in line:
            by_id.setdefault(row_id, []).append(line)
    found: dict[str, dict[str, bool]] = {}
    for row_id, own in by_id.items():
        for measure, (right, predicted) in MEASURES.items():
            if right in own[0]:
                voted = vote([line[predicted] for line in own])
                is_right = any(line[right] for line in own if line[predicted] == voted)
                found.setdefault(measure, {})[row_id] = is_right
    return found

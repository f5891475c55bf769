"""Calibration and evaluation text: rows with question and answer, or plain text.

Reads; never changes what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidText


@dataclass(frozen=True)
class Row:
    """A question with its answer, or a piece of plain text as the answer of no question.

    Attributes:
        options: choices by letter, for multiple choice; `answer` is then the letter.
    """

    question: str
    answer: str
    options: dict[str, str]
    context: str = ""

    @property
    def prompt(self) -> str:
        return f"{self.context}\n\n{self.question}".strip()

    @property
    def text(self) -> str:
        """Question and answer as one text."""
        answer = self.options.get(self.answer, self.answer)
        return f"{self.prompt}\n\n{answer}".strip()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, or of all .jsonl and .txt files of a folder.

    A .jsonl file has one JSON object a line, with `question` and `answer`, and `options` for multiple choice;
    anything else is plain text, a row a paragraph.

    Raises:
        InvalidText: nothing to read, or a line that is no such object; named with its number.
    """
    files = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".txt")) if path.is_dir() else [path]
    rows = [row for file in files for row in _rows_of(file)]
    if not rows:
        raise InvalidText(f"{path} has no rows; give a .jsonl file with question and answer, or plain text.")
    return rows


def _rows_of(file: Path) -> Iterator[Row]:
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise InvalidText(f"{file} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidText(f"{file} cannot be read as UTF-8 text ({error}).") from None
    if file.suffix != ".jsonl":
        for paragraph in text.split("\n\n"):
            if paragraph.strip():
                yield Row("", paragraph.strip(), {})
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _row(file, number, line)


def _row(file: Path, number: int, line: str) -> Row:
    where = f"{file}, line {number}"
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise InvalidText(f"{where} is not JSON ({error}).") from None
    if not isinstance(value, dict) or not all(isinstance(value.get(k), str) for k in ("question", "answer")):
        raise InvalidText(f"{where} has no text under question and answer.")
    options = value.get("options") or {}
    if not isinstance(options, dict) or (options and value["answer"] not in options):
        raise InvalidText(f"{where}: the answer {value['answer']!r:.40} is none of its options.")
    context = value.get("context") or ""
    if isinstance(context, list):
        context = "\n".join(map(str, context))
    return Row(value["question"], value["answer"], {k: str(v) for k, v in options.items()}, str(context))

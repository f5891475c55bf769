"""Files of questions, checked before a model is loaded: what cannot be asked is refused with its line.

Knows no model and no way of asking.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting
from .coverage import words

# What a template can name an option by.
LETTER = re.compile("[A-Z]")


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        subject: the source's own subject or topic, or "".
        options: choices by letter; empty where the answer is free text.
        answer: the letter of the right option, or the answer as text; "" where only statements are known.
        must_have: statements of a good answer, each as its alternatives.
    """

    id: str
    question: str
    language: str = "en"
    context: str | None = None
    subject: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    must_have: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class QuestionFile:
    """The rows of one file, with what tells it from another of the same name."""

    name: str
    sha256: str
    rows: tuple[Row, ...]


def read(paths: Sequence[Path], limit: int | None = None) -> list[QuestionFile]:
    """All files, of each the first `limit` rows. Rows beyond the limit are checked too.

    Raises:
        InvalidSetting: a file that cannot be read or has no rows; a row that cannot be asked, with its line;
            an id that stands twice, in one file or in two.
    """
    places: dict[str, str] = {}
    files = []
    for path in paths:
        data = _bytes(path)
        rows = []
        for number, line in enumerate(data.splitlines(), 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            row = _row(line, place)
            if row.id in places:
                raise InvalidSetting(
                    f"{place}: the id {row.id!r} is also that of {places[row.id]}. Give each row its own."
                )
            places[row.id] = place
            rows.append(row)
        if not rows:
            raise InvalidSetting(f"{path} holds no questions. Name a file with one JSON object a line.")
        files.append(QuestionFile(path.name, hashlib.sha256(data).hexdigest(), tuple(rows[:limit])))
    return files


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InvalidSetting(f"{path} is no file. Name a file with one JSON object a line.")
        return path.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}. Check its name and rights.") from None


def _row(line: bytes, place: str) -> Row:
    try:
        told = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidSetting(f"{place}: this is not UTF-8. Save the file as UTF-8.") from None
    except (ValueError, RecursionError):
        raise InvalidSetting(f"{place}: this is not JSON. Each line is one object.") from None
    if not isinstance(told, dict):
        raise InvalidSetting(f"{place}: this is no object, but {_short(told)}. Each line is one object.")
    options, must_have = _options(told, place), _must_have(told, place)
    if options and must_have:
        raise InvalidSetting(f"{place}: options and must_have do not go together. Leave one of them out.")
    answer = _text(told, "answer", place, required=not must_have)
    if options and answer not in options:
        raise InvalidSetting(
            f"{place}: the answer {_short(answer)} is none of the options {', '.join(options)}. "
            "Give the letter of the right one."
        )
    return Row(
        id=_text(told, "id", place, required=True),
        question=_text(told, "question", place, required=True),
        language=_text(told, "language", place) or "en",
        context=_text(told, "context", place) or None,
        subject=_text(told, "subject", place) or _text(told, "topic", place),
        options=options,
        answer=answer,
        must_have=must_have,
    )


def _text(told: Mapping[str, Any], name: str, place: str, *, required: bool = False) -> str:
    value = told.get(name)
    if value is None and not required:
        return ""
    if value is None:
        raise InvalidSetting(f"{place}: {name} is missing. Add it.")
    _check(value, name, place)
    if required and not value.strip():
        raise InvalidSetting(f"{place}: {name} is empty. Add a text.")
    return str(value)


def _check(value: object, name: str, place: str) -> None:
    if not isinstance(value, str):
        raise InvalidSetting(f"{place}: {name} is {_short(value)}, which is no text. Write it in quotes.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidSetting(f"{place}: {name} holds half a character. Mend its \\u escapes.") from None


def _options(told: Mapping[str, Any], place: str) -> dict[str, str]:
    options = told.get("options")
    if options is None:
        return {}
    if not isinstance(options, dict) or len(options) < 2:
        raise InvalidSetting(
            f"{place}: options are not two or more choices by letter, A to Z. Write them so."
        )
    for letter, text in options.items():
        if not LETTER.fullmatch(letter):
            raise InvalidSetting(
                f"{place}: the option {_short(letter)} is named by no letter A to Z. Rename it."
            )
        _check(text, f"option {letter}", place)
        if not text.strip():
            raise InvalidSetting(f"{place}: option {letter} is empty. Give it a text, or leave it out.")
    return options


def _must_have(told: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], ...]:
    given = told.get("must_have")
    if given is None:
        return ()
    if not isinstance(given, list) or not given:
        raise InvalidSetting(f"{place}: must_have is no list of statements. Write them in brackets.")
    statements = [tuple(entry) if isinstance(entry, list) else (entry,) for entry in given]
    for alternatives in statements:
        for text in alternatives:
            _check(text, "a statement of must_have", place)
        if not alternatives or not all(words(text) for text in alternatives):
            raise InvalidSetting(f"{place}: a statement of must_have has no words. Leave it out.")
    return tuple(statements)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."

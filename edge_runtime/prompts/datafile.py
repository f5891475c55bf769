"""A TOML file read into a model, or refused with its line and the remedy.

Knows nothing of what the files are for: a model describes each key.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ..errors import InvalidSetting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What templates, rules and router speak, the first where nothing tells.
LANGUAGES = ("en", "es", "fr", "zh")

# More than any prompt that leaves room for an answer.
MAX_FILE_BYTES = 1 << 16

# What TOML calls what pydantic calls by Python's names.
_KINDS = {
    "tuple_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
}

# The path of a key: names of tables and keys, and positions in lists from 0.
Place = tuple[str | int, ...]


class Data(BaseModel):
    """What a file, or a table of one, says. Each field has a description, which errors quote."""

    model_config = ConfigDict(extra="forbid", frozen=True)


D = TypeVar("D", bound=Data)


def fault(problem: str, *below: str | int) -> PydanticCustomError:
    """What a validator of a `Data` raises: half a sentence, and the key below the validated one."""
    return PydanticCustomError("fault", problem, {"below": below})


def read(path: Path, model: type[D], max_bytes: int = MAX_FILE_BYTES) -> D:
    """What a file says.

    Raises:
        InvalidSetting: the file cannot be read, is longer than `max_bytes`, is no TOML, or does not fit
            the model.
    """
    text, table = _parsed(path, max_bytes)
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise _refusal(path, text, error, model) from None


def at(path: Path, place: Place, max_bytes: int = MAX_FILE_BYTES) -> str:
    """`FILE, line N` of a key in a file that has been read."""
    return f"{path}, line {_line(lines_of(_parsed(path, max_bytes)[0]), place)}"


def lines_of(text: str) -> dict[Place, int]:
    """On which line each key and table of a valid TOML text begins, from 1.

    A statement of TOML ends where the lines since the last one can be read on their own, and never before:
    a string or list over several lines cannot be read until it is closed.
    """
    lines: dict[Place, int] = {}
    table: Place = ()
    n_of: dict[Place, int] = {}
    begin, statement = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        try:
            said = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = _header(said, n_of)
            _note(lines, table, {}, begin)
        else:
            for key, value in said.items():
                _note(lines, (*table, key), value, begin)
        begin, statement = number + 1, ""
    return lines


def _header(said: dict[str, Any], n_of: dict[Place, int]) -> Place:
    """The path of a table by its header, read alone; `n_of` counts the tables of each `[[list]]` so far."""
    place: Place = ()
    while said:
        ((key, value),) = said.items()
        place = (*place, key)
        if isinstance(value, list):
            n_of[place] = n_of.get(place, 0) + 1
            value = value[0]
        if place in n_of:
            place = (*place, n_of[place] - 1)
        said = value
    return place


def _note(lines: dict[Place, int], place: Place, value: object, line: int) -> None:
    for n in range(1, len(place) + 1):
        lines.setdefault(place[:n], line)
    if isinstance(value, dict):
        for key, inner in value.items():
            _note(lines, (*place, key), inner, line)


def _line(lines: Mapping[Place, int], place: Place) -> int:
    """The line of a key; of the table around it where the key is missing; of the file's begin at last."""
    return next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), 1)


def _parsed(path: Path, max_bytes: int) -> tuple[str, dict[str, Any]]:
    """Text and table of a file."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}. Check its name and rights.") from None
    if len(data) > max_bytes:
        raise InvalidSetting(f"{path} has more than {max_bytes} bytes. Shorten it.")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line, problem = data[: error.start].count(b"\n") + 1, "it is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        line, problem = _syntax(str(error), text)
    except RecursionError:
        line, problem = _deepest_line(text), "it is nested too deeply"
    raise InvalidSetting(f"{path}, line {line}: this is not valid TOML: {problem}. Mend this line.")


def _syntax(message: str, text: str) -> tuple[int, str]:
    """tomllib names the place in its message: `(at line 3, column 5)` or `(at end of document)`."""
    problem, _, place = message.rpartition(" (at ")
    found = re.match(r"line (\d+), ", place)
    return int(found[1]) if found else text.rstrip("\n").count("\n") + 1, problem or message


def _deepest_line(text: str) -> int:
    lines = text.split("\n")
    return 1 + max(range(len(lines)), key=lambda i: lines[i].count("[") + lines[i].count("{"))


def _refusal(path: Path, text: str, error: ValidationError, model: type[Data]) -> InvalidSetting:
    """The first fault in the file; an unknown key before all: it is often a missing one, misspelled."""
    lines = lines_of(text)
    first = min(
        error.errors(include_url=False),
        key=lambda found: (found["type"] != "extra_forbidden", _line(lines, _place(found))),
    )
    place = _place(first)
    name = ".".join(str(part) for part in place)
    about = _description(model, place)
    if first["type"] == "extra_forbidden":
        names = list(_model_at(model, place[:-1]).model_fields)
        close = get_close_matches(str(place[-1]), names, 1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names)}."
        said = f"{name} is not known here. {hint}"
    elif first["type"] == "missing":
        said = f"{name} is missing. Add it: {about}"
    elif first["type"] == "fault":
        said = f"{name}: {first['msg']}. {about}"
    else:
        kind = _KINDS.get(first["type"])
        why = f"it should be {kind}" if kind else _lower(first["msg"])
        said = f"{name}: {_short(first['input'])} is not possible: {why}. {about}"
    return InvalidSetting(f"{path}, line {_line(lines, place)}: {said}", name)


def _place(found: ErrorDetails) -> Place:
    return (*found["loc"], *found.get("ctx", {}).get("below", ()))


def _model_at(model: type[Data], place: Place) -> type[Data]:
    """The model of the table at `place`, or of the last table on the way to it."""
    for part in place:
        field = model.model_fields.get(str(part))
        if field is not None:
            kinds = (field.annotation, *get_args(field.annotation))
            model = next((k for k in kinds if isinstance(k, type) and issubclass(k, Data)), model)
    return model


def _description(model: type[Data], place: Place) -> str:
    """What the key at `place`, or the nearest one around it, is for."""
    said = ""
    for depth, part in enumerate(place):
        field = _model_at(model, place[:depth]).model_fields.get(str(part))
        said = (field.description if field else None) or said
    return said


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]

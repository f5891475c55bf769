"""The file of an examination's results: a header, then one line an answer, so that a run can go on later.

Knows no model and no worker. What stands in a line is the business of who writes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from ..errors import InvalidSetting

# An answer: `id` and `sample` tell which, `end` how it ended; see `sitting`.
Line: TypeAlias = dict[str, Any]
Header: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, int]

# The header's first key, and the form of what follows.
MARK, VERSION = "medge_eval", 1
# How an answer ended to a row that was longer than a slot.
TOO_LONG = "too_long"
_HEADER_HAS = {"model", "files", "settings"}


def header(model: Mapping[str, Any], files: list[dict[str, Any]], settings: Mapping[str, Any]) -> Header:
    """What must be the same for a run to go on.

    Args:
        model: name and sha256.
        files: name, sha256 and rows of each.
        settings: all that the answers and their times depend on.
    """
    return {MARK: VERSION, "model": dict(model), "files": files, "settings": dict(settings)}


def default_path(folder: Path, of: Header) -> Path:
    """Where results lie if nobody says where: the same header, the same file."""
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]
    model = re.sub(r"[^\w.-]+", "-", of["model"]["name"])[:80]
    return folder / f"{model}-{of['settings']['by']}-{digest}.jsonl"


def load(path: Path) -> tuple[Header, dict[Key, Line]]:
    """Header and answers of a file. A last line without an end, of a run that was killed, is left out.

    Raises:
        InvalidSetting: the file cannot be read, is not of this form, or is damaged.
    """
    found = _load(path)
    if found is None:
        raise InvalidSetting(f"{path} is empty. Name a file that medge eval has written.")
    return found[0], found[1]


def _load(path: Path) -> tuple[Header, dict[Key, Line], int] | None:
    """Also how many bytes are whole lines; None where there is not even a header."""
    if path.exists() and not path.is_file():
        raise InvalidSetting(f"{path} is no file. Name one for results.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}. Check its name and rights.") from None
    n_whole = data.rfind(b"\n") + 1
    if not n_whole and (not data or data.startswith(b'{"' + MARK.encode())):
        return None
    first, *others = data[:n_whole].splitlines() or [b""]
    of = _parsed(first)
    if of is None or of.get(MARK) != VERSION or not of.keys() >= _HEADER_HAS:
        raise InvalidSetting(
            f"{path} does not begin as results of this medge eval do, and is left alone. Name another file."
        )
    lines: dict[Key, Line] = {}
    for number, text in enumerate(others, 2):
        line = _parsed(text)
        if line is None or not isinstance(line.get("id"), str) or not isinstance(line.get("sample"), int):
            raise InvalidSetting(
                f"{path}, line {number}: this is no result. Take the line out, or begin anew."
            )
        key = (line["id"], line["sample"])
        if key in lines:
            raise InvalidSetting(
                f"{path}, line {number}: {line['id']!r} was answered before. Take the line out."
            )
        lines[key] = line
    return of, lines, n_whole


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


class Results:
    """A file of results to write to.

    Args:
        path: made if it is not there; if it is, the run goes on.

    Attributes:
        lines: the answers so far, by id and sample.

    Raises:
        InvalidSetting: the file is of another run, with what differs; or cannot be written.
    """

    def __init__(self, path: Path, of: Header) -> None:
        self.path, self.header = path, of
        self.lines: dict[Key, Line] = {}
        n_whole = 0
        if path.exists() and (found := _load(path)):
            before, self.lines, n_whole = found
            if unlike := differences(before, of):
                raise InvalidSetting(
                    f"{path} holds results of another run: {'; '.join(unlike)}. Name another --out, or ask "
                    "as before."
                )
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            # No buffer: what is added is with the system at once, and a full disk is told of at its line.
            self._file: BinaryIO = path.open("ab", buffering=0)
            self._file.truncate(n_whole)
            if not n_whole:
                self._write(of)

    def add(self, line: Line) -> None:
        """Write an answer. It stays if the process is killed afterwards.

        Raises:
            InvalidSetting: it cannot be written, for lack of room for instance; what is there stays.
        """
        with self._told():
            self._write(line)
        self.lines[line["id"], line["sample"]] = line

    def _write(self, line: Line) -> None:
        rest = memoryview(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        while rest:
            rest = rest[self._file.write(rest) :]

    @contextlib.contextmanager
    def _told(self) -> Any:
        try:
            yield
        except OSError as error:
            raise InvalidSetting(
                f"The results cannot be written to {self.path}: {error.strerror}. What is there stays; the "
                "same command goes on when there is room, or name another --out."
            ) from None

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def differences(before: Header, now: Header) -> list[str]:
    """What two headers do not have in common, in words."""
    found = []
    for name in ("name", "sha256"):
        if before["model"].get(name) != now["model"][name]:
            found.append(
                f"model {name} was {_short(before['model'].get(name))}, is {_short(now['model'][name])}"
            )
            break
    if before["files"] != now["files"]:
        old, new = ({f["name"]: f for f in of["files"]} for of in (before, now))
        changed = [f"{name} has changed" for name in new if name in old and new[name] != old[name]]
        added = [f"{name} was not asked" for name in new if name not in old]
        missing = [f"{name} is missing" for name in old if name not in new]
        found += [*changed, *added, *missing] or ["the files come in another order"]
    old_settings, new_settings = before["settings"], now["settings"]
    for name in dict.fromkeys([*old_settings, *new_settings]):
        a, b = old_settings.get(name), new_settings.get(name)
        if a != b:
            found.append(f"{name} was {_short(a)}, is {_short(b)}")
    return found


def _short(value: object) -> str:
    return "not given" if value is None else f"{value}"[:16]

"""Beginnings of prompts that are nobody's own, kept as files: read once, and there again the next day.

A file is the state of a sequence after exactly its tokens. What a state looks like is up to the caller, who
also says which beginnings may be written: nothing that a user typed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path

_MAGIC = b"medge beginning 1\n"
_COUNT = struct.Struct("<I")


class Beginnings:
    """The files of one folder, the least recently used leaving first.

    Args:
        folder: of states that fit one model, build and settings; None keeps nothing.
        max_bytes: the sum over the files of `folder` and of the folders beside it.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._paths: dict[tuple[int, ...], Path] = {}
        if folder is not None:
            for path in folder.glob("*.state"):
                if tokens := _tokens_of(path):
                    self._paths[tokens] = path

    def find(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The longest kept beginning of `tokens`; empty if there is none."""
        fits = (known for known in self._paths if tuple(tokens[: len(known)]) == known)
        return max(fits, key=len, default=())

    def wants(self, tokens: Sequence[int]) -> bool:
        """Whether `keep` would take them."""
        return self._folder is not None and tuple(tokens) not in self._paths

    def load(self, tokens: tuple[int, ...]) -> bytes:
        """The state of a beginning that `find` named; empty if its file is gone or damaged."""
        path = self._paths[tokens]
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            head = _head(tokens)
            body, digest = data[len(head) : -32], data[-32:]
            if data.startswith(head) and hashlib.sha256(body).digest() == digest:
                with contextlib.suppress(OSError):
                    os.utime(path)
                return body
        self.drop(tokens)
        return b""

    def keep(self, tokens: Sequence[int], state: bytes) -> None:
        """Write a file. A disk that is full or read-only is not worth an error: it will be read again."""
        assert self._folder is not None
        known = tuple(tokens)
        head = _head(known)
        if not self._make_room(len(head) + len(state) + 32):
            return
        path = self._folder / f"{hashlib.sha256(head).hexdigest()[:24]}.state"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                for part in (head, state, hashlib.sha256(state).digest()):
                    file.write(part)
            partial.replace(path)
            self._paths[known] = path
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()

    def drop(self, tokens: tuple[int, ...]) -> None:
        """Forget a beginning and delete its file."""
        with contextlib.suppress(OSError):
            self._paths.pop(tokens).unlink()

    def _make_room(self, n_bytes: int) -> bool:
        """Delete the oldest files of this and other folders until `n_bytes` fit."""
        assert self._folder is not None
        files = []
        for path in self._folder.parent.glob("*/*"):
            with contextlib.suppress(OSError):  # another process may have deleted it
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total + n_bytes <= self._max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
            self._paths = {tokens: own for tokens, own in self._paths.items() if own != path}
        return total + n_bytes <= self._max_bytes


def _head(tokens: tuple[int, ...]) -> bytes:
    return _MAGIC + _COUNT.pack(len(tokens)) + struct.pack(f"<{len(tokens)}i", *tokens)


def _tokens_of(path: Path) -> tuple[int, ...]:
    """Of which beginning a file says that it is; empty if it is none."""
    try:
        with path.open("rb") as file:
            magic, count = file.read(len(_MAGIC)), file.read(_COUNT.size)
            if magic != _MAGIC or len(count) < _COUNT.size:
                return ()
            n = min(_COUNT.unpack(count)[0], 1 << 20)
            return struct.unpack(f"<{n}i", file.read(4 * n))
    except (OSError, struct.error):
        return ()

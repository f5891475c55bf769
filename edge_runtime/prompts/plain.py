"""Names of a model's control tokens that somebody typed stay text: nobody can end a turn or fake a system's.

They are taken out before the chat template runs, and put back as plain text when its work is cut into tokens.
Everything else of the prompt stays in one piece, as the model learned it. Knows no tokenizer.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class Plain:
    """What users typed, kept from being more than text.

    Args:
        names: of all tokens that a tokenizer would read in a text.
    """

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted((name for name in names if name), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def hide(self, messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Hidden]:
        """The messages with signs instead of names in those of users, and what the signs stand for."""
        hidden = Hidden()
        return [
            m | {"content": self._names.sub(hidden.sign, m["content"])} if m["role"] == "user" else m
            for m in messages
        ], hidden


class Hidden:
    """Names by the sign that stands for each. Signs cannot be guessed, so nobody can type one."""

    def __init__(self) -> None:
        self._key = secrets.token_hex(8)
        self._names: list[str] = []

    def sign(self, found: re.Match[str]) -> str:
        self._names.append(found[0])
        return f"\ufdd0{self._key}.{len(self._names) - 1}\ufdd1"

    def __bool__(self) -> bool:
        return bool(self._names)

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in its order: pieces to be read with control tokens, and names, which are plain (True)."""
        rest = 0
        for found in re.finditer(f"\ufdd0{self._key}\\.(\\d+)\ufdd1", text):
            if found.start() > rest:
                yield text[rest : found.start()], False
            yield self._names[int(found[1])], True
            rest = found.end()
        if rest < len(text):
            yield text[rest:], False

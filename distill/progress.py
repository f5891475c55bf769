"""How a run tells where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

# Called with what is done, and the total.
Report: TypeAlias = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """A Report to nobody."""


class Progress:
    """Tells nobody."""

    @contextmanager
    def step(self, name: str) -> Iterator[Report]:
        """Work that can be counted."""
        yield silent

    def say(self, text: str) -> None:
        """A line."""

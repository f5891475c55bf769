"""The thoughts of one request: how many tokens they may have, and why they ended.

They end by their mark, which the model writes, or the engine closes them: an answer always follows.
"""

from __future__ import annotations

from .repetition import Repetition
from .request import Request, ThoughtsEnd
from .text import TextStream


class Thoughts:
    """What the model writes before its answer.

    Args:
        request: one with `thinking`.
        n_ctx: tokens of a slot.
    """

    def __init__(self, request: Request, n_ctx: int) -> None:
        assert request.thinking is not None
        self.thinking = request.thinking
        self.n_tokens = 0
        self.end: ThoughtsEnd | None = None
        self._limit = limit(request, n_ctx)
        if self._limit == 0:
            self.end = "budget"
        self._text = TextStream((self.thinking.mark,))
        self._repetition = Repetition() if request.cut_loops else None

    def feed(self, token: int, piece: bytes) -> str:
        """Take a token, and return the text of thoughts that is now certain. It may set `end`."""
        self.n_tokens += 1
        text = self._text.feed(piece)
        if self._text.stopped:
            self.end = "closed"
        elif self._repetition and self._repetition.feed(token):
            self.end = "loop"
        elif self.n_tokens >= self._limit:
            self.end = "budget"
        return text

    def finish(self) -> str:
        """The text of thoughts that was still held back."""
        return self._text.finish()

    @property
    def rest(self) -> str:
        """What stood after the mark in the token that completed it: it is the answer's."""
        return self._text.rest


def limit(request: Request, n_ctx: int) -> int:
    """Tokens of thoughts that leave the answer its room.

    The room is that of `answer_tokens`, or half of what there is if there is less than twice as much.
    """
    thinking = request.thinking
    assert thinking is not None
    room = n_ctx - len(request.tokens) - len(thinking.close)
    if request.max_tokens is not None:
        room = min(room, request.max_tokens)
    most = room - min(thinking.answer_tokens, (room + 1) // 2)
    return max(0, most if thinking.max_tokens is None else min(most, thinking.max_tokens))

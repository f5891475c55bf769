"""Tokens to text: holds back unfinished UTF-8, and text that may be the beginning of a stop string."""

from __future__ import annotations

import codecs


class TextStream:
    """The visible text of one answer, in pieces that never have to be taken back.

    Bytes that are no UTF-8 become U+FFFD, as soon as they cannot be completed any more.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = stop
        self._held = ""
        self.stopped = False
        self.rest = ""  # what stood after the stop string when it was found

    def feed(self, piece: bytes) -> str:
        """Add a token's bytes and return the text that is now certain."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """The text still held back. Call once, when no more tokens come."""
        text = self._release(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            self.stopped, self._held, self.rest = True, "", text[at + len(stop) :]
            return text[:at]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0

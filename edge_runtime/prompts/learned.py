"""What a text speaks of, by a small network over its words: weights that were learned from labelled texts.

Owns words, their features and the arithmetic. Must not know what is done with the labels. The weights in
`learned.npz` come from `python -m tests.prompts.learn`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
HINT = 0.4  # what a hint weighs; see `share` for words

_HAN = "\u3400-\u9fff"
_WORD = re.compile(rf"[^\W\d_{_HAN}]{{1,40}}|\d{{1,9}}(?:[.,]\d{{1,3}})?|[{_HAN}]|[?!？！。;；:：\n%/]")
_STEMS = (4, 6)  # letters of the beginnings that stand for inflected and misspelt words
_LIMITS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 100,
           120, 140, 160, 180, 200, 250, 300, 400, 500, 1000)  # fmt: skip

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, Any]  # of vectors


def tokens(text: str) -> list[str]:
    """Words, numbers, Chinese characters, and the signs that end a sentence."""
    return _WORD.findall(text)


def features(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each word's features: itself, its beginnings, and it after the word before.

    Args:
        words: see `tokens`.

    Yields:
        the number of the word, and a feature, which may come more than once.
    """
    before = ""
    for i, typed in enumerate(words):
        word = _number(typed) if typed[0].isdecimal() else fold(typed)
        yield i, word
        if word[0].isalpha() and typed[0] < "\u3400":
            for n in _STEMS:
                if len(word) > n:
                    yield i, word[:n] + "*"
        if before:
            yield i, f"{before} {word}"
        before = word


def share(n_features: int) -> float:
    """What each known feature of a text's words weighs: their sum has one length, shorter if they are few."""
    return float(max(8, n_features) ** -0.5)


def key(feature: str) -> int:
    """Under which a feature's vector is kept: texts of patients are not, nor are words of others."""
    return crc32(feature.encode("utf-8", "replace"))


class Reading:
    """What a text says for each label.

    Attributes:
        net: which network read it.
        scores: log-odds by label.
        known: how many of the text's words it has learned; a Chinese character is half of one.
    """

    def __init__(
        self, net: Network, words: Sequence[str], of: Sequence[int], rows: Rows, weights: Floats
    ) -> None:
        self.net, self._words, self._of, self._rows, self._weights = net, words, of, rows, weights
        self._summed = weights @ net.vectors(rows)
        self.known = sum(map(_says, {words[i] for i in of if i >= 0}))
        self.scores = dict(zip(net.labels, net.scores(self._summed).tolist()))

    def words(self, label: str, most: int = 3) -> tuple[str, ...]:
        """The text's own words that say most for a label, in their order."""
        slope = self.net.slope(self._summed, label)
        says = np.zeros(len(self._words) + 1)  # the last stands for the hints
        np.add.at(says, list(self._of), self._weights * (self.net.vectors(self._rows) @ slope))
        best = np.argsort(-says[:-1], kind="stable")[:most]
        return tuple(self._words[i] for i in sorted(best) if says[i] > max(0.0, says[best[0]] / 3))


class Network:
    """Vectors of features, added up; two hidden layers over the sum, and a straight way beside them.

    Args:
        path: an `npz` with `keys` (n_features,), sorted; `vectors` int8 (n_features, n_hidden + n_labels) and
            their `scales` (n_hidden + n_labels,); `bias` (n_hidden,), `inner` (n_hidden, n_hidden),
            `inner_bias` (n_hidden,), `outer` (n_labels, n_hidden), `outer_bias` (n_labels,), and the names
            `labels`.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as table:
            self.labels = tuple(str(label) for label in table["labels"])
            self._keys, self._vectors, self._scales = table["keys"], table["vectors"], table["scales"]
            self._bias, self._inner, self._inner_bias = table["bias"], table["inner"], table["inner_bias"]
            self._outer, self._outer_bias = table["outer"], table["outer_bias"]

    def read(self, text: str, hints: Iterable[str] = ()) -> Reading:
        """What `text`, and what other readers found in it, say.

        Args:
            text: any; traditional characters made simple.
            hints: names of what was found, as when the network learned.
        """
        words = tokens(text)
        found: dict[int, int] = {}
        for i, feature in features(words):
            found.setdefault(key(feature), i)
        of, rows = self._look_up(list(found), list(found.values()))
        hinted = self._look_up([key(hint) for hint in hints])[1]
        weights = np.full(len(rows) + len(hinted), HINT, np.float32)
        weights[: len(rows)] = share(len(rows))
        return Reading(self, words, [*of, *(-1 for _ in hinted)], np.concatenate([rows, hinted]), weights)

    def _look_up(self, keys: Sequence[int], of: Sequence[int] = ()) -> tuple[list[int], Rows]:
        wanted = np.array(keys, self._keys.dtype)
        at = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        there = self._keys[at] == wanted
        return [i for i, known in zip(of, there) if known], at[there]

    def vectors(self, rows: Rows) -> Floats:
        found: Floats = self._vectors[rows].astype(np.float32)
        return found

    def _layers(self, summed: Floats) -> tuple[Floats, Floats]:
        """What the hidden layers hold before they are cut at 0."""
        first = (summed * self._scales)[: len(self._bias)] + self._bias
        return first, self._inner @ np.maximum(first, 0) + self._inner_bias

    def scores(self, summed: Floats) -> Floats:
        _, second = self._layers(summed)
        straight = (summed * self._scales)[len(self._bias) :]
        found: Floats = self._outer @ np.maximum(second, 0) + self._outer_bias + straight
        return found

    def slope(self, summed: Floats, label: str) -> Floats:
        """How a label's score changes with each part of the summed vectors."""
        first, second = self._layers(summed)
        at = self.labels.index(label)
        found = np.zeros(len(self._scales), np.float32)
        found[: len(self._bias)] = ((self._outer[at] * (second > 0)) @ self._inner) * (first > 0)
        found[len(self._bias) + at] = 1
        found *= self._scales
        return found


@lru_cache(maxsize=1)
def network() -> Network:
    """The network of the package, read once."""
    return Network(FILE)


def _says(word: str) -> float:
    """How much of a word it is: numbers, signs and single letters alone say nothing."""
    if word >= "\u3400":
        return 0.5
    return float(word[0].isalpha() and len(word) > 1)


def _number(typed: str) -> str:
    """Numbers by their size: 85 and 87 say the same."""
    value = float(typed.replace(",", "."))
    return f"#{bisect_right(_LIMITS, value)}"


def fold(word: str) -> str:
    """Without case, marks and full width."""
    if word.isascii():
        return word.lower()
    decomposed = unicodedata.normalize("NFKD", word.casefold().replace("œ", "oe"))
    return "".join(c for c in decomposed if not unicodedata.combining(c)) or word

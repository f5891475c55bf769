"""Which statements an answer in free text makes. Knows no model and no files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Chinese and Japanese write no spaces: a run of their characters is one word, which must stand as it is.
_HAN = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"\d+(?:\.\d+)?|[{_HAN}]+|[^\W\d_{_HAN}]+")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
# A point ends a sentence before white space only: 0.5 mg goes on.
_END_OF_SENTENCE = re.compile(r"[!?。;]|\n|\.(?=\s|$)")


def words(text: str) -> list[str]:
    """The words of a text without case, accents, punctuation and spacing; `5mg` is two."""
    return _WORD.findall(_folded(text))


def covered(statements: Sequence[Sequence[str]], answer: str) -> list[bool]:
    """For each statement whether the answer makes it: the words of one of its alternatives stand in one
    sentence, in their order, with any words between them.

    This counts words and understands none. It cannot see a negation ("do not give aspirin" makes the
    statement "give aspirin"), another word or form for the same ("ASA", "giving"), the same words in another
    order, a statement spread over two sentences, a number in another unit, or a contradiction later on.
    Write alternatives for what may be said in several ways.
    """
    sentences = [words(part) for part in _END_OF_SENTENCE.split(_folded(answer))]
    return [
        any(_in_order(words(text), sentence) for text in alternatives for sentence in sentences)
        for alternatives in statements
    ]


def _in_order(wanted: Sequence[str], sentence: Sequence[str]) -> bool:
    rest = iter(sentence)
    word, at = "", 0
    for want in wanted:
        if re.match(f"[{_HAN}]", want):
            # Several may stand in one run.
            while (found := word.find(want, at)) < 0:
                word, at = next(rest, ""), 0
                if not word:
                    return False
            at = found + len(want)
        else:
            if want not in rest:
                return False
            word, at = "", 0
    return True


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKD", text).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    return _COMMA_IN_NUMBER.sub(".", text)

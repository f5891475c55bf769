"""Which option an answer in free text settles on. Knows no model; the words are in `wording`.

In this order: the field "answer" of JSON, the last conclusion, what the text begins with, the only option
that is named and not denied. Otherwise there is none: a guess would be counted as the model's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import wording

_JSON_ANSWER = re.compile(r'"answer"\s*:\s*("(?:[^"\\\n]|\\.)*")', re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}|\\[()\[\]]")
_MARKUP = re.compile(r"[*`_#$]+")

_BEFORE, _AFTER = r"(?<![A-Za-z0-9À-ɏ])", r"(?![A-Za-z0-9À-ɏ'’]|-\w)"
_ENCLOSED = re.compile(rf"{_BEFORE}[(\[【「\"“'‘]\s*([A-Za-z])\s*[)\]】」\"”'’]")
_ANNOUNCED = re.compile(rf"{wording.OPTION_WORD}\s*:?\s*\(?([a-z]){_AFTER}")
_ANNOUNCED_BEHIND = re.compile(rf"{_BEFORE}([A-Z])\s*(?:选项|项)")
_HEADS_LINE = re.compile(r"(?m)^[\s\"'(\[-]*([A-Z])\s*[).:、,]")
_BARE = re.compile(rf"{_BEFORE}([A-Z]){_AFTER}")
_BARE_SMALL = re.compile(rf"{_BEFORE}([a-z])(?=\s*(?:[).,;:。]|\n|$))")
# E. coli is no letter with a point behind it.
_GENUS = re.compile(r"\.\s?[a-z]")
_END_OF_SENTENCE = re.compile(r"\.(?=\s+[^\sa-zà-ÿ]|\s*$)|[!?。;\n]")
_FIRST_IS_ANSWER = re.compile(r"\s*(?:[).,:;、\n—–\]]|-\s|$)")

# An option's own text is taken for it anywhere in a sentence only if it is as long as this: "no" is a word.
_LONG_TEXT = 6
_LONG_HAN = 3


@dataclass(frozen=True)
class _Mention:
    """A place that names an option. A weak one counts only right behind a cue."""

    begin: int
    end: int
    letter: str
    strong: bool


def extract(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that `text` gives as its answer; None for a refusal, two answers, or none.

    Args:
        text: what a model wrote; thoughts in front of it are left out.
        options: choices by letter.
    """
    _, _, text = text.rpartition("</think>")
    if "<think>" in text:
        return None  # it was still thinking
    if given := _JSON_ANSWER.findall(text):
        try:
            return _named(json.loads(given[-1]), options)
        except ValueError:
            return None
    if text.lstrip().removeprefix("```json").lstrip().startswith("{"):
        return None  # JSON that does not come to its answer
    return _named(text, options)


def _named(text: str, options: Mapping[str, str]) -> str | None:
    answer = _Answer(_plain(text), options)
    return answer.whole() or answer.concluded() or answer.first() or answer.only()


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    text = _LATEX.sub(lambda found: found[1] or "", text)
    text = _BOXED.sub(lambda found: f"\nAnswer: {found[1]}\n", text)
    return _MARKUP.sub("", text).strip()


def _folded(text: str) -> str:
    """Without accents and case, character for character: positions stay."""
    return "".join(unicodedata.normalize("NFD", c)[0].lower()[0] for c in text)


class _Answer:
    """One text without markup, and where it names which option."""

    def __init__(self, text: str, options: Mapping[str, str]) -> None:
        self._text = text
        self._low = _folded(text)
        self._options = options
        self._own = {letter: _own_text(option) for letter, option in options.items()}
        self._mentions = self._found()
        self._affirmed = {m for m in self._mentions if not self._denied(m)}

    # -- the four ways

    def whole(self) -> str | None:
        """The text is a letter or an option's text, and nothing else."""
        return self._alone(self._text)

    def concluded(self) -> str | None:
        """The last of: what follows a cue, what is called right, and a last line of its own."""
        found = [*self._after_cues(), *(m for m in self._affirmed if self._called_right(m))]
        last_line = self._text.rpartition("\n")[2]
        if "\n" in self._text and (letter := self._alone(last_line)):
            return letter
        return max(found, key=lambda m: m.begin).letter if found else None

    def first(self) -> str | None:
        """What the text begins with, unless it begins to list all options."""
        heads = [m[1] for m in _HEADS_LINE.finditer(self._text) if m[1] in self._options]
        if len(set(heads)) > 1 and heads[0] == next(iter(self._options)):
            return None
        mention = self._settled(0, self._end_of_sentence(0))
        if mention is None or self._text[: mention.begin].strip(" \t\"'(["):
            return None
        rest = self._text[mention.end :]
        own = self._own[mention.letter].match(_folded(rest.lstrip(" -—")))
        return mention.letter if own or _FIRST_IS_ANSWER.match(rest) or self._reasons(rest) else None

    def only(self) -> str | None:
        """The one option that is named, as such or by its text, and not denied."""
        letters = {m.letter for m in self._affirmed if m.strong}
        return letters.pop() if len(letters) == 1 else None

    # -- mentions

    def _found(self) -> list[_Mention]:
        texts = [
            _Mention(m.start(), m.end(), letter, _is_long(self._options[letter]))
            for letter, own in self._own.items()
            for m in own.finditer(self._low)
        ]
        # "Hepatitis B virus" is not the option "Hepatitis", nor the letter B.
        texts = [m for m in texts if not any(_within(m, other) for other in texts)]
        letters: dict[int, _Mention] = {}
        for pattern, text, strong in (
            (_ENCLOSED, self._text, True),
            (_ANNOUNCED, self._low, True),
            (_ANNOUNCED_BEHIND, self._text, True),
            (_BARE, self._text, False),
            (_BARE_SMALL, self._text, False),
        ):
            for found in pattern.finditer(text):
                at = found.start(1)
                letter = self._text[at].upper()
                mention = _Mention(at, at + 1, letter, strong)
                if letter in self._options and at not in letters and not self._is_word(mention, pattern):
                    letters[at] = mention
        apart = (m for m in letters.values() if not any(t.begin <= m.begin < t.end for t in texts))
        return sorted([*texts, *apart], key=lambda m: m.begin)

    def _is_word(self, mention: _Mention, pattern: re.Pattern[str]) -> bool:
        """Whether a letter is an article, a pronoun or a genus."""
        if pattern is _ENCLOSED:
            return False
        rest = self._low[mention.end :]
        if self._own[mention.letter].match(rest.lstrip(" .:)-")):
            return False
        if _GENUS.match(self._text[mention.end :]):
            return True
        word = re.match(r"\s+([^\W\d_]+)", self._text[mention.end :])
        if mention.letter not in wording.WORDS or word is None or not word[1][0].islower():
            return False
        return not self._reasons(rest)

    def _reasons(self, rest: str) -> bool:
        word = re.match(r"\s+([^\W\d_]+)", _folded(rest))
        return word is not None and word[1] in wording.AFTER_A_LETTER

    def _alone(self, line: str) -> str | None:
        bare = line.strip(" \t\"'()[].,:;!。")
        if bare.upper() in self._options:
            return bare.upper()
        low = _folded(bare)
        whole = [letter for letter, own in self._own.items() if own.fullmatch(low)]
        return whole[0] if len(whole) == 1 else None

    # -- what is said of a mention

    def _between(self, mention: _Mention) -> str:
        """What stands before a mention in its sentence, from the mention before it on."""
        before = [m.end for m in self._mentions if m.end <= mention.begin]
        begin = max(before, default=0)
        ends = _END_OF_SENTENCE.finditer(self._text[begin : mention.begin])  # which looks at capitals
        return self._low[begin + max((m.end() for m in ends), default=0) : mention.begin]

    def _behind(self, mention: _Mention) -> str:
        """What stands after a mention, up to that of another option."""
        others = (m.begin for m in self._mentions if m.begin >= mention.end and m.letter != mention.letter)
        return self._low[mention.end : min(others, default=None)]

    def _denied(self, mention: _Mention) -> bool:
        between = self._between(mention)
        before = [m for m in self._mentions if m.end <= mention.begin]
        if before and between.strip(" ,()") and wording.AND.fullmatch(between):
            previous = before[-1]
            joined = self._low[previous.end : mention.begin] == between
            if joined and self._denied_before(previous):
                return True
        return self._denied_before(mention) or bool(wording.IS_WRONG.match(self._behind(mention)))

    def _denied_before(self, mention: _Mention) -> bool:
        between = self._between(mention)
        turns = [m.end() for pattern in (wording.TURN, wording.CUE) for m in pattern.finditer(between)]
        turned = between[max(turns, default=0) :]
        return bool(wording.NOT.search(turned))

    def _called_right(self, mention: _Mention) -> bool:
        at_begin = not self._between(mention).rpartition(",")[2].strip(" \t\"'([-")
        return (mention.strong or at_begin) and bool(wording.IS_RIGHT.match(self._behind(mention)))

    def _after_cues(self) -> Iterator[_Mention]:
        for cue in wording.CUE.finditer(self._low):
            begin = cue.end()
            begin += len(re.match(r"[\s:=.\-–—]*", self._low[begin:])[0])  # type: ignore[index]
            if found := self._settled(begin, self._end_of_sentence(begin)):
                yield found

    def _end_of_sentence(self, begin: int) -> int:
        end = _END_OF_SENTENCE.search(self._text, begin)
        return end.start() if end else len(self._text)

    def _settled(self, begin: int, end: int) -> _Mention | None:
        """The first affirmed mention of a clause, if it does not go on with another of the same standing."""
        chosen: _Mention | None = None
        since = begin
        for mention in (m for m in self._mentions if begin <= m.begin < end):
            between = self._low[since : mention.begin]
            since = mention.end
            if chosen is None:
                if (mention.strong or _only_fillers(between)) and mention in self._affirmed:
                    chosen = mention
            elif mention.letter != chosen.letter:
                both = wording.AND.fullmatch(between) and mention in self._affirmed
                return None if both else chosen
        return chosen


def _own_text(option: str) -> re.Pattern[str]:
    """Finds an option's words in a folded text, whatever stands between them."""
    words = re.findall(r"[^\W_]+", _folded(unicodedata.normalize("NFKC", option)))
    if not words:
        return re.compile(r"(?!)")
    return re.compile(r"(?<![a-z0-9])" + r"[\W_]+".join(map(re.escape, words)) + r"(?![a-z0-9])")


def _is_long(option: str) -> bool:
    n_han = len(re.findall("[\u3040-\u30ff\u3400-\u9fff]", option))
    return n_han >= _LONG_HAN or len(re.findall(r"[^\W\d_]", option)) >= _LONG_TEXT


def _within(mention: _Mention, other: _Mention) -> bool:
    size, whole = mention.end - mention.begin, other.end - other.begin
    return other.begin <= mention.begin and mention.end <= other.end and size < whole


def _only_fillers(text: str) -> bool:
    # A contrast begins anew: "not A, which is rare, but B".
    text = wording.CONTRAST.split(text)[-1]
    words = re.findall(r"[^\W\d_]+", text)
    return all(w in wording.FILLERS or set(w) <= wording.HAN_FILLERS for w in words)

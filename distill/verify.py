"""Is a teacher's answer worth learning? By the key where there is one, else by rules."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from .config import Traces
from .data import Row

OPEN, CLOSE = "<think>", "</think>"

# The last of these forms in an answer counts: "Answer: B", "**B**", "The answer is (B)", "B. a test".
LETTER = re.compile(
    r"(?:answer|option|choice|respuesta|réponse|答案)\W{0,12}(?:is|es|est|是|为)?\W{0,8}\b([A-J])\b"
    r"|\\boxed\{\W*([A-J])\b|\*\*\W*([A-J])\b|^\W*([A-J])(?=[.):]|\W*$)",
    re.IGNORECASE | re.MULTILINE,
)
N_GRAM, MAX_REPEATS = 12, 4
# Of the letters of a text, how many have to be of its language's script.
SCRIPT_SHARE = 0.9
CJK = ("CJK", "HIRAGANA", "KATAKANA")


@dataclass(frozen=True)
class Judged:
    """A teacher's answer in its parts.

    Attributes:
        letter: the option that it chose, if there were any.
        rejected: why it is not learned, or None.
    """

    reasoning: str
    answer: str
    letter: str | None
    rejected: str | None


def judge(row: Row, content: str, reasoning: str | None, finish_reason: str | None, rules: Traces) -> Judged:
    """Split an answer into thought and answer, and look for a reason not to learn it.

    Args:
        content, reasoning: as the endpoint gave them; some leave the thought inside `content`.
    """
    thought, answer = (reasoning, content) if reasoning else split(content)
    thought, answer = thought.strip(), answer.strip()
    letter = letter_of(answer, row) if row.options else None
    return Judged(thought, answer, letter, _reason(row, thought, answer, letter, finish_reason, rules))


def split(content: str) -> tuple[str, str]:
    """Thought and answer. A thought that never ends leaves no answer."""
    before, closed, after = content.partition(CLOSE)
    if closed:
        return before.replace(OPEN, "", 1), after
    return (content.replace(OPEN, "", 1), "") if OPEN in content else ("", content)


def letter_of(answer: str, row: Row) -> str | None:
    """The option that an answer names last, or whose words are all that it says."""
    named = (next(filter(None, match.groups())).upper() for match in LETTER.finditer(answer))
    if found := [str(letter) for letter in named if letter in row.options]:
        return found[-1]
    said = _plain(answer)
    return next((letter for letter, text in row.options.items() if _plain(text) == said), None)


def _reason(
    row: Row, thought: str, answer: str, letter: str | None, finish_reason: str | None, rules: Traces
) -> str | None:
    if finish_reason not in ("stop", None):
        return f"not finished ({finish_reason})"
    if not answer:
        return "no answer after the thought" if thought else "empty"
    if loops(thought) or loops(answer):
        return "loops"
    if row.options and letter is None:
        return "no option named"
    if row.options and letter != row.answer:
        return "wrong option"
    if not rules.min_words <= len(answer.split()) <= rules.max_words and not row.options:
        return "too short" if len(answer.split()) < rules.min_words else "too long"
    if len(thought.split()) > rules.max_thought_words:
        return "thought too long"
    if not same_script(row, thought + answer):
        return "other language"
    return None


def loops(text: str) -> bool:
    """The same words in a row again and again."""
    words = text.split()
    grams = Counter(tuple(words[i : i + N_GRAM]) for i in range(len(words) - N_GRAM + 1))
    if grams and max(grams.values()) >= MAX_REPEATS:
        return True
    # Text without spaces: the end repeats itself.
    return bool(re.search(r"(.{4,200}?)\1{3,}\s*$", text[-2000:], re.DOTALL))


def same_script(row: Row, text: str) -> bool:
    """Most letters are of the script that the question is in."""
    letters = [c for c in text if c.isalpha()]
    asked = [c for c in row.question if c.isalpha()]
    if not letters or not asked:
        return True
    chinese = sum(map(_is_cjk, asked)) > len(asked) / 2
    share = sum(map(_is_cjk, letters)) / len(letters)
    # Chinese medicine writes much in Latin letters (CT, mmol/L); the other way round it is a slip.
    return share > 0.4 if chinese else 1 - share >= SCRIPT_SHARE


def _is_cjk(c: str) -> bool:
    return ord(c) > 0x2E7F and unicodedata.name(c, "").startswith(CJK)


def _plain(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())

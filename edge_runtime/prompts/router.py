"""Which template, language and audience a typed question asks for, and which emergencies it speaks of.

Owns how weighted words and the learned network become a choice. Which words, and what they weigh, is data, in
`router.toml`; what the network learned is in `learned.npz`. Must not know a model, or what a template says.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import exp
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import red_flags
from .datafile import LANGUAGES as LANGUAGES
from .learned import fold, network, tokens
from .red_flags import RedFlag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_suffix(".toml")
# Those whose text is material, and those for clinicians alone.
_MATERIAL = ("exam", "evidence", "summary")
_CLINICAL = ("differential", "treatment", "medication", "laboratory", "prevention")
TEMPLATES = (*_CLINICAL, *_MATERIAL, "emergency", "patient", "general")

_SIDE = 4000  # characters that are read at each end of a long text
_MISSPELT = 7  # shorter words have too many neighbours
_HAN = "\u3400-\u9fff"

# A Chinese character is a word; a letter may be followed by digits, as in B12.
_WORD = re.compile(rf"[^\W\d_{_HAN}]{{1,40}}\d{{0,2}}|\d{{1,9}}|[{_HAN}]")
_SCRIPTS = {
    "han": re.compile(f"[{_HAN}]"),
    "kana": re.compile("[\u3041-\u30ff]"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "all": re.compile(r"[^\W\d_]"),
}
# Which templates a clinician, and which a patient or relative, does not get.
_NOT_FOR = (("patient",), _CLINICAL)

# What the network calls the rest of what it knows.
FLAG, ANY_FLAG, LAY = "flag:", "any flag", "lay"
_STEPS = (1, 3, 6, 10, 15, 22)  # sums of weights that are hints of their own

# Signs before an option: what each counts as, and one alternative for each kind.
_NUMBER = {sign: i for signs in ("abcdefgh", "123456789", "①②③④⑤⑥⑦⑧⑨") for i, sign in enumerate(signs)}
_OPTION = re.compile(
    r"(?P<letters>(?<![^\W_])[A-Ha-h](?=\s?[.)）、．:：]|- ))|(?P<capitals>(?<![A-Za-z])[A-H](?![A-Za-z'’]))"
    r"|(?P<numbers>(?<!\w)[1-9](?=\s?[.)）、．](?!\d)))|(?P<circled>[①-⑨])"
)


@dataclass(frozen=True)
class Classified:
    """What a text asks for.

    Args:
        template: id of a built-in template.
        language: `en`, `es`, `fr` or `zh`; None if it is another one or cannot be told.
        audience: who reads the answer.
        confidence: that the template is right, 0 to 1.
        why: the text's own words that decided for the template.
        flags: the emergencies that the text speaks of, or may speak of.
    """

    template: str
    language: str | None
    audience: Literal["clinician", "patient"]
    confidence: float
    why: tuple[str, ...]
    flags: tuple[RedFlag, ...]

    @property
    def red_flags(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(flag.id for flag in self.flags)

    def as_json(self) -> dict[str, Any]:
        """The fields by name, of the emergencies their ids."""
        fields = asdict(self)
        del fields["flags"]
        return fields | {"red_flags": self.red_flags}


def classify(text: str) -> Classified:
    """Template, language and audience for what somebody typed, whatever that is.

    A red flag that a rule found makes it an emergency, unless the text is an exam question, an abstract or a
    note of clinicians. What nothing decides is `general`. Of a text over 8,000 characters the first and the
    last 4,000 are read, for red flags too.
    """
    return _router().classify(text)


def seen(text: str) -> tuple[list[str], list[str]]:
    """What the network is given of a text to learn from: its words, and the hints."""
    return _router().seen(text)


@lru_cache(maxsize=1)
def _router() -> _Router:
    return _Router(tomllib.loads(FILE.read_text("utf-8")))


class _Vote(NamedTuple):
    """What a term says: a template, voice or language, the language it is written in, its weight."""

    name: str
    language: str
    weight: float


class _Hit(NamedTuple):
    """What was found, and where."""

    votes: Sequence[_Vote]
    start: int
    end: int


@dataclass(slots=True)
class _Node:
    """A place within terms: what may come next, and what the term that ends here says."""

    after: dict[str, _Node] = field(default_factory=dict)
    votes: list[_Vote] = field(default_factory=list)


class _Terms:
    """Terms in groups. Long words of them may have a letter too many, one too few, or two exchanged.

    Args:
        groups: terms of a group with what each says. Groups are looked for apart from one another.
    """

    def __init__(self, *groups: Iterable[tuple[str, _Vote]]) -> None:
        self._roots = [_Node() for _ in groups]
        self._known: set[str] = set()
        for root, terms in zip(self._roots, groups):
            for term, vote in terms:
                node = root
                for key in _keys(term):
                    self._known.add(key)
                    node = node.after.setdefault(key, _Node())
                node.votes.append(vote)
        # Stems and endings by two of their letters: few words need more than one look.
        self._starts: dict[str, list[str]] = {}
        self._ends: dict[str, list[str]] = {}
        for key in sorted(self._known, key=len, reverse=True):
            if key.endswith("*"):
                self._starts.setdefault(key[:2], []).append(key)
            elif key.startswith("*"):
                self._ends.setdefault(key[-2:], []).append(key)
        long = sorted(key for key in self._known if len(key) >= _MISSPELT and "*" not in key)
        self._spelled = {variant: key for key in long for variant in (key, *_shorter(key))}

    def find(self, words: Sequence[re.Match[str]]) -> Iterator[_Hit]:
        """The terms in the text, each once, by group: from left to right the longest, without overlap."""
        # For this text only: words of patients are not kept.
        seen = {word: self._symbols(fold(word)) for word in {match[0] for match in words}}
        symbols = [seen[match[0]] for match in words]
        for root in self._roots:
            found: set[int] = set()
            i = 0
            while i < len(words):
                j, end, longest = i, i + 1, None
                nodes = [root.after[key] for key in symbols[i] if key in root.after]
                while nodes:
                    j += 1
                    if ended := next((node for node in nodes if node.votes), None):
                        end, longest = j, ended
                    follow = symbols[j] if j < len(words) else ()
                    nodes = [node.after[key] for key in follow for node in nodes if key in node.after]
                if longest and id(longest) not in found:
                    found.add(id(longest))
                    yield _Hit(longest.votes, words[i].start(), words[end - 1].end())
                i = end

    def _symbols(self, word: str) -> list[str]:
        """The keys under which a word can stand, the nearest first."""
        symbols = [word] if word in self._known else []
        symbols += [key for key in self._starts.get(word[:2], ()) if word.startswith(key[:-1])]
        if not symbols and len(word) >= _MISSPELT:
            rights = (self._spelled.get(variant, "") for variant in (word, *_shorter(word)))
            # Of one length they must have the same letters, exchanged: "synthase" is not "synthèse".
            symbols += [
                right
                for right in rights
                if right[:1] == word[0] and (len(right) != len(word) or sorted(right) == sorted(word))
            ][:1]
        return symbols + [key for key in self._ends.get(word[-2:], ()) if word.endswith(key[1:])]


class _Router:
    """What `router.toml` says, ready to use."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        pairs = table["traditional"]
        self._simple = str.maketrans(pairs[::2], pairs[1::2])
        self._terms = _Terms(
            _listed(table["terms"]),
            _listed(table["voice"]),
            (
                (word, _Vote("", code, 1))
                for code, words in table["languages"].items()
                for word in dict.fromkeys(words.split())
            ),
        )
        self._forms = [(re.compile(form["pattern"], re.IGNORECASE), form) for form in table["form"]]

    def classify(self, text: str) -> Classified:
        if len(text) > 2 * _SIDE:
            text = f"{text[:_SIDE]}\n{text[-_SIDE:]}"
        text = unicodedata.normalize("NFC", text)  # forms are written with whole letters
        flags = red_flags.find(text)
        hits = self._hits(text)
        sums = _sums(hits)
        reading = network().read(text.translate(self._simple), _hints(sums, flags))
        lay = reading.known > 0 and reading.scores[LAY] > 0
        scores = {name: reading.scores[name] for name in TEMPLATES if name not in _NOT_FOR[lay]}
        template = max(scores, key=lambda name: scores[name])
        confidence = 1 / sum(exp(score - scores[template]) for score in scores.values())
        if not reading.known or confidence < self._table["least"]:
            template, confidence = "general", min(confidence, 1 / len(TEMPLATES))
        pleads = sums["patient"] - sums["clinician"] >= self._table["lay"]
        # "Fever" alone may be anything.
        if not flags and reading.known >= 2 and reading.scores[ANY_FLAG] >= 0:
            odds = {label: x for label, x in reading.scores.items() if label.startswith(FLAG)}
            likely = max(odds, key=lambda label: odds[label])
            id = likely.removeprefix(FLAG) if odds[likely] > self._table["named"] else red_flags.UNCLEAR
            flags = (RedFlag(id, reading.words(ANY_FLAG), certain=False),)
        elif flags and (lay or pleads or template not in _MATERIAL):
            template = "emergency"
        if flags and template == "emergency":
            why = [word for flag in flags for word in flag.words]
        else:
            decided = [hit for hit in hits if any(vote.name == template for vote in hit.votes)]
            why = [text[hit.start : hit.end] for hit in sorted(decided, key=attrgetter("start"))]
            why = why or list(reading.words(template))
        return Classified(
            template,
            self._language(text, hits),
            "patient" if lay and template not in _MATERIAL else "clinician",
            round(confidence, 3),
            tuple(dict.fromkeys(why)),
            flags,
        )

    def seen(self, text: str) -> tuple[list[str], list[str]]:
        text = unicodedata.normalize("NFC", text)
        hints = _hints(_sums(self._hits(text)), red_flags.find(text))
        return tokens(text.translate(self._simple)), hints

    def _hits(self, text: str) -> list[_Hit]:
        words = list(_WORD.finditer(text.translate(self._simple)))
        return [*self._terms.find(words), *self._formal(text), *self._options(text)]

    def _formal(self, text: str) -> Iterator[_Hit]:
        """The forms that the text has."""
        for pattern, form in self._forms:
            if not any(sign in text for sign in form.get("needs", ("",))):
                continue
            found = {match[0].lower(): match.span() for match in pattern.finditer(text)}
            if len(found) >= form.get("distinct", 1):
                votes = [_Vote(name, "any", weight) for name, weight in form["weights"].items()]
                yield _Hit(votes, *next(iter(found.values())))

    def _options(self, text: str) -> Iterator[_Hit]:
        """The signs of options, where enough follow one another."""
        runs: dict[str, list[re.Match[str]]] = {kind: [] for kind in self._table["options"]}
        for match in _OPTION.finditer(text):
            run = runs[str(match.lastgroup)]
            # "Hepatitis A, B, C" offers no choice.
            if _NUMBER[match[0].lower()] == len(run) and (not run or match.start() - run[-1].end() > 3):
                run.append(match)
        for kind, run in runs.items():
            option = self._table["options"][kind]
            if len(run) >= option["least"]:
                yield from (_Hit([_Vote("exam", "any", option["weight"] / len(run))], *m.span()) for m in run)

    def _language(self, text: str, hits: Iterable[_Hit]) -> str | None:
        votes = Counter(vote.language for hit in hits for vote in hit.votes)
        del votes["any"], votes["zh"]
        if not text.isascii():
            n = {script: len(pattern.findall(text)) for script, pattern in _SCRIPTS.items()}
            if n["kana"] > n["han"] / 10 or n["latin"] + n["han"] < n["all"] / 2:
                return None
            votes["zh"] = n["han"]
        folded = text.lower()
        for code, pieces in self._table["pieces"].items():
            votes[code] += sum(piece in folded for piece in pieces)
        best = max(votes, key=lambda code: votes[code], default=None)
        return best if best in LANGUAGES and votes[best] else None


def _sums(hits: Iterable[_Hit]) -> Counter[str]:
    """What terms and forms weigh for each template and voice."""
    sums: Counter[str] = Counter()
    for hit in hits:
        sums.update({vote.name: vote.weight for vote in hit.votes})
    del sums[""]
    return sums


def _hints(sums: Mapping[str, float], flags: Sequence[RedFlag]) -> list[str]:
    """What terms, forms and the rules of emergencies found, in the network's names."""
    found = [f"rule:{flag.id}" for flag in flags] + ["rule"] * bool(flags)
    found += [f"{name}>{step}" for name, total in sums.items() for step in _STEPS if total >= step]
    top = max(sums, key=lambda name: sums[name], default="")
    return found + [f"top:{top}"] * bool(top and sums[top] > 0)


def _listed(lists: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]) -> Iterator[tuple[str, _Vote]]:
    """Each term of the lists by name, language and weight, with what it says."""
    for name, languages in lists.items():
        for language, weights in languages.items():
            for weight, terms in weights.items():
                for term in terms:
                    yield term, _Vote(name, language, float(weight))


def _keys(term: str) -> list[str]:
    """The words of a term, folded, with the stars of the first and the last."""
    keys = [fold(word[0]) for word in _WORD.finditer(term)]
    keys[0] = "*" * term.startswith("*") + keys[0]
    keys[-1] += "*" * term.endswith("*")
    return keys


def _shorter(word: str) -> list[str]:
    """The word without one of its letters: two words that share one differ by a letter or two."""
    return [word[:i] + word[i + 1 :] for i in range(len(word))]

"""Medical emergencies in what a person typed, found by rules before any model is asked.

Owns how words are read: folding, terms, negation, distance. Which words make an emergency is data, in
`red_flags.toml`. Must not know a model, a server, or more of the person than this one text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..errors import InvalidRequest, InvalidSetting
from .datafile import LANGUAGES as LANGUAGES
from .datafile import Data, at, fault, read

FILE = Path(__file__).with_suffix(".toml")
MAX_FILE_BYTES = 1 << 19

# Words are cut at 40 letters, a Chinese character is a word of its own.
_TOKEN = re.compile(
    r"\d{1,9}(?:[.,]\d{1,3})?|[^\W\d_\u3400-\u9fff]{1,40}|[\u3400-\u9fff]|\n[ \t\r]*\n|[\n.!?。;,:/()—]"
)
_SENTENCE_ENDS = frozenset(".!?。;")
_CLAUSE_ENDS = frozenset(",:()—\n")
_ENDS = _SENTENCE_ENDS | _CLAUSE_ENDS
_GAP = 5  # words that "_" may stand for
_REACH = 40  # words that "denies" and its like rule at most; this keeps the time linear
_POSSIBLE = "possible"  # the notice where no rule is certain
_NEAR = 10  # words between a finding and what excuses it
_MISSPELT = 6  # shorter words have too many neighbours


UNCLEAR = "unclear"  # an emergency, and no telling which


@dataclass(frozen=True)
class RedFlag:
    """An emergency that the text speaks of.

    Args:
        id: the rule's name in `red_flags.toml`, such as `chest_pain`; or `UNCLEAR`.
        words: the parts of the text that decided, as they were written, in their order.
        certain: whether a rule found it; otherwise it is what the text may speak of.
    """

    id: str
    words: tuple[str, ...]
    certain: bool = True


def _group(names: object) -> object:
    """The names in "fever|chills"."""
    if not isinstance(names, str):
        return names
    group = tuple(names.split("|"))
    if not all(group):
        raise fault("a name in it is empty")
    return group


Group = Annotated[tuple[str, ...], BeforeValidator(_group)]
Terms = Annotated[tuple[str, ...], Field(min_length=1)]
Words = Annotated[str, Field(min_length=1)]
Some = Annotated[tuple[Group, ...], Field(min_length=1)]


class TermLists(Data):
    """What one name stands for in each language."""

    en: Terms = Field(description="English terms.")
    es: Terms = Field(description="Spanish terms.")
    fr: Terms = Field(description="French terms.")
    zh: Terms = Field(description="Chinese terms.")
    any: tuple[str, ...] = Field((), description="Terms of no language.")


class Spoken(Data):
    """A text in each language."""

    en: Words = Field(description="English.")
    es: Words = Field(description="Spanish.")
    fr: Words = Field(description="French.")
    zh: Words = Field(description="Chinese.")


class Context(Data):
    """What takes words out of account."""

    name: Words = Field(description="What rules call it.")
    marks: Group = Field(description='Names of terms that begin it, such as "negation".')
    reach: Literal["before", "after", "around", "text", "self"] = Field(
        description="Which words a mark rules: before, after, around, text (all) or self (its own)."
    )
    stops: Group = Field((), description="Names of terms where it ends.")
    lists: Group = Field((), description="Names of terms before which commas do not end it.")
    commas: Literal["end", "cross"] = Field("end", description="Whether commas end it: end or cross.")


class Rule(Data):
    """An emergency, and which terms speak of it."""

    id: Words = Field(description="The name of the flag.")
    notice: Words = Field(description="The notice that is given for it.")
    name: Spoken = Field(description="What the notice calls it.")
    when: Annotated[tuple[Some, ...], Field(min_length=1)] = Field(
        description='Lists of groups such as "fever|chills"; of each group in a list one term must be there.'
    )
    within: int = Field(60, ge=1, description="At most so many words from the first group's term.")
    unless: Group = Field((), description="Names of terms that excuse what is near them.")
    despite: tuple[str, ...] = Field((), description="Contexts that it ignores.")


class RulesFile(Data):
    """The file red_flags.toml."""

    traditional: Words = Field(description="Pairs: a traditional character and the simplified one.")
    numbers: dict[str, float] = Field(description="Words for numbers.")
    spelled: tuple[str, ...] = Field(description="Words that match misspelled.")
    words: dict[str, str] = Field(description="Lists of alternatives that terms name in braces.")
    terms: dict[str, TermLists] = Field(description="Names, and the terms of each in every language.")
    context: tuple[Context, ...] = Field(description="What takes words out of account.")
    rule: tuple[Rule, ...] = Field(description="The emergencies.")
    notice: dict[str, Spoken] = Field(description="What to tell the person, with {names}.")

    @model_validator(mode="after")
    def _every_name_is_defined(self) -> RulesFile:
        for i, context in enumerate(self.context):
            for key in ("marks", "stops", "lists"):
                _defined(getattr(context, key), self.terms, "terms", "context", i, key)
        contexts = {context.name for context in self.context}
        for i, rule in enumerate(self.rule):
            for groups in rule.when:
                for group in groups:
                    _defined(group, self.terms, "terms", "rule", i, "when")
            _defined(rule.unless, self.terms, "terms", "rule", i, "unless")
            _defined(rule.despite, contexts, "context", "rule", i, "despite")
            _defined([rule.notice], self.notice, "notice", "rule", i, "notice")
        _defined([_POSSIBLE], self.notice, "notice", "notice")
        return self


def _defined(names: Iterable[str], known: Collection[str], what: str, *place: str | int) -> None:
    for name in names:
        if name not in known:
            raise fault(f"{name!r} is not in {what}", *place)


def find(text: str) -> tuple[RedFlag, ...]:
    """What in `text` may be an emergency now, in the order of the rules; empty if nothing is."""
    return rules().find(text)


def notice(flags: Sequence[RedFlag], language: str) -> str:
    """What to tell the person first, in `language` (`en`, `es`, `fr` or `zh`); empty without flags.

    Raises:
        InvalidRequest: there are no notices in this language.
    """
    return rules().notice(flags, language)


@lru_cache(maxsize=1)
def rules() -> Rules:
    """The rules of the package, read once."""
    return Rules(FILE)


# A word, the limits of a number, or a gap.
Key = str | tuple[float, float] | None

# Where a term stands: the numbers of its words, without those that a gap stands for.
_Match = tuple[int, ...]


@dataclass(slots=True)
class _Node:
    """A place within terms: what may come next, and whose terms end here."""

    words: dict[str, tuple[_Node, ...]] = field(default_factory=dict)
    numbers: dict[tuple[float, float], tuple[_Node, ...]] = field(default_factory=dict)
    gaps: tuple[_Node, ...] = ()
    ends: tuple[str, ...] = ()

    def lead(self, key: Key, after: tuple[_Node, ...]) -> None:
        """Lets nodes come next after a key."""
        if key is None:
            self.gaps += after
        elif isinstance(key, str):
            self.words[key] = self.words.get(key, ()) + after
        else:
            self.numbers[key] = self.numbers.get(key, ()) + after

    def join(self, *others: _Node) -> _Node:
        """Takes over all that `others` allow."""
        for other in others:
            for word, after in other.words.items():
                self.words[word] = self.words.get(word, ()) + after
            for limits, after in other.numbers.items():
                self.numbers[limits] = self.numbers.get(limits, ()) + after
            self.gaps += other.gaps
            self.ends += other.ends
        return self

    def followers(self, tokens: Mapping[str, Sequence[str]]) -> set[str] | None:
        """Which of a text's words may come next or after a gap; None if something else may.

        Args:
            tokens: the words of the text by the keys that they stand under.
        """
        nodes = (self, *self.gaps)
        if any(node.numbers for node in nodes) or any(node.gaps for node in self.gaps):
            return None
        return {token for node in nodes for key in node.words.keys() & tokens.keys() for token in tokens[key]}

    def merge(self) -> None:
        """Makes one node of all that a word leads to: one lookup instead of a walk through a list."""
        self.words = {word: _one(nodes) for word, nodes in self.words.items()}
        self.numbers = {limits: _one(nodes) for limits, nodes in self.numbers.items()}


def _one(nodes: tuple[_Node, ...]) -> tuple[_Node, ...]:
    """One node, with one gap at most, that allows what several do."""
    if len(nodes) < 2 and len(nodes[0].gaps) < 2:
        return nodes
    node = _Node().join(*nodes)
    node.gaps = (_Node().join(*node.gaps),) if node.gaps else ()
    return (node,)


class _Fold(dict[int, str]):
    """One character to what it is compared as: no case, marks, full width or traditional form.

    One character at a time, because normalising a long run of marks takes quadratic time.
    """

    def __init__(self, traditional: str) -> None:
        super().__init__()
        self._simple = dict(zip(traditional[::2], traditional[1::2]))

    def __missing__(self, code: int) -> str:
        decomposed = unicodedata.normalize("NFKD", self._simple.get(chr(code), chr(code)))
        kept = "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cf"))
        folded = kept.casefold()
        if code < 0x10000:  # hostile texts must not fill the memory
            self[code] = folded
        return folded


class Rules:
    """Rules that are ready to use.

    Args:
        path: a file like `red_flags.toml`, whose first lines describe it.

    Raises:
        InvalidSetting: the file is not like that; with the line and the key that are at fault.
    """

    def __init__(self, path: Path) -> None:
        says = read(path, RulesFile, MAX_FILE_BYTES)
        self._notices = says.notice
        self._rules = says.rule
        self._contexts = says.context
        self._marks = {name for c in says.context for name in (*c.marks, *c.stops, *c.lists)}
        self._fold = _Fold(says.traditional)
        self._values = {self._fold_text(word): n for word, n in says.numbers.items()}
        self._stems: set[str] = set()
        self._known: set[str] = set(self._values)
        self._root = self._tree(path, says)
        spelled = [self._fold_text(word) for word in says.spelled]
        self._spelled = {variant: word for word in spelled for variant in (word, *_shorter(word))}

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the flags, in the order of the rules."""
        return tuple(rule.id for rule in self._rules)

    def find(self, text: str) -> tuple[RedFlag, ...]:
        folded = text.translate(self._fold)
        tokens = _TOKEN.findall(folded)
        matches = self._matches(tokens)
        if not any(_first_hit(rule, matches, ()) for rule in self._rules):
            return ()  # most questions end here
        off = self._contexts_at(tokens, matches)
        left: dict[tuple[str, ...], dict[str, list[_Match]]] = {}
        hits = []
        for rule in self._rules:
            if rule.despite not in left:
                ruled = set().union(*(words for name, words in off.items() if name not in rule.despite))
                left[rule.despite] = {
                    name: [m for m in at if ruled.isdisjoint(m)] for name, at in matches.items()
                }
            hit = _first_hit(rule, left[rule.despite], rule.unless)
            if hit:
                hits.append((rule.id, hit))
        if not hits:
            return ()
        places = self._places(text, folded)
        return tuple(
            RedFlag(id, tuple(dict.fromkeys(text[places[m[0]][0] : places[m[-1]][1]] for m in hit)))
            for id, hit in hits
        )

    def notice(self, flags: Sequence[RedFlag], language: str) -> str:
        if language not in LANGUAGES:
            raise InvalidRequest(
                f"There are no emergency notices in {language!r}; take one of {', '.join(LANGUAGES)}.",
                "language",
            )
        kinds = {flag.id: self._kind(flag) for flag in flags}
        parts = []
        for kind, texts in self._notices.items():
            if kind in kinds.values():
                names = [getattr(rule.name, language) for rule in self._rules if kinds.get(rule.id) == kind]
                joined = ("、" if language == "zh" else ", ").join(names)
                parts.append(getattr(texts, language).format(names=joined))
        return "\n\n".join(parts)

    def _kind(self, flag: RedFlag) -> str:
        """Which notice it demands. Thoughts of suicide get the same, certain or not."""
        kind = next((rule.notice for rule in self._rules if rule.id == flag.id), _POSSIBLE)
        return kind if flag.certain or kind == "crisis" else _POSSIBLE

    def _fold_text(self, text: str) -> str:
        return text.translate(self._fold)

    def _tree(self, path: Path, says: RulesFile) -> _Node:
        """Where all terms begin. What follows a part of a term is one node for all its alternatives."""
        keys = cache(self._keys)

        @cache
        def begin(name: str, parts: tuple[str, ...]) -> _Node:
            if not parts:
                return _Node(ends=(name,))
            after = (begin(name, parts[1:]),)
            optional = len(parts[0]) > 1 and parts[0].endswith("?")
            node = _Node()
            for option in (parts[0][:-1] if optional else parts[0]).split("|"):
                first, *others = keys(option)
                target = after
                for key in reversed(others):
                    before = _Node()
                    before.lead(key, target)
                    target = (before,)
                node.lead(first, target)
            return node.join(*after) if optional else node

        root = _Node()
        for name, lists in says.terms.items():
            for language, terms in lists:
                for term in terms:
                    try:
                        root.join(begin(name, tuple(term.format_map(says.words).split())))
                    except (KeyError, ValueError) as error:
                        problem = f"there is no list {error}" if isinstance(error, KeyError) else error
                        place = ("terms", name, language)
                        raise InvalidSetting(
                            f"{at(path, place, MAX_FILE_BYTES)}: {term!r} cannot be read: {problem}.",
                            ".".join(place),
                        ) from None
        root.merge()
        return root

    def _keys(self, option: str) -> list[Key]:
        """What must stand one after the other for one alternative of a part.

        Raises:
            ValueError: the alternative is no word, and none of the signs of a term either.
        """
        keys: list[Key] = []
        for piece in option.split("~"):
            if piece == "_":
                keys.append(None)
                continue
            if piece.startswith("<"):
                limits = re.fullmatch(r"<([\d.]+)-([\d.]+)>", piece)
                if not limits:
                    raise ValueError(f"no range in {piece!r}")
                keys.append((float(limits[1]), float(limits[2])))
                continue
            words = _TOKEN.findall(self._fold_text(piece))
            if not words:
                raise ValueError(f"no word in {option!r}")
            if piece.endswith("*"):
                self._stems.add(words[-1])
                words[-1] += "*"
            self._known.update(words)
            keys += words
        return keys

    def _symbols(self, token: str) -> tuple[str, ...]:
        """The keys under which a word can stand in the tree."""
        own = (token,) if token in self._known else ()
        stems = [token[:n] + "*" for n in range(2, min(len(token), 16) + 1) if token[:n] in self._stems]
        if own or stems or len(token) < _MISSPELT:
            return (*own, *stems)
        for variant in (token, *_shorter(token)):
            right = self._spelled.get(variant, token)
            # Of one length they must have the same letters, exchanged, or be long.
            same = len(right) == len(token) and len(token) < 8 and sorted(right) != sorted(token)
            if right != token and right[0] == token[0] and not same:
                return self._symbols(right)
        return ()

    def _matches(self, tokens: Sequence[str]) -> dict[str, list[_Match]]:
        """For each name of terms the places where one of them stands, in order."""
        # For this text only: words of patients are not kept.
        seen = {token: self._symbols(token) for token in dict.fromkeys(tokens)}
        by_symbol: dict[str, list[str]] = {}
        for token, options in seen.items():
            for symbol in options:
                by_symbol.setdefault(symbol, []).append(token)
        starts: dict[str, list[tuple[_Node, set[str] | None]]] = {}
        for symbol, spelled in by_symbol.items():
            for node in self._root.words.get(symbol, ()):
                after = node.followers(by_symbol)
                for token in spelled if node.ends or after is None or after else ():
                    starts.setdefault(token, []).append((node, after))
        for token in seen:
            value = self._number(token)
            if value is None:
                continue
            for (low, high), nodes in self._root.numbers.items():
                if low <= value <= high:
                    after = nodes[0].followers(by_symbol)
                    if nodes[0].ends or after is None or after:
                        starts.setdefault(token, []).append((nodes[0], after))
        symbols = [seen[token] for token in tokens]
        found: dict[str, dict[_Match, None]] = {}
        for i, token in enumerate(tokens):
            for node, after in starts.get(token, ()):
                for name in node.ends:
                    found.setdefault(name, {})[i,] = None
                if after is None or not after.isdisjoint(tokens[i + 1 : i + 2 + _GAP]):
                    self._walk(node, i + 1, (i,), tokens, symbols, found)
        return {name: sorted(places) for name, places in found.items()}

    def _walk(
        self,
        node: _Node,
        i: int,
        at: _Match,
        tokens: Sequence[str],
        symbols: Sequence[tuple[str, ...]],
        found: dict[str, dict[_Match, None]],
    ) -> None:
        """Writes to `found` all terms that go on from `node` with word number `i`."""
        for name in node.ends:
            found.setdefault(name, {})[at] = None
        if i == len(tokens):
            return
        for symbol in symbols[i]:
            for after in node.words.get(symbol, ()):
                self._walk(after, i + 1, (*at, i), tokens, symbols, found)
        if node.numbers and (value := self._number(tokens[i])) is not None:
            for (low, high), nodes in node.numbers.items():
                if low <= value <= high:
                    for after in nodes:
                        self._walk(after, i + 1, (*at, i), tokens, symbols, found)
        for gap in node.gaps:
            for j in range(i, min(i + _GAP + 1, len(tokens))):
                if gap.numbers or gap.gaps or not gap.words.keys().isdisjoint(symbols[j]):
                    self._walk(gap, j, at, tokens, symbols, found)
                if tokens[j] in _ENDS:
                    break

    def _number(self, token: str) -> float | None:
        return float(token.replace(",", ".")) if token[0].isdecimal() else self._values.get(token)

    def _contexts_at(self, tokens: Sequence[str], matches: Mapping[str, list[_Match]]) -> dict[str, set[int]]:
        """For each context the words that it rules."""
        off = {c.name: _words(_of(c.marks, matches)) for c in self._contexts if c.reach == "self"}
        idle = set().union(*off.values())
        # "No" in "no puede respirar" denies nothing; in an idiom, such as "无意识障碍", it does.
        taken = {
            i
            for name, places in matches.items()
            if name not in self._marks
            for m in places
            if idle.isdisjoint(m)
            for i in m
        }
        kinds = {token: _break(token) for token in set(tokens)}
        breaks = [kinds[token] for token in tokens]
        for context in self._contexts:
            if context.reach == "self":
                continue
            ruled = off[context.name] = set()
            marks = _of(context.marks, matches)
            if marks and context.reach == "text":
                ruled.update(range(len(tokens)))
                continue
            stops = {m[0] for m in _of(context.stops, matches)}
            lists = {m[0] for m in _of(context.lists, matches)}
            for mark in marks:
                if not taken.issuperset(mark):
                    ruled.update(_reach(context, mark, breaks, stops, lists))
        return off

    def _places(self, text: str, folded: str) -> list[tuple[int, int]]:
        """Where each word begins and ends in the text as it was written."""
        ends = list(accumulate(len(self._fold[ord(c)]) for c in text))
        return [
            (bisect_left(ends, m.start() + 1), bisect_left(ends, m.end()) + 1)
            for m in _TOKEN.finditer(folded)
        ]


def _shorter(word: str) -> Iterator[str]:
    """The word with each one of its letters left out."""
    return (word[:i] + word[i + 1 :] for i in range(len(word)))


def _break(token: str) -> int:
    """2 if a sentence ends here, 1 if a part of one ends, else 0."""
    return 2 if token in _SENTENCE_ENDS or token.count("\n") > 1 else int(token in _CLAUSE_ENDS)


def _of(group: Group, matches: Mapping[str, list[_Match]]) -> list[_Match]:
    """The places of all terms in a group, in order."""
    groups = [matches[name] for name in group if name in matches]
    return groups[0] if len(groups) == 1 else sorted(m for places in groups for m in places)


def _words(places: Iterable[_Match]) -> set[int]:
    """All words from the first to the last of each match."""
    return {i for m in places for i in range(m[0], m[-1] + 1)}


def _reach(
    context: Context,
    mark: _Match,
    breaks: Sequence[int],
    stops: Collection[int],
    lists: Collection[int],
) -> Iterator[int]:
    """The words that a mark rules."""
    strong = 1 if context.commas == "end" else 2
    if context.reach in ("before", "around"):
        for i in range(mark[0] - 1, max(-1, mark[0] - _REACH), -1):
            if breaks[i] >= strong or i in stops:
                break
            yield i
    if context.reach in ("after", "around"):
        start, end = mark[-1] + 1, min(mark[-1] + _REACH, len(breaks))
        end = next((i for i in range(start, end) if breaks[i] == 2 or i in stops), end)
        if strong == 1:
            # In "no fever, cough or pain" the commas end nothing.
            last = max((i for i in range(start, end) if i in lists), default=start)
            end = next((i for i in range(last, end) if breaks[i]), end)
        yield from range(start, end)


def _first_hit(rule: Rule, matches: Mapping[str, list[_Match]], unless: Group) -> list[_Match]:
    """The matches that fulfil a rule, in order of the text; empty if none do."""
    for groups in rule.when:
        if not all(any(matches.get(name) for name in group) for group in groups):
            continue
        anchors, *others = (_of(group, matches) for group in groups)
        excuses = _of(unless, matches)
        for anchor in anchors:
            if excuses and _distance(anchor, _nearest(anchor, excuses)) <= _NEAR:
                continue
            near = [_nearest(anchor, places) for places in others]
            if all(_distance(anchor, m) <= rule.within for m in near):
                return sorted({anchor, *near})
    return []


def _distance(a: _Match, b: _Match) -> int:
    """Words from one to the other; 0 or 1 if they touch."""
    return max(0, a[0] - b[-1], b[0] - a[-1])


def _nearest(anchor: _Match, places: Sequence[_Match]) -> _Match:
    i = bisect_left(places, anchor)
    return min(places[max(0, i - 1) : i + 2], key=lambda m: _distance(anchor, m))

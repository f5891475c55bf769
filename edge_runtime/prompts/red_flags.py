"""Medical emergencies in what a person typed, found by rules before any model is asked.

Owns how words are read: folding, terms, negation, distance. Which words make an emergency is data, in
`red_flags.toml`. Must not know a model, a server, or more of the person than this one text.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, InvalidSetting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LANGUAGES = ("en", "es", "fr", "zh")
FILE = Path(__file__).with_suffix(".toml")

# Words are cut at 40 letters, a Chinese character is a word of its own.
_TOKEN = re.compile(
    r"\d{1,9}(?:[.,]\d{1,3})?|[^\W\d_\u3400-\u9fff]{1,40}|[\u3400-\u9fff]|\n[ \t\r]*\n|[\n.!?。;,:/()—]"
)
_SENTENCE_ENDS = frozenset(".!?。;")
_CLAUSE_ENDS = frozenset(",:()—\n")
_ENDS = _SENTENCE_ENDS | _CLAUSE_ENDS
_GAP = 5  # words that "_" may stand for
_REACH = 40  # words that "denies" and its like rule at most; this keeps the time linear
_NEAR = 10  # words between a finding and what excuses it
_MISSPELT = 6  # shorter words have too many neighbours


@dataclass(frozen=True)
class RedFlag:
    """An emergency that the text speaks of.

    Args:
        id: the rule's name in `red_flags.toml`, such as `chest_pain`.
        words: the parts of the text that decided, as they were written, in their order.
    """

    id: str
    words: tuple[str, ...]


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
    return Rules(tomllib.loads(FILE.read_text("utf-8")))


# Where a term stands: the numbers of its words, without those that a gap stands for.
_Match = tuple[int, ...]


@dataclass(slots=True)
class _Node:
    """A place within terms: what may come next, and whose terms end here."""

    words: dict[str, list[_Node]] = field(default_factory=dict)
    numbers: dict[tuple[float, float], list[_Node]] = field(default_factory=dict)
    gaps: list[_Node] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def join(self, *others: _Node) -> _Node:
        """Takes over all that `others` allow."""
        for other in others:
            for word, after in other.words.items():
                self.words.setdefault(word, []).extend(after)
            for limits, after in other.numbers.items():
                self.numbers.setdefault(limits, []).extend(after)
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
        for nodes in (*self.words.values(), *self.numbers.values()):
            nodes[:] = [_Node().join(*nodes)]
            if nodes[0].gaps:
                nodes[0].gaps = [_Node().join(*nodes[0].gaps)]


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
        table: what `red_flags.toml` holds; its first lines describe it.

    Raises:
        InvalidSetting: a key that does not exist, a group that is empty, a name that nobody defines; with
            the rule that is at fault.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        _check(table)
        self._notices = table["notice"]
        self._rules = table["rule"]
        self._contexts = table["context"]
        self._marks = {
            name
            for c in self._contexts
            for key in ("marks", "stops", "lists")
            for name in c.get(key, "").split("|")
        }
        self._fold = _Fold(table["traditional"])
        self._values = {self._fold_text(word): float(n) for word, n in table["numbers"].items()}
        self._stems: set[str] = set()
        self._known: set[str] = set(self._values)
        self._root = _Node()
        for name, languages in table["terms"].items():
            for terms in languages.values():
                for term in terms:
                    try:
                        self._root.join(self._term(name, term.format_map(table["words"]).split()))
                    except KeyError as error:
                        raise _refusal("terms", name, f"an unknown list {error.args[0]}") from None
        self._root.merge()
        spelled = [self._fold_text(word) for word in table["spelled"]]
        self._spelled = {variant: word for word in spelled for variant in (word, *_shorter(word))}

    def find(self, text: str) -> tuple[RedFlag, ...]:
        folded = text.translate(self._fold)
        tokens = _TOKEN.findall(folded)
        matches = self._matches(tokens)
        if not any(_first_hit({**rule, "unless": ""}, matches) for rule in self._rules):
            return ()  # most questions end here
        off = self._contexts_at(tokens, matches)
        left: dict[tuple[str, ...], dict[str, list[_Match]]] = {}
        hits = []
        for rule in self._rules:
            despite = tuple(rule.get("despite", ()))
            if despite not in left:
                ruled = set().union(*(words for name, words in off.items() if name not in despite))
                left[despite] = {name: [m for m in at if ruled.isdisjoint(m)] for name, at in matches.items()}
            hit = _first_hit(rule, left[despite])
            if hit:
                hits.append((rule["id"], hit))
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
        ids = {flag.id for flag in flags}
        parts = []
        for kind, texts in self._notices.items():
            names = [r["name"][language] for r in self._rules if r["id"] in ids and r["notice"] == kind]
            if names:
                parts.append(texts[language].format(names=("、" if language == "zh" else ", ").join(names)))
        return "\n\n".join(parts)

    def _fold_text(self, text: str) -> str:
        return text.translate(self._fold)

    def _term(self, name: str, parts: Sequence[str]) -> _Node:
        """Where a term begins. What follows a part is one node for all its alternatives."""
        if not parts:
            return _Node(ends=[name])
        after = self._term(name, parts[1:])
        optional = len(parts[0]) > 1 and parts[0].endswith("?")
        node = _Node()
        for option in (parts[0][:-1] if optional else parts[0]).split("|"):
            target = after
            for key in reversed(self._keys(name, option)):
                before = _Node()
                if key == "_":
                    before.gaps.append(target)
                elif key.startswith("<"):
                    limits = re.fullmatch(r"<([\d.]+)-([\d.]+)>", key)
                    if not limits:
                        raise _refusal("terms", name, f"no range in {key!r}")
                    before.numbers[float(limits[1]), float(limits[2])] = [target]
                else:
                    before.words[key] = [target]
                target = before
            node.join(target)
        if optional:
            node.join(after)
        return node

    def _keys(self, name: str, option: str) -> list[str]:
        """What must stand one after the other for one alternative of a part."""
        keys: list[str] = []
        for piece in option.split("~"):
            if piece == "_" or piece.startswith("<"):
                keys.append(piece)
                continue
            words = _TOKEN.findall(self._fold_text(piece))
            if not words:
                raise _refusal("terms", name, f"a part of {option or '|'!r} that is no word")
            if piece.endswith("*"):
                self._stems.add(words[-1])
                words[-1] += "*"
            self._known.update(words)
            keys += words
        return keys

    def _symbols(self, token: str) -> tuple[str, ...]:
        """The keys under which a word can stand in the tree."""
        own = (token,) if token in self._known else ()
        stems = tuple(token[:n] + "*" for n in range(2, min(len(token), 16) + 1) if token[:n] in self._stems)
        if own or stems or len(token) < _MISSPELT:
            return own + stems
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
            for (low, high), nodes in self._root.numbers.items():
                if value is not None and low <= value <= high:
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
        if node.numbers:
            value = self._number(tokens[i])
            for (low, high), nodes in node.numbers.items():
                if value is not None and low <= value <= high:
                    for after in nodes:
                        self._walk(after, i + 1, (*at, i), tokens, symbols, found)
        for gap in node.gaps:
            for j in range(i, min(i + _GAP + 1, len(tokens))):
                if gap.numbers or gap.gaps or not gap.words.keys().isdisjoint(symbols[j]):
                    self._walk(gap, j, at, tokens, symbols, found)
                if tokens[j] in _ENDS:
                    break

    def _number(self, token: str) -> float | None:
        return float(token.replace(",", ".")) if token[0].isdigit() else self._values.get(token)

    def _contexts_at(self, tokens: Sequence[str], matches: Mapping[str, list[_Match]]) -> dict[str, set[int]]:
        """For each context the words that it rules."""
        # "No" in "no puede respirar" denies nothing.
        taken = {i for name, places in matches.items() if name not in self._marks for m in places for i in m}
        kinds = {token: _break(token) for token in set(tokens)}
        breaks = [kinds[token] for token in tokens]
        off: dict[str, set[int]] = {}
        for context in self._contexts:
            ruled = off[context["name"]] = set()
            marks = _of(context["marks"], matches)
            if marks and context["reach"] == "text":
                ruled.update(range(len(tokens)))
                continue
            stops = {m[0] for m in _of(context.get("stops", ""), matches)}
            lists = {m[0] for m in _of(context.get("lists", ""), matches)}
            for mark in marks:
                if context["reach"] == "self":
                    ruled.update(range(mark[0], mark[-1] + 1))
                elif not taken.issuperset(mark):
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


def _of(names: str, matches: Mapping[str, list[_Match]]) -> list[_Match]:
    """The places of all terms in a group such as "fever|chills", in order."""
    groups = [matches[name] for name in names.split("|") if name in matches]
    return groups[0] if len(groups) == 1 else sorted(m for places in groups for m in places)


def _reach(
    context: Mapping[str, str],
    mark: _Match,
    breaks: Sequence[int],
    stops: Collection[int],
    lists: Collection[int],
) -> Iterator[int]:
    """The words that a mark rules."""
    reach = context["reach"]
    strong = 1 if context.get("commas", "end") == "end" else 2
    if reach in ("before", "around"):
        for i in range(mark[0] - 1, max(-1, mark[0] - _REACH), -1):
            if breaks[i] >= strong or i in stops:
                break
            yield i
    if reach in ("after", "around"):
        start, end = mark[-1] + 1, min(mark[-1] + _REACH, len(breaks))
        end = next((i for i in range(start, end) if breaks[i] == 2 or i in stops), end)
        if strong == 1:
            # In "no fever, cough or pain" the commas end nothing.
            last = max((i for i in range(start, end) if i in lists), default=start)
            end = next((i for i in range(last, end) if breaks[i]), end)
        yield from range(start, end)


def _first_hit(rule: Mapping[str, Any], matches: Mapping[str, list[_Match]]) -> list[_Match]:
    """The matches that fulfil a rule, in order of the text; empty if none do."""
    for groups in rule["when"]:
        anchors, *others = (_of(group, matches) for group in groups)
        if not (anchors and all(others)):
            continue
        excuses = _of(rule.get("unless", ""), matches)
        for anchor in anchors:
            if excuses and _distance(anchor, _nearest(anchor, excuses)) <= _NEAR:
                continue
            near = [_nearest(anchor, places) for places in others]
            if all(_distance(anchor, m) <= rule.get("within", 60) for m in near):
                return sorted({anchor, *near})
    return []


def _distance(a: _Match, b: _Match) -> int:
    """Words from one to the other; 0 or 1 if they touch."""
    return max(0, a[0] - b[-1], b[0] - a[-1])


def _nearest(anchor: _Match, places: Sequence[_Match]) -> _Match:
    i = bisect_left(places, anchor)
    return min(places[max(0, i - 1) : i + 2], key=lambda m: _distance(anchor, m))


_REACHES = ("before", "after", "around", "text", "self")
_KEYS: dict[str, tuple[set[str], set[str]]] = {  # those that must be there, and those that may
    "file": ({"traditional", "numbers", "spelled", "words", "terms", "context", "rule", "notice"}, set()),
    "terms": (set(LANGUAGES), {"any"}),
    "notice": (set(LANGUAGES), set()),
    "context": ({"name", "marks", "reach"}, {"stops", "lists", "commas"}),
    "rule": ({"id", "notice", "name", "when"}, {"within", "unless", "despite"}),
}


def _check(table: Mapping[str, Any]) -> None:
    """Refuses rules that would find nothing, or something else than they say."""
    _check_keys("file", "", table)
    for kind in ("terms", "notice"):
        for name, languages in table[kind].items():
            _check_keys(kind, name, languages)
    for context in table["context"]:
        name = str(context.get("name"))
        _check_keys("context", name, context)
        groups = [context[key] for key in ("marks", "stops", "lists") if key in context]
        _check_names("context", name, groups, table["terms"], "terms")
        _check_names("context", name, [context["reach"]], _REACHES, "reach")
    names = [context["name"] for context in table["context"]]
    for rule in table["rule"]:
        name = str(rule.get("id"))
        _check_keys("rule", name, rule)
        for groups in rule["when"] + ([[rule["unless"]]] if "unless" in rule else []):
            _check_names("rule", name, groups or [""], table["terms"], "terms")
        _check_names("rule", name, rule.get("despite", []), names, "context")
        if rule["notice"] not in table["notice"] or set(rule["name"]) != set(LANGUAGES):
            raise _refusal("rule", name, "no notice or name in each language")


def _check_keys(kind: str, name: str, table: Mapping[str, Any]) -> None:
    must, may = _KEYS[kind]
    wrong = [f"an unknown key {key}" for key in sorted(set(table) - must - may)]
    wrong += [f"no {key}" for key in sorted(must - set(table))]
    wrong += [f"an empty {key}" for key in sorted(table) if table[key] in ("", [], {})]
    if wrong:
        raise _refusal(kind, name, wrong[0])


def _check_names(kind: str, name: str, groups: Sequence[str], known: Collection[str], what: str) -> None:
    for one in (one for group in groups for one in group.split("|")):
        if one not in known:
            raise _refusal(kind, name, f"unknown {what} {one!r}" if one else "an empty group")


def _refusal(kind: str, name: str, problem: str) -> InvalidSetting:
    return InvalidSetting(f"{FILE.name}: {f'{kind} {name}'.strip()} has {problem}.")

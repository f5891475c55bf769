"""Rows of questions and answers, as a student reads them: chat form, loss on the answer only.

Reads rows; never changes what it reads.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Data, Source
from .errors import InvalidModel, InvalidRows

IGNORE = -100
LETTER_PROMPT = "Answer with the letter of the right option."
REASON_PROMPT = "Explain, then answer with the letter of the right option."


@dataclass(frozen=True)
class Row:
    """A question and its answer.

    Attributes:
        options: choices by letter, for multiple choice; `answer` is then the letter.
        source, license: of the data set, for the card.
        where: file and line.
    """

    id: str
    question: str
    answer: str
    options: dict[str, str]
    context: str
    rationale: str
    language: str
    source: str
    license: str
    where: str

    @property
    def asked(self) -> str:
        """Context and question, without the options."""
        return f"{self.context}\n\n{self.question}".strip()

    def prompt(self, form: str) -> str:
        if not self.options or form == "text":
            return self.asked
        listed = "\n".join(f"{letter}. {text}" for letter, text in self.options.items())
        return f"{self.asked}\n\n{listed}\n\n{REASON_PROMPT if form == 'reason' else LETTER_PROMPT}"

    def reply(self, form: str) -> str:
        if not self.options:
            return self.answer
        text = self.options[self.answer]
        if form == "text":
            return text
        if form == "reason":
            return f"{self.rationale}\n\n{self.answer}. {text}"
        return f"{self.answer}. {text}"


@dataclass(frozen=True)
class Example:
    """What a model reads and learns.

    Attributes:
        tokens: prompt, answer and the token that ends it.
        n_prompt: tokens of the prompt, which are not learned.
    """

    id: str
    tokens: tuple[int, ...]
    n_prompt: int


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl file: one object a line with `question` and `answer`; `options` by letter,
    `context`, `rationale`, `language` and `id` where there are any.

    Raises:
        InvalidRows: nothing to read, or a line that is no such object; named with its number.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise InvalidRows(f"{path} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRows(f"{path} cannot be read as UTF-8 text ({error}).") from None
    rows = [_row(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InvalidRows(f"{path} has no rows.")
    return rows


def _row(where: str, line: str) -> Row:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise InvalidRows(f"{where} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise InvalidRows(f"{where} is no object with question and answer.")
    for name in ("question", "answer"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            raise InvalidRows(f"{where} has no text under {name}.")
    options = value.get("options") or {}
    if not isinstance(options, dict) or (options and value["answer"] not in options):
        raise InvalidRows(f"{where}: the answer {value['answer']!r:.40} is none of its options.")
    context = value.get("context") or ""
    return Row(
        id=str(value.get("id") or where),
        question=value["question"],
        answer=value["answer"],
        options={letter: str(text) for letter, text in options.items()},
        context="\n".join(map(str, context)) if isinstance(context, list) else str(context),
        rationale=str(value.get("rationale") or ""),
        language=str(value.get("language") or ""),
        source=str(value.get("source") or ""),
        license=str(value.get("license") or ""),
        where=where,
    )


def read_all(sources: Sequence[Source], seed: int = 0) -> list[list[Row]]:
    """The share of each source's rows that is asked for."""
    return [
        [row for row in read_rows(source.file) if share(row.id, seed) < source.share] for source in sources
    ]


def check_apart(train: Iterable[Row], development: Iterable[Row]) -> None:
    """Refuse questions that are asked twice in training, or in both.

    Two questions are the same when letters and digits agree after normalisation (NFKC) and case folding.

    Raises:
        InvalidRows: naming the rows.
    """
    seen: dict[bytes, Row] = {}
    twice = []
    for row in train:
        first = seen.setdefault(_meaning(row), row)
        if first is not row:
            twice.append((first, row))
    shared = [(seen[key], row) for row in development if (key := _meaning(row)) in seen]
    for pairs, said in ((shared, "is also in the development rows"), (twice, "is there twice")):
        if pairs:
            named = "; ".join(f"{a.where} and {b.where}" for a, b in pairs[:3])
            raise InvalidRows(
                f"{len(pairs)} questions are asked twice: a training question {said}: {named}"
                f"{' …' if len(pairs) > 3 else ''}. Take one of each out."
            )


def _meaning(row: Row) -> bytes:
    text = unicodedata.normalize("NFKC", row.context + row.question).casefold()
    return hashlib.sha256("".join(c for c in text if c.isalnum()).encode()).digest()


def share(id: str, seed: int = 0) -> float:
    """A number from 0 to 1 that is the same for the same id, whatever rows are beside it: for splits."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest()[:8], "big") / 2**64


def pick(rows: Sequence[Row], n: int, seed: int = 0) -> list[Row]:
    """At most `n` of the rows, by stable hash."""
    return sorted(rows, key=lambda row: share(row.id, seed))[:n]


class ChatForm:
    """A student's own chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Find out how an answer begins and ends.

        Raises:
            InvalidModel: the template has no place for an answer.
        """
        self.tokenizer = tokenizer
        # The template is asked with words that it cannot know.
        question, answer = "qqquestionqqq", "aaaansweraaa"
        try:
            whole = self._render([("user", question), ("assistant", answer)])
            prompt = self._render([("user", question)], add_generation_prompt=True)
        except Exception as error:  # jinja2 and templates raise what they like
            raise InvalidModel(
                f"The chat template of {tokenizer.name_or_path} cannot be used: {error}. Take a model "
                "that was trained for chats, or put a chat_template.jinja beside it."
            ) from None
        before, found, after = whole.partition(answer)
        if not found or question not in before:
            raise InvalidModel(
                f"The chat template of {tokenizer.name_or_path} has no place for an assistant's answer."
            )
        end = tokenizer.eos_token or ""
        self.end = after[: after.index(end) + len(end)] if end and end in after else after.rstrip() + end
        # Models that think: the prompt opens the thought, which an answer without one has to close.
        self.opens_thought = prompt.rstrip().endswith("<think>")

    def _render(self, messages: Sequence[tuple[str, str]], **options: Any) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        text: str = self.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        return text

    def prompt(self, question: str) -> list[int]:
        text = self._render([("user", question)], add_generation_prompt=True)
        return self._tokens(text)

    def answer(self, text: str) -> list[int]:
        """The answer's tokens with the one that ends it."""
        if self.opens_thought and "</think>" not in text:
            text = f"\n</think>\n\n{text}"
        return self._tokens(text + self.end)

    def thinking(self, thought: str, answer: str) -> str:
        """A reply that thinks first."""
        opened = "" if self.opens_thought else "<think>\n"
        return f"{opened}{thought}\n</think>\n\n{answer}" if thought else answer

    def example(self, id: str, question: str, answer: str) -> Example:
        prompt = self.prompt(question)
        return Example(id, (*prompt, *self.answer(answer)), len(prompt))

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass
class Counts:
    """What became of the examples."""

    examples: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    cut: int = 0
    dropped: int = 0


def examples_of(
    sources: Sequence[Source],
    rows: Sequence[Sequence[Row]],
    chat: ChatForm,
    data: Data,
    told: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> tuple[list[Example], Counts]:
    """The examples of all sources, in their order, each as often as it is repeated.

    Args:
        told: a teacher's thoughts and answers by the row's id, to be learned instead of the rows' own.

    Raises:
        InvalidRows: examples are too long and `too_long` is "refuse"; or none is left.
    """
    counts, found, long = Counts(), [], []
    for source, given in zip(sources, rows):
        for row in given:
            for name, prompt, reply in _lessons(row, source, chat, told):
                example = chat.example(f"{row.id}:{name}", prompt, reply)
                if len(example.tokens) > data.max_tokens:
                    long.append((row, len(example.tokens)))
                    # Something of the answer has to be left to learn.
                    if data.too_long != "cut" or example.n_prompt >= data.max_tokens * 3 // 4:
                        counts.dropped += 1
                        continue
                    counts.cut += 1
                    example = Example(example.id, example.tokens[: data.max_tokens], example.n_prompt)
                found += [example] * source.repeat
    if long and data.too_long == "refuse":
        row, n = long[0]
        raise InvalidRows(
            f"{len(long)} examples are longer than data.max_tokens = {data.max_tokens}, such as {row.where} "
            f'with {n}. Raise it, or say data.too_long = "cut" or "drop".'
        )
    if not found:
        raise InvalidRows("No example is left; see data.max_tokens and data.too_long.")
    counts.examples = len(found)
    counts.tokens = sum(len(example.tokens) for example in found)
    counts.answer_tokens = counts.tokens - sum(example.n_prompt for example in found)
    return found, counts


def _lessons(
    row: Row, source: Source, chat: ChatForm, told: Mapping[str, Sequence[tuple[str, str]]] | None
) -> Iterator[tuple[str, str, str]]:
    """Name, prompt and reply of everything that a row teaches."""
    if told is not None:
        for n, (thought, answer) in enumerate(told.get(row.id, ())):
            yield f"trace-{n}", row.prompt("reason"), chat.thinking(thought, answer)
        return
    for form in source.forms if row.options else source.forms[:1]:
        if form != "reason" or row.rationale:
            yield form, row.prompt(form), row.reply(form)


def batch(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Tensors of a batch, padded at the left, so that the answers lie at the end of every row.

    `labels` has shape (n_rows, n_last): for the last n_last positions the token that is there, IGNORE where
    it is not part of an answer. Its first column is always IGNORE: what comes before an answer.
    """
    width = max(len(example.tokens) for example in examples)
    last = 1 + max(len(example.tokens) - example.n_prompt for example in examples)
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(examples), last), IGNORE)
    for i, example in enumerate(examples):
        tokens = torch.tensor(example.tokens)
        ids[i, width - len(tokens) :], mask[i, width - len(tokens) :] = tokens, 1
        answer = tokens[example.n_prompt :]
        labels[i, last - len(answer) :] = answer
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


def languages(rows: Iterable[Row]) -> list[str]:
    """By how often they occur."""
    return [name for name, _ in Counter(row.language for row in rows if row.language).most_common()]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

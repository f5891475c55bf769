"""Asks the rows of an examination, as many at once as there are slots, and marks the answers.

Knows the worker and its line, but no files and no terminal: each marked answer goes to a callback.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..engine.request import Delta, Done, Failed, Request, TokenLogprob
from ..errors import ContextLengthExceeded, EngineDied, MedgeError, MemoryShort
from ..prompts.template import Template
from ..prompts.thinking import Family
from ..server.line import Ask
from ..server.worker import Worker
from . import likelihood
from .coverage import covered
from .exam import Exam, written
from .letter import extract
from .results import TOO_LONG, Line
from .rows import Row

T = TypeVar("T")

# A row that the engine's process ends with so often is what it ends of.
MAX_TRIES = 2


@dataclass(frozen=True)
class _Answered:
    """What came back of one request."""

    text: str
    prompt_logprobs: tuple[TokenLogprob, ...]
    done: Done


@dataclass
class Sitting:
    """One model that sits an examination.

    Attributes:
        n_slots: requests that are with the worker at once.
        templates: needed where answers are written.
        model: the name of the model, for templates.
        family: the model's.
    """

    worker: Worker
    n_slots: int
    exam: Exam
    templates: Mapping[str, Template]
    model: str
    family: Family

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.n_slots)

    async def run(self, todo: Iterable[tuple[Row, int]], on_line: Callable[[Line], None]) -> None:
        """Ask all of `todo`, rows with the number of a sample. When this ends, by whatever, nothing goes on.

        Raises:
            MedgeError: the engine has failed, or a row cannot be asked; a row that is too long for a slot is
                no error but a line that says so.
        """
        rest: Iterator[tuple[Row, int]] = iter(todo)

        async def lane() -> None:
            for row, sample in rest:
                on_line(await self.answer(row, sample))

        await _together([lane() for _ in range(self.n_slots)])

    async def answer(self, row: Row, sample: int = 0) -> Line:
        """The marked answer to one row.

        Raises:
            MedgeError: see `run`.
        """
        line: Line = {"id": row.id, "sample": sample}
        if self.exam.keep_text:
            line["question"] = row.question
        try:
            if self.exam.by == "generate":
                return line | await self._generated(row, sample)
            return line | await (self._compared(row) if row.options else self._weighed(row))
        except ContextLengthExceeded as error:
            return line | {"end": TOO_LONG, "why": error.message}

    # -- the ways

    async def _generated(self, row: Row, sample: int) -> Line:
        ask = written(row, self.exam, sample, self.templates, self.model, self.family)
        answered = await self._ask(ask)
        line = _cost([answered]) | {
            "end": answered.done.finish_reason,
            "n_thoughts": answered.done.n_thoughts,
        }
        if self.exam.keep_text:
            line["text"] = answered.text
        if not row.options:
            return line | {"covered": covered(row.must_have, answered.text)}
        predicted = extract(answered.text, row.options)
        return line | {"predicted": predicted, "right": predicted == row.answer}

    async def _compared(self, row: Row) -> Line:
        """Multiple choice: the text of which option is the most probable continuation?"""
        answered, scores = await self._scored(row, list(row.options.values()))
        by_letter = dict(zip(row.options, scores))
        predicted = likelihood.best(by_letter)
        per_byte = likelihood.best_per_byte(by_letter, row.options)
        return _cost(answered) | {
            "end": "scored",
            "predicted": predicted,
            "right": predicted == row.answer,
            "predicted_per_byte": per_byte,
            "right_per_byte": per_byte == row.answer,
            "nats": {letter: round(score.nats, 4) for letter, score in by_letter.items()},
        }

    async def _weighed(self, row: Row) -> Line:
        """Free text: how probable is the answer?"""
        answered, (score,) = await self._scored(row, [row.answer])
        return _cost(answered) | {"end": "scored", "nats": round(score.nats, 4), "n_answer": score.n_tokens}

    async def _scored(self, row: Row, texts: Sequence[str]) -> tuple[list[_Answered], list[likelihood.Score]]:
        """The continuations of a row's prompt, all scored from the same place on."""
        prompt = likelihood.prompt(row)
        parts = [likelihood.continuation(text) for text in texts]
        answered = await _together([self._read(prompt, part) for part in parts])
        begins = [likelihood.border(a.prompt_logprobs, part) for a, part in zip(answered, parts)]
        read = [a.prompt_logprobs for a in answered]
        if None in begins:
            *whole, alone = await _together([self._read("", prompt + part) for part in [*parts, ""]])
            answered += [*whole, alone]
            read = [a.prompt_logprobs for a in whole]
            # From one place for all: an option must not win by where its tokens happen to begin.
            begins = [min(likelihood.common(tokens, alone.prompt_logprobs) for tokens in read)] * len(read)
        return answered, [likelihood.score(tokens, begin or 0) for tokens, begin in zip(read, begins)]

    async def _read(self, context: str, text: str) -> _Answered:
        """Log-probabilities of `text` behind `context`, and of a few tokens before it."""
        request = Request("", [], max_tokens=0, n_top_logprobs=0, echo=True)
        ask = Ask(request, text=context + text, is_plain=True, n_context=len(context))
        return await self._ask(ask)

    # -- the worker

    async def _ask(self, ask: Ask) -> _Answered:
        """One request to its end. It is asked again where that is not its fault; cancelled if this is."""
        tries = 0
        async with self._places:
            while True:
                tries += 1
                try:
                    own = replace(ask.request, id=uuid.uuid4().hex)
                    return await self._once(replace(ask, request=own))
                except MemoryShort as error:
                    tries -= 1  # it has not begun
                    await asyncio.sleep(error.retry_after_s or 1.0)
                except EngineDied:
                    if tries == MAX_TRIES:
                        raise

    async def _once(self, ask: Ask) -> _Answered:
        ticket = self.worker.submit(ask)
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        try:
            async for event in ticket.events():
                if isinstance(event, Delta):
                    text.append(event.text)
                    logprobs += event.prompt_logprobs
                elif isinstance(event, Failed):
                    raise event.error
                else:
                    return _Answered("".join(text), tuple(logprobs), event)
        finally:
            self.worker.cancel(ticket)
        raise MedgeError("The engine left a question without an end; ask once more.")


def _cost(answered: Sequence[_Answered]) -> Line:
    """Tokens of all requests of a question, and the seconds that they held a slot."""
    timings = [a.done.timing for a in answered]
    return {
        "n_prompt": sum(t.n_prompt for t in timings),
        "n_generated": sum(t.n_generated for t in timings),
        "seconds": round(sum(t.total_s - t.queued_s for t in timings), 4),
    }


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. One that fails, or being cancelled, ends the others before this returns."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""What an examination asks, in which way, and how a row becomes a prompt for an answer that is written.

Knows the templates, but no worker and no results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidSetting
from ..prompts.consult import AUTO, prepare
from ..prompts.template import LANGUAGES, Template, find
from ..prompts.thinking import Family
from ..server.line import Ask
from ..server.wanted import Wanted
from .rows import QuestionFile, Row

Way = Literal["likelihood", "generate"]
# Instead of a template: the question alone.
NONE = "none"
_CHOOSE = {
    "en": "Answer with the letter of the one best option.",
    "es": "Responde con la letra de la única opción mejor.",
    "fr": "Répondez par la lettre de la seule meilleure proposition.",
    "zh": "请用唯一最佳选项的字母作答。",
}


@dataclass(frozen=True)
class Exam:
    """Questions and the way of asking them.

    Attributes:
        by: "likelihood" compares given answers, "generate" lets the model write one.
        template: of multiple choice by generating; "none" for question and options alone.
        samples: answers a question, with the seeds `seed`, `seed + 1`, ...
        limit: only so many rows of each file were read.
        temperature: instead of the template's.
        max_tokens: of thoughts and answer together, instead of the template's.
        max_thinking_tokens: of them at most thoughts, where the model has them.
        keep_text: questions and answers are written to the results.
    """

    files: tuple[QuestionFile, ...]
    by: Way = "likelihood"
    template: str = "exam"
    samples: int = 1
    seed: int = 0
    limit: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    max_thinking_tokens: int | None = None
    keep_text: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the answers, beside the questions and the model."""
        shared: dict[str, Any] = {"by": self.by, "limit": self.limit, "keep_text": self.keep_text}
        if self.by == "likelihood":
            return shared
        names = ("template", "samples", "seed", "temperature", "max_tokens", "max_thinking_tokens")
        return shared | {name: getattr(self, name) for name in names}


def check(exam: Exam, templates: Mapping[str, Template]) -> None:
    """Whether each row can be asked in this way.

    Raises:
        NotFound: there is no such template.
        InvalidSetting: a template without a place for options; a row that only the other way can ask.
    """
    if exam.by == "generate" and exam.template != NONE:
        template = find(templates, exam.template)
        if "options" not in template.takes:
            raise InvalidSetting(
                f"The template {template.id} has no place for options. Take exam, none, or one of your own "
                "that has."
            )
    for file in exam.files:
        for row in file.rows:
            if exam.by == "generate" and not row.options and not row.must_have:
                raise InvalidSetting(
                    f"{file.name}: the row {row.id} has neither options nor must_have to judge a written "
                    "answer by. Take --by likelihood, or add statements."
                )
            if exam.by == "likelihood" and not row.answer:
                raise InvalidSetting(
                    f"{file.name}: the row {row.id} has no answer whose likelihood could be taken. Take "
                    "--by generate, or add an answer."
                )


def digest(templates: Mapping[str, Template]) -> str:
    """Tells one set of templates from another."""
    texts = [templates[name].model_dump_json(exclude={"path"}) for name in sorted(templates)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def written(
    row: Row, exam: Exam, sample: int, templates: Mapping[str, Template], model: str, family: Family
) -> Ask:
    """One sample of a row that the model writes an answer to.

    A question with options goes through the exam's template. One for free text goes through the template
    that fits it, as in `medge ask`, with its context in front.

    Args:
        model: the name of the model, for templates.
        family: the model's.

    Raises:
        MedgeError: the template refuses the row.
    """
    language = row.language if row.language in LANGUAGES else LANGUAGES[0]
    wanted = Wanted(exam.max_tokens, exam.max_thinking_tokens, exam.temperature, exam.seed + sample)
    if exam.template == NONE:
        return wanted.ask([{"role": "user", "content": _plain(row, language)}], family)
    text = row.question if row.options else _with_context(row)
    consult = prepare(
        [{"role": "user", "content": text}],
        exam.template if row.options else AUTO,
        templates,
        model,
        language=language,
        context=row.context if row.options else None,
        options=row.options or None,
    )
    return wanted.ask(consult, family)


def _with_context(row: Row) -> str:
    return f"{row.context}\n\n{row.question}" if row.context else row.question


def _plain(row: Row, language: str) -> str:
    if not row.options:
        return _with_context(row)
    options = "\n".join(f"{letter}. {text}" for letter, text in row.options.items())
    return f"{_with_context(row)}\n\n{options}\n\n{_CHOOSE[language]}"

"""A typed question made ready for a model, and what stands before and after its answer whatever it says.

Puts together the router, a template and the emergency rules. Knows no model, no tokens and no server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequest
from . import red_flags
from .router import Classified, classify
from .template import LANGUAGES, Template, find

AUTO = "auto"
_QUESTION_ENDS = ("?", "？")

Message = dict[str, str]


@dataclass(frozen=True)
class Consult:
    """One question, ready.

    Attributes:
        language: of the prompt and of what is said around the answer.
        messages: for the model.
        history: what the next turn's messages begin with, before this answer, if its template is the same:
            questions stand there as they were typed.
        notice: what an emergency demands, or "".
        closing: when to seek care (for patients), which model wrote it, and that it is no diagnosis.
    """

    template: Template
    language: str
    classified: Classified
    messages: tuple[Message, ...]
    history: tuple[Message, ...]
    notice: str
    closing: str

    @property
    def before(self) -> str:
        """What the answer begins with. Text around it would make JSON unreadable; see `facts`."""
        return f"{self.notice}\n\n" if self.notice and self.template.output == "text" else ""

    @property
    def after(self) -> str:
        """What the answer ends with."""
        return f"\n\n{self.closing}" if self.template.output == "text" else ""

    @property
    def facts(self) -> dict[str, Any]:
        """What was chosen and why, for people and programs."""
        chosen = {"template": self.template.id, "language": self.language}
        return self.classified.as_json() | chosen | {"notice": self.notice, "closing": self.closing}


def prepare(
    messages: Sequence[Message],
    name: str,
    templates: Mapping[str, Template],
    model: str,
    *,
    language: str | None = None,
    context: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Consult:
    """The last message put into a template; earlier ones stay, without what was said around their answers.

    Args:
        messages: turns of user and assistant; the last is the question.
        name: id of a template, or "auto" for the one that the question asks for.
        context: material for the answer. One that is required may also be a paragraph of the question.
        model: the name that answers are signed with.
        language: instead of the question's own.

    Raises:
        NotFound: there is no such template.
        InvalidRequest: a system message, which the template brings itself; a last message that is not the
            user's or is empty; something that the template requires and did not get, or has no place for.
    """
    if any(message["role"] == "system" for message in messages):
        raise InvalidRequest(
            "A template brings its own system text. Leave out the system message, or template.", "messages"
        )
    if messages[-1]["role"] != "user":
        raise InvalidRequest(
            "The last message is the question that the template is for; let it be the user's.", "messages"
        )
    question = messages[-1]["content"]
    classified = classify(question)
    kind, spoken = classified.template, language or classified.language
    # A question such as "and for a child?" goes on with what was asked before.
    for turn in reversed(messages[:-1]):
        if spoken and (kind != "general" or name != AUTO):
            break
        if turn["role"] == "user":
            earlier = classify(turn["content"])
            kind = earlier.template if kind == "general" else kind
            spoken = spoken or earlier.language
    language = spoken or LANGUAGES[0]
    template = find(templates, kind if name == AUTO else name)
    if context is None and "context" in template.requires:
        if apart := _apart(question):
            context, question = apart
        elif name == AUTO:
            template = find(templates, "general")
    system, asked = template.render(question, language, context=context, options=options)
    flags = _flags(messages[-1]["content"])
    for_patients = "patient" in (template.audience, classified.audience)
    before = (system, *_bare(messages[:-1], templates, model))
    return Consult(
        template,
        language,
        classified,
        (*before, asked),
        (*before, messages[-1]),
        red_flags.notice(flags, language) if flags else "",
        _closing(template, language, model, for_patients),
    )


def beginnings(templates: Mapping[str, Template], language: str) -> tuple[tuple[Message, ...], ...]:
    """What the prompts of these templates begin with: the messages before a question."""
    return tuple(({"role": "system", "content": t.system(language)},) for t in templates.values())


def _flags(text: str) -> tuple[red_flags.RedFlag, ...]:
    """Emergencies in all of a text: the network reads the ends of a long one, the rules read it whole."""
    return red_flags.find(text) or classify(text).flags


def _apart(text: str) -> tuple[str, str] | None:
    """Material and question of a text that holds both: the question is its last paragraph, or its first."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    if len(paragraphs) < 2:
        return None
    if paragraphs[-1].rstrip().endswith(_QUESTION_ENDS):
        return "\n\n".join(paragraphs[:-1]), paragraphs[-1]
    if paragraphs[0].rstrip().endswith(_QUESTION_ENDS):
        return "\n\n".join(paragraphs[1:]), paragraphs[0]
    return None


def _closing(template: Template, language: str, model: str, for_patients: bool) -> str:
    words = getattr(template.shared, language)
    signed = words.closing.replace("{model}", model)
    return f"{words.seek_care}\n\n{signed}" if for_patients else signed


def _bare(turns: Sequence[Message], templates: Mapping[str, Template], model: str) -> list[Message]:
    """Earlier turns as the model wrote them: it would learn to write our words itself."""
    template = next(iter(templates.values()))
    closings = [_closing(template, code, model, patient) for code in LANGUAGES for patient in (True, False)]
    bare: list[Message] = []
    for turn in turns:
        text = turn["content"]
        if turn["role"] == "assistant":
            flags = _flags(bare[-1]["content"]) if bare else ()
            for said in (red_flags.notice(flags, code) for code in LANGUAGES if flags):
                text = text.removeprefix(said).lstrip("\n") if text.startswith(said) else text
            for said in closings:
                text = text.removesuffix(said).rstrip("\n") if text.endswith(said) else text
        bare.append(turn | {"content": text})
    return bare

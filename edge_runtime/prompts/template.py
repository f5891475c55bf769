"""The medical prompt templates: what one says, how it renders a question, and which there are.

A template is data, a TOML file of the folder `templates/` or of a folder of the user's. This module knows no
model, no tokens, and not which template fits a question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..errors import InvalidRequest, InvalidSetting, NotFound
from .datafile import LANGUAGES as LANGUAGES
from .datafile import Data, at, fault, read

BUILT_IN = Path(__file__).parent / "templates"
SHARED = "shared.toml"

_PLACEHOLDER = re.compile(r"\{(question|context|options)\}")
_LIKE_A_PLACEHOLDER = re.compile(r"\{\s*\w+\s*\}")


def _prose(text: str) -> str:
    if not text.strip():
        raise fault("it is empty")
    return text.strip()


def _heading(text: str) -> str:
    if len(text.splitlines()) > 1:
        raise fault("a heading is one line")
    return _prose(text)


# Without white space at both ends, which TOML's long strings come with.
Prose = Annotated[str, AfterValidator(_prose)]
Heading = Annotated[str, AfterValidator(_heading)]
Piece = Annotated[str, Field(min_length=1)]


class Opening(Data):
    """What all templates of one language begin with, word for word."""

    opening: Prose = Field(description="First sentences of every system text.")
    headings: Prose = Field(description="The sentence before the list of headings.")
    seek_care: Prose = Field(description="What every answer for patients ends with: when to seek care.")
    closing: Prose = Field(description="What every answer ends with; {model} stands for the model's name.")

    @field_validator("closing")
    @classmethod
    def _names_the_model(cls, text: str) -> str:
        if "{model}" not in text:
            raise fault("it has no {model}")
        return text


class Shared(Data):
    """The file shared.toml."""

    en: Opening = Field(description="The beginning in English: opening and headings.")
    es: Opening = Field(description="The beginning in Spanish: opening and headings.")
    fr: Opening = Field(description="The beginning in French: opening and headings.")
    zh: Opening = Field(description="The beginning in Chinese: opening and headings.")


class Text(Data):
    """A template in one language."""

    system: Prose = Field(description="What the system text says after the shared beginning.")
    user: Prose = Field(
        description="How the question is wrapped: {question}, and {context} or {options} where they make "
        "sense, each in a paragraph of its own."
    )
    sections: tuple[Heading, ...] = Field((), description="Headings that the answer must have, in order.")

    @field_validator("system")
    @classmethod
    def _no_placeholder(cls, text: str) -> str:
        if found := _LIKE_A_PLACEHOLDER.search(text):
            raise fault(f"{found[0]} would stay as it is, since only user takes placeholders")
        return text

    @field_validator("user")
    @classmethod
    def _placeholders(cls, text: str) -> str:
        for found in _LIKE_A_PLACEHOLDER.findall(text):
            if not _PLACEHOLDER.fullmatch(found):
                raise fault(f"{found} is no placeholder")
        names = _PLACEHOLDER.findall(text)
        if "question" not in names:
            raise fault("it has no {question}")
        if len(set(names)) < len(names):
            raise fault("a placeholder stands twice")
        if any(len(_PLACEHOLDER.findall(paragraph)) > 1 for paragraph in _paragraphs(text)):
            # The paragraph of what is not given is left out.
            raise fault("two placeholders share a paragraph; put an empty line between them")
        return text

    @field_validator("sections")
    @classmethod
    def _each_once(cls, sections: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sections)) < len(sections):
            raise fault("a heading stands twice")
        return sections

    @property
    def takes(self) -> frozenset[str]:
        """Names of the placeholders."""
        return frozenset(_PLACEHOLDER.findall(self.user))


class Sampling(Data):
    """How tokens are chosen; None leaves it to the model."""

    temperature: float | None = Field(
        default=None, ge=0, le=2, strict=True, description="From 0, greedy, to 2."
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        strict=True,
        description="Probability mass of the kept tokens: above 0, up to 1.",
    )


class Budget(Data):
    """Room for the answer, in tokens."""

    max_thinking_tokens: int = Field(
        ge=0, le=1 << 20, strict=True, description="Tokens of thoughts before the answer; 0 for none."
    )
    max_answer_tokens: int = Field(ge=1, le=1 << 20, strict=True, description="Tokens of the answer itself.")


class Example(Data):
    """A test that a template carries with it."""

    question: str = Field(description="What is asked.")
    language: Literal["en", "es", "fr", "zh"] = Field(description="One of en, es, fr, zh.")
    context: str | None = Field(None, description="Material for {context}.")
    options: dict[str, str] | None = Field(None, description="Choices by letter for {options}.")
    must_contain: tuple[Piece, ...] = Field(min_length=1, description="Texts that the prompt must contain.")
    must_not_contain: tuple[Piece, ...] = Field((), description="Texts that the prompt must not contain.")


class TemplateFile(Data):
    """What a template's file says."""

    id: str = Field(
        pattern="^[a-z][a-z0-9_-]{0,63}$",
        description="A small letter, then small letters, digits, - or _; 64 at most.",
    )
    version: int = Field(ge=1, strict=True, description="A whole number from 1, raised with every change.")
    audience: Literal["clinician", "patient"] = Field(
        description='Who reads the answer: "clinician" or "patient".'
    )
    output: Literal["text", "json"] = Field(description='"text", or "json" with an [answer_schema].')
    requires: tuple[Literal["context", "options"], ...] = Field(
        (), description='What must come with a question: "context", "options" or both.'
    )
    sampling: Sampling = Field(Sampling(), description="temperature and top_p; without them the model's own.")
    budget: Budget = Field(description="max_thinking_tokens and max_answer_tokens.")
    answer_schema: dict[str, Any] | None = Field(
        None, description='JSON schema of the answer: type = "object" with properties.'
    )
    en: Text = Field(description="The English text: system, user and sections.")
    es: Text = Field(description="The Spanish text: system, user and sections.")
    fr: Text = Field(description="The French text: system, user and sections.")
    zh: Text = Field(description="The Chinese text: system, user and sections.")
    tests: tuple[Example, ...] = Field(
        min_length=1, description="Questions, and what their prompts must and must not contain."
    )

    @field_validator("answer_schema")
    @classmethod
    def _describes_an_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        try:
            json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError):
            raise fault("a date, a time, inf or nan in it has no JSON") from None
        properties = schema.get("properties")
        if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
            raise fault("it does not describe an object with properties")
        return schema

    @model_validator(mode="after")
    def _fits_together(self) -> TemplateFile:
        if (self.output == "json") != (self.answer_schema is not None):
            raise fault('"json" goes with an [answer_schema], "text" without', "output")
        for name in self.requires:
            if name not in self.takes:
                raise fault(f"no text has {{{name}}}", "requires")
        for language in LANGUAGES:
            text = self.text(language)
            if text.takes != self.takes:
                raise fault("its placeholders are not those of the English text", language, "user")
            if len(text.sections) != len(self.en.sections):
                raise fault("there are not as many headings as in English", language, "sections")
            if self.answer_schema is None:
                continue
            if text.sections:
                raise fault("an answer in JSON has no headings", language, "sections")
            for name in self.answer_schema["properties"]:
                if f'"{name}"' not in text.system:
                    raise fault(f'it does not tell the model of "{name}" in the answer', language, "system")
        return self

    @property
    def takes(self) -> frozenset[str]:
        """Which of question, context and options have a place in the prompt."""
        return self.en.takes

    def text(self, language: str) -> Text:
        """This template's own text.

        Raises:
            InvalidRequest: there is no such language.
        """
        texts = {"en": self.en, "es": self.es, "fr": self.fr, "zh": self.zh}
        if language not in texts:
            raise InvalidRequest(
                f"The templates do not speak {language!r}. Take one of: {', '.join(LANGUAGES)}.", "language"
            )
        return texts[language]


class Template(TemplateFile):
    """A template that can be used."""

    shared: Shared = Field(repr=False, description="The beginning that it has in common with the others.")
    path: Path = Field(description="The file that it was read from.")

    @property
    def is_built_in(self) -> bool:
        return self.path.parent == BUILT_IN

    def system(self, language: str) -> str:
        """The whole system text: shared beginning, the template's own part, the list of headings.

        Raises:
            InvalidRequest: there is no such language.
        """
        text = self.text(language)
        shared: Opening = getattr(self.shared, language)
        parts = [shared.opening, text.system]
        if text.sections:
            parts.append("\n".join([shared.headings, *(f"## {heading}" for heading in text.sections)]))
        return "\n\n".join(parts)

    def render(
        self,
        question: str,
        language: str,
        *,
        context: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> tuple[dict[str, str], ...]:
        """The chat messages of a question: system, then user.

        Question, context and options come through unchanged, whatever they hold. Paragraphs for a context or
        options that are not given are left out.

        Args:
            question: what the user asks.
            language: en, es, fr or zh.
            context: material for the answer, such as an abstract, a note or what is known of a patient.
            options: choices by their letter, A to Z, in the order in which they are shown.

        Raises:
            InvalidRequest: an unknown language; an empty question, context or option; something that this
                template requires and did not get, or got and has no place for.
        """
        text = self.text(language)
        values = {"question": question}
        if context is not None:
            values["context"] = context
        if options is not None:
            values["options"] = _lettered(options)
        for name, value in values.items():
            if name not in text.takes:
                raise InvalidRequest(
                    f"The template {self.id} has no place for {name}. Leave it out or take another one.", name
                )
            if not value.strip():
                may_leave = "" if name in ("question", *self.requires) else ", or leave it out"
                raise InvalidRequest(f"{name} is empty. Send some text{may_leave}.", name)
        for name in self.requires:
            if name not in values:
                raise InvalidRequest(f"The template {self.id} needs {name}. Send it with the question.", name)
        return (
            {"role": "system", "content": self.system(language)},
            {"role": "user", "content": _filled(text.user, values)},
        )

    def show(self, language: str) -> str:
        """What a person wants to see of it: its facts, the system text, and the form of a question.

        Raises:
            InvalidRequest: there is no such language.
        """
        sampling = self.sampling.model_dump(exclude_none=True)
        budget = self.budget
        facts = {
            "template": f"{self.id}, version {self.version}, for a {self.audience}",
            "file": self.path,
            "requires": ", ".join(self.requires) or "only the question",
            "answer": json.dumps(self.answer_schema, ensure_ascii=False) if self.answer_schema else "text",
            "sampling": ", ".join(f"{k} {v}" for k, v in sampling.items()) or "the model's own",
            "tokens": f"{budget.max_thinking_tokens} to think, {budget.max_answer_tokens} to answer",
        }
        head = "\n".join(f"{name}: {value}" for name, value in facts.items())
        return "\n\n".join([head, self.system(language), self.text(language).user])


def load(folder: Path | None = None) -> dict[str, Template]:
    """All templates by id: the built-in ones, then those of a folder, which may replace them.

    In `folder`, each `*.toml` is a template, whose own tests have to pass; `shared.toml` gives all templates
    another beginning. Names that begin with a dot are the system's own files, and subfolders are not read.

    Raises:
        InvalidSetting: a file that cannot be used, with its line; then none is loaded.
    """
    own = _files(folder) if folder is not None else []
    shared = _shared(folder)
    templates = {t.id: t for t in (_read(path, shared) for path in _files(BUILT_IN))}
    added: dict[str, Template] = {}
    for path in own:
        template = _tested(_read(path, shared))
        if template.id in added:
            raise InvalidSetting(
                f"{at(path, ('id',))}: {template.id} is also the id of {added[template.id].path}. "
                "Give one of them another id.",
                "id",
            )
        added[template.id] = template
    return templates | added


def check(path: Path) -> Template:
    """The template of one file, whose own tests pass. `shared.toml` beside it, if there is one, begins it.

    Raises:
        InvalidSetting: the file cannot be used, with its line and the remedy.
    """
    if path.name == SHARED:
        raise InvalidSetting(f"{path} is what templates begin with, not a template. Check one beside it.")
    return _tested(_read(path, _shared(path.parent)))


def find(templates: Mapping[str, Template], name: str) -> Template:
    """The template of this id.

    Raises:
        NotFound: there is none; with those that are spelled alike.
    """
    if name in templates:
        return templates[name]
    close = get_close_matches(name.lower(), templates, 3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(sorted(templates))}."
    raise NotFound(f"There is no template {name!r}. {hint}", "template")


def rows(templates: Mapping[str, Template]) -> list[dict[str, str]]:
    """One row a template, in the order of ids: id, version, audience, output, takes, from."""
    return [
        {
            "id": template.id,
            "version": str(template.version),
            "audience": template.audience,
            "output": template.output,
            "takes": ", ".join(sorted(template.takes - {"question"})),
            "from": "built in" if template.is_built_in else str(template.path),
        }
        for _, template in sorted(templates.items())
    ]


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _filled(form: str, values: Mapping[str, str]) -> str:
    """`form` with its placeholders filled in one pass, so that what is filled in is never read as a form."""
    kept = [p for p in _paragraphs(form) if all(name in values for name in _PLACEHOLDER.findall(p))]
    return _PLACEHOLDER.sub(lambda found: values[found[1]], "\n\n".join(kept))


def _lettered(options: Mapping[str, str]) -> str:
    for letter, text in options.items():
        if not re.fullmatch("[A-Z]", letter):
            raise InvalidRequest(
                f"The option {letter!r} is not named by a letter, A to Z. Rename it.", "options"
            )
        if not text.strip():
            raise InvalidRequest(f"The option {letter} is empty. Give it a text, or leave it out.", "options")
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def _files(folder: Path) -> list[Path]:
    """The templates of a folder, in the order of their names."""
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix == ".toml" and not p.name.startswith("."))
    except OSError as error:
        raise InvalidSetting(
            f"The folder of templates {folder} cannot be read: {error.strerror}. Name one with *.toml files."
        ) from None
    if not found:
        raise InvalidSetting(f"The folder of templates {folder} has no *.toml file. Name another, or none.")
    return [p for p in found if p.name != SHARED]


def _shared(folder: Path | None) -> Shared:
    own = folder / SHARED if folder is not None else None
    return read(own if own is not None and own.exists() else BUILT_IN / SHARED, Shared)


def _read(path: Path, shared: Shared) -> Template:
    says = read(path, TemplateFile)
    return Template.model_construct(**dict(says), shared=shared, path=path)


def _tested(template: Template) -> Template:
    for number, example in enumerate(template.tests):
        for key, problem in _failures(template, example):
            raise InvalidSetting(
                f"{at(template.path, ('tests', number, key))}: test {number + 1} of {template.id} fails: "
                f"{problem}. Change the text or the test.",
                f"tests.{number}.{key}",
            )
    return template


def _failures(template: Template, example: Example) -> Iterator[tuple[str, str]]:
    """Keys of `example` that do not hold, with what is wrong."""
    try:
        messages = template.render(
            example.question, example.language, context=example.context, options=example.options
        )
    except InvalidRequest as error:
        yield error.param or "question", error.message.rstrip(".")
        return
    prompt = "\n\n".join(message["content"] for message in messages)
    for wanted in example.must_contain:
        if wanted not in prompt:
            yield "must_contain", f"the prompt does not contain {wanted!r}"
    for unwanted in example.must_not_contain:
        if unwanted in prompt:
            yield "must_not_contain", f"the prompt contains {unwanted!r}"

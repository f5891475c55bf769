"""Messages to the model's own chat form.

The template comes from the model file and is not trusted: it runs in jinja2's immutable sandbox, in the
engine's process. This module knows no tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols as loop_controls
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidTemplate
from .thinking import family, opened, without_thoughts

# What no template of a real model comes near.
MAX_TEMPLATE_CHARS = 1_000_000
MAX_STEPS = 200_000

# Longer than any prompt that fits a context.
MAX_CHARS = 64_000_000


class ChatTemplate:
    """The chat form of one model.

    Args:
        source: jinja2 text from the model file; None or empty if the model has none.
        special: the names of special tokens that templates ask for, such as `bos_token`.
    """

    def __init__(self, source: str | None, special: dict[str, str]) -> None:
        self.family = family(source)
        self._special = special
        self._template = None
        self._problem = ""
        if not source:
            self._problem = (
                "This model has no chat template, so it cannot take messages; "
                "send a prompt to /v1/completions instead."
            )
            return
        if len(source) > MAX_TEMPLATE_CHARS:
            self._problem = (
                f"The model's chat template has {len(source)} characters, which is more than "
                f"{MAX_TEMPLATE_CHARS}; the file is damaged or hostile. Take another model."
            )
            return
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loop_controls])
        environment.globals.pop("lipsum")
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # a template that is deep enough fails in Python's own compiler
            self._problem = (
                f"The model's chat template is broken: {_first_line(error)}. "
                "Take another file of this model, or send a prompt to /v1/completions."
            )

    @property
    def problem(self) -> str | None:
        """Why `render` cannot work with this model, or None."""
        return self._problem or None

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt for `messages`, up to where the assistant's answer begins, or its thoughts.

        Thoughts of earlier answers are left out. A system message becomes the beginning of the first question
        where the model's family has no place for one.

        Raises:
            InvalidTemplate: there is no usable template, or it refuses these messages.
        """
        if self._template is None:
            raise InvalidTemplate(self._problem, "messages")
        if not self.family.takes_system:
            messages = _without_system(messages)
        if self.family.thinks:
            messages = [_answer_only(message) for message in messages]
        try:
            with _bounded_steps():
                parts, n_chars = [], 0
                for part in self._template.generate(
                    messages=[dict(m) for m in messages], add_generation_prompt=True, **self._special
                ):
                    n_chars += len(part)
                    parts.append(part)
                    if n_chars > MAX_CHARS:
                        raise SecurityError(f"it writes more than {MAX_CHARS} characters")
                prompt = "".join(parts)
                return opened(prompt) if self.family.thinks else prompt
        except Exception as error:  # a template can raise anything that Python can
            raise InvalidTemplate(
                f"The model's chat template refuses these messages: {_first_line(error)}. "
                "Change their order or roles.",
                "messages",
            ) from None


def _without_system(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """System texts at the beginning put before the first question. Others stay where they are."""
    roles = [message["role"] for message in messages]
    n = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    if n == 0 or n == len(roles) or roles[n] != "user":
        return messages
    texts = [message["content"] for message in messages[: n + 1]]
    return [messages[n] | {"content": "\n\n".join(texts)}, *messages[n + 1 :]]


def _answer_only(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "assistant":
        return message
    return message | {"content": without_thoughts(message["content"])}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which bounds ranges, with a bound for what arithmetic builds."""

    intercepted_binops = frozenset({"*", "**", "+"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(v) if isinstance(v, (str, list, tuple)) else v for v in (left, right)]
        if operator == "**" or (operator == "*" and sizes != [left, right]):
            bound = 64 if operator == "**" else MAX_CHARS // max(1, min(sizes))
            if max(sizes) > bound:
                raise SecurityError(f"{operator} would build something too large")
        elif operator == "+" and sizes != [left, right] and sum(sizes) > MAX_CHARS:
            raise SecurityError("+ would build something too large")
        return super().call_binop(context, operator, left, right)


@contextmanager
def _bounded_steps() -> Iterator[None]:
    """Ends a template that loops or calls itself without end. Counts the lines that it runs."""
    n_left = MAX_STEPS

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal n_left
        if frame.f_code.co_filename != "<template>":
            return None
        n_left -= 1
        if n_left < 0:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300].rstrip(".")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own escapes for HTML

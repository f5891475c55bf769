"""Messages to the model's own chat form.

The template comes from the model file and is not trusted: it runs in jinja2's immutable sandbox, in the
engine's process. This module knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols as loop_controls
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidTemplate

# What no template of a real model comes near; the sandbox bounds ranges, but not what is built in a loop.
MAX_TEMPLATE_CHARS = 1_000_000


class ChatTemplate:
    """The chat form of one model.

    Args:
        source: jinja2 text from the model file; None or empty if the model has none.
        special: the names of special tokens that templates ask for, such as `bos_token`.
    """

    def __init__(self, source: str | None, special: dict[str, str]) -> None:
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
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loop_controls]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, ValueError) as error:
            self._problem = (
                f"The model's chat template is broken: {_first_line(error)}. "
                "Take another file of this model, or send a prompt to /v1/completions."
            )

    @property
    def problem(self) -> str | None:
        """Why `render` cannot work with this model, or None."""
        return self._problem or None

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt for `messages`, up to where the assistant's answer begins.

        Raises:
            InvalidTemplate: there is no usable template, or it refuses these messages.
        """
        if self._template is None:
            raise InvalidTemplate(self._problem, "messages")
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=True, **self._special
            )
        except Exception as error:  # a template can raise anything that Python can
            raise InvalidTemplate(
                f"The model's chat template refuses these messages: {_first_line(error)}. "
                "Change their order or roles.",
                "messages",
            ) from None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300].rstrip(".")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own escapes for HTML

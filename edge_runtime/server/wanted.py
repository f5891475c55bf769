"""What medge's own commands want of an answer, as a request for their worker. The API's is in openai.py."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.request import Grammar, Request, Sampling
from ..prompts.consult import Consult
from ..prompts.thinking import Family
from .line import Ask

# Without a template that says so.
ANSWER_TOKENS, THINKING_TOKENS = 512, 1024


@dataclass(frozen=True)
class Wanted:
    """What a person has said of an answer; None leaves it to the template, then to the model's family."""

    max_tokens: int | None = None
    max_thinking_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def ask(
        self,
        asked: Consult | Sequence[Mapping[str, Any]],
        family: Family,
        sampling: Mapping[str, Any] | None = None,
        conversation: str | None = None,
    ) -> Ask:
        """The request.

        Args:
            asked: a question in its template, or messages as they are.
            family: the model's.
            sampling: where neither person, template nor family say anything.
            conversation: see `Request`.
        """
        chosen: dict[str, Any] = dict(family.sampling or sampling or {})
        answer_tokens, thinking_tokens, grammar, n_own = ANSWER_TOKENS, THINKING_TOKENS, None, None
        if isinstance(asked, Consult):
            template = asked.template
            messages, history, n_own = asked.messages, asked.history, 1
            chosen |= template.sampling.model_dump(exclude_none=True)
            answer_tokens = template.budget.max_answer_tokens
            thinking_tokens = template.budget.max_thinking_tokens
            if template.answer_schema:
                grammar = Grammar("json_schema", json.dumps(template.answer_schema))
        else:
            messages = history = tuple(dict(message) for message in asked)
        own = {"temperature": self.temperature, "seed": self.seed}
        chosen |= {name: value for name, value in own.items() if value is not None}
        if self.max_thinking_tokens is not None:
            thinking_tokens = self.max_thinking_tokens
        max_tokens = self.max_tokens or answer_tokens + (thinking_tokens if family.thinks else 0)
        request = Request(
            uuid.uuid4().hex, [], max_tokens=max_tokens, sampling=Sampling(**chosen), grammar=grammar,
            cut_loops=True, conversation=conversation,
        )  # fmt: skip
        return Ask(
            request, messages=messages, history=history, max_thoughts=thinking_tokens,
            answer_tokens=answer_tokens, n_own=n_own,
        )  # fmt: skip

"""Answers bound to a grammar: which tokens may come next. The only file that imports llguidance."""

from __future__ import annotations

import threading
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from ..errors import DecodeFailed, InvalidGrammar
from .llama import Logits, Model
from .request import Grammar

# One space after a colon or comma, and no other: small models lose themselves in free white space.
_JSON_LAYOUT: Any = {"whitespace_flexible": False}


class Grammars:
    """Compiles grammars for one model's vocabulary. Thread-safe."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> Constraint:
        """A constraint for one answer.

        Raises:
            InvalidGrammar: it does not parse, or asks for what cannot be enforced.
        """
        try:
            if grammar.kind == "gbnf":
                form = llguidance.grammar_from("gbnf", grammar.text)
            else:
                form = llguidance.LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_LAYOUT)
            matcher = llguidance.LLMatcher(self._tokens(), form, log_level=0)
        except (ValueError, RecursionError) as error:
            raise _invalid(grammar, str(error)) from None
        if matcher.is_error():
            raise _invalid(grammar, matcher.get_error())
        return Constraint(matcher, self._model.n_vocab)

    def _tokens(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokenizer is None:  # made when first needed: it takes up to a second
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._model))
                self._tokenizer = llguidance.LLTokenizer(wrapper, eos_token=sorted(self._model.ends))
            return self._tokenizer


class Constraint:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._mask = llguidance.numpy.allocate_token_bitmask(1, n_vocab)

    def apply(self, logits: Logits) -> None:
        """Make every token impossible that may not come next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        allowed = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little", count=self._n_vocab)
        logits[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        """Move on by one token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DecodeFailed(
                f"The grammar cannot be followed any further: {_first_line(self._matcher.get_error())}. "
                "Simplify it."
            )


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.eos_token_id = model.eos
        self.bos_token_id = model.bos if model.bos >= 0 else None
        self.tokens = [model.piece(t, special=True) for t in range(model.n_vocab)]
        self.special_token_ids = [t for t in range(model.n_vocab) if model.is_control(t)]

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._model.tokenize(text, special=False, add_bos=False)


def _invalid(grammar: Grammar, reason: str) -> InvalidGrammar:
    if grammar.kind == "gbnf":
        return InvalidGrammar(
            f"The grammar cannot be used: {_first_line(reason)}. Send GBNF with a rule named root.", "grammar"
        )
    return InvalidGrammar(
        f"The JSON schema cannot be enforced: {_first_line(reason)}. Leave that part out, or change it.",
        "response_format",
    )


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line] or ["no reason given"]
    return lines[0][:300].rstrip(".")

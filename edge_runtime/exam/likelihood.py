"""Answers by likelihood: the plain prompt, and what of a text's token log-probabilities is the answer's.

Knows no worker and no rows of results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..engine.request import TokenLogprob
from .rows import Row


def prompt(row: Row) -> str:
    """What every continuation follows: question and `Answer:`, as plain text, the context first."""
    context = f"Context: {row.context}\n" if row.context else ""
    return f"{context}Question: {row.question}\nAnswer:"


def continuation(text: str) -> str:
    """An option or an answer behind the prompt. The space is its own: tokenizers join it with the word."""
    return f" {text}"


@dataclass(frozen=True)
class Score:
    """Natural-log probability of a continuation, and how many tokens that is the sum of."""

    nats: float
    n_tokens: int


def border(tokens: Sequence[TokenLogprob], text: str) -> int | None:
    """The position of the token that `text`, the end of what was tokenized, begins with.

    None where no token begins there: the tokenizer has joined prompt and text, or has changed the text. Where
    one does, what is before are the tokens of the prompt alone, since no merge went over the border.
    """
    wanted, found = text.encode(), b""
    position = len(tokens)
    while position and len(found) < len(wanted):
        position -= 1
        found = tokens[position].piece + found
    return position if found == wanted else None


def common(tokens: Sequence[TokenLogprob], alone: Sequence[TokenLogprob]) -> int:
    """How many tokens a text shares with its prompt alone: what comes then is the continuation's."""
    pairs = zip(tokens, alone)
    return next((i for i, (a, b) in enumerate(pairs) if a.token != b.token), min(len(tokens), len(alone)))


def score(tokens: Sequence[TokenLogprob], begin: int) -> Score:
    """The sum from token `begin` on. The first token of all, which nothing predicts, counts for nothing."""
    scored = [token.logprob for token in tokens[begin:] if token.logprob is not None]
    return Score(sum(scored), len(scored))


def best(scores: Mapping[str, Score]) -> str:
    """The option with the most probable text: what lm-evaluation-harness calls acc. The first of equals."""
    return max(scores, key=lambda letter: scores[letter].nats)


def best_per_byte(scores: Mapping[str, Score], options: Mapping[str, str]) -> str:
    """The option with the most log-probability a byte of UTF-8, so that long options are not at a loss.

    lm-evaluation-harness's acc_norm divides by characters, which is the same for ASCII.
    """
    return max(scores, key=lambda letter: scores[letter].nats / len(options[letter].encode()))

"""The retention gate: how much of the BF16 model is left in 4 bits, on held-out text?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .compare import Difference
from .errors import GateFailed
from .native import N_CTX, N_SEQ, Model
from .parity import windows
from .progress import Report, silent
from .recipe import Gates
from .text import Row


@dataclass
class Retention:
    """What was found. `problems` is empty if the gate is passed.

    Attributes:
        accuracy: of multiple choice by likelihood of the option's text, per token; None without such rows.
        p_value: of the paired sign test (McNemar, exact) that both models answer equally well.
        accuracy_interval: 95 % interval of the difference in accuracy, 4-bit minus BF16.
    """

    n_positions: int = 0
    perplexity_bf16: float | None = None
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    mean_kl: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    n_questions: int = 0
    accuracy_bf16: float | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    p_value: float | None = None
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(
    bf16: Model,
    quantized: Model,
    rows: Sequence[Row],
    gates: Gates,
    n_tokens: int = 16_384,
    n_questions: int = 100,
    on_progress: Report = silent,
) -> Retention:
    """Compare on `rows`.

    Raises:
        GateFailed: more is lost than `gates` allow.
    """
    found = Retention()
    difference = Difference()
    chosen = [row for row in rows if row.options][:n_questions]
    texts = windows(bf16.tokenize, [row.text for row in rows], n_tokens)
    total = len(texts) + len(chosen)
    for done, tokens in enumerate(texts, 1):
        difference.add(tokens, bf16.logits(tokens), quantized.logits(tokens))
        on_progress(done, total)
    found.n_positions = difference.n_positions
    found.perplexity_bf16, found.perplexity = difference.perplexity_reference, difference.perplexity
    found.perplexity_ratio = difference.perplexity_ratio
    found.mean_kl, found.kl_p99, found.top1 = difference.mean_kl, difference.kl_p99, difference.top1
    right: list[tuple[bool, bool]] = []
    for done, row in enumerate(chosen, 1):
        right.append((answer(bf16, row) == row.answer, answer(quantized, row) == row.answer))
        on_progress(len(texts) + done, total)
    if right:
        _count(found, right)
    _judge(found, gates)
    if found.problems:
        raise GateFailed(
            "The 4-bit model lost more than the recipe allows: "
            + "; ".join(found.problems)
            + ". Take a larger type or budget, or other limits under [gates]."
        )
    return found


def answer(model: Model, row: Row) -> str:
    """The letter of the option whose text is most likely per token after the question.

    Of a question that is too long the beginning is left out, of an option the end.
    """
    longest = N_CTX // (2 * N_SEQ)
    options = {key: model.tokenize(text)[:longest] for key, text in row.options.items()}
    question = model.tokenize(row.prompt + "\n\n")[-N_CTX // 2 :]
    keys = [key for key, tokens in options.items() if tokens]
    likely: list[float] = []
    for i in range(0, len(keys), N_SEQ):
        likely += model.log_likelihoods(question, [options[key] for key in keys[i : i + N_SEQ]])
    return keys[likely.index(max(likely))] if keys else ""


def _count(found: Retention, right: list[tuple[bool, bool]]) -> None:
    n = len(right)
    found.n_questions = n
    found.accuracy_bf16 = sum(a for a, _ in right) / n
    found.accuracy = sum(b for _, b in right) / n
    lost = sum(a and not b for a, b in right)
    won = sum(b and not a for a, b in right)
    found.p_value = sign_test(lost, won)
    # Of a paired difference of proportions (Wald).
    difference = (won - lost) / n
    spread = 1.96 * math.sqrt(max(0.0, (won + lost) / n - difference**2) / n)
    found.accuracy_interval = (difference - spread, difference + spread)


def sign_test(lost: int, won: int) -> float:
    """Two-sided exact test that both are equally probable."""
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def _judge(found: Retention, gates: Gates) -> None:
    limits = (
        ("perplexity ratio", found.perplexity_ratio, gates.max_perplexity_ratio, 1),
        ("mean KL", found.mean_kl, gates.max_mean_kl, 1),
        ("share of equal top tokens", found.top1, gates.min_top1, -1),
    )
    for name, value, limit, sign in limits:
        if value is None or not sign * value <= sign * limit:  # NaN fails too
            found.problems.append(f"{name} {value:.4g} instead of {limit:g}")
    if found.accuracy is not None and found.accuracy_bf16 is not None and found.p_value is not None:
        loss = found.accuracy_bf16 - found.accuracy
        # A loss that chance explains is none.
        if loss > gates.max_accuracy_loss and found.p_value < 0.05:
            found.problems.append(f"accuracy {loss:.1%} lower, more than {gates.max_accuracy_loss:.1%}")

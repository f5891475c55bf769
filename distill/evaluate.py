"""How good a student is on rows that it has not seen: nats per answer token, and multiple choice.

Every number is kept row by row, so that two models are compared on the same rows: McNemar's exact test for
answers, a bootstrap over rows for nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from .data import ChatForm, Example, Row, batch, chunks
from .logits import at_answers
from .losses import cross_entropy
from .progress import Report, silent


@dataclass
class Answers:
    """One model's results on one file, a value a row.

    Attributes:
        nats, n_tokens: of the answer; of plain text, of the text.
        right_text: the right option's words were the most likely, per token; None without options.
        right_letter: its letter was, after the options were listed.
        majority: share of the most frequent letter, what always saying it would give.
    """

    ids: list[str] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    n_tokens: list[int] = field(default_factory=list)
    right_text: list[bool] = field(default_factory=list)
    right_letter: list[bool] = field(default_factory=list)
    majority: float | None = None

    @property
    def nll(self) -> float:
        return sum(self.nats) / sum(self.n_tokens)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def nats(
    model: Any, examples: Sequence[Example], pad: int, size: int = 8, on_progress: Report = silent
) -> tuple[list[float], list[int]]:
    """Nats of each example's answer, and its number of tokens. Examples of like length are read together."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    sums, counts = [0.0] * len(examples), [0] * len(examples)
    device = next(model.parameters()).device
    done, total = 0, sum(len(example.tokens) for example in examples)
    for some in chunks(order, size):
        inputs = {name: t.to(device) for name, t in batch([examples[i] for i in some], pad).items()}
        logits, targets, wanted = at_answers(model, model.get_output_embeddings(), inputs)
        lengths = wanted.sum(-1).tolist()
        for i, n, of_row in zip(some, lengths, cross_entropy(logits, targets).split(lengths)):
            sums[i], counts[i] = float(of_row.double().sum()), n
        done += sum(len(examples[i].tokens) for i in some)
        on_progress(done, total)
    return sums, counts


@torch.inference_mode()  # type: ignore[untyped-decorator]
def choose(model: Any, chat: ChatForm, row: Row) -> tuple[str, str]:
    """The option that a model takes: by its words, per token, and by its letter when all are listed."""
    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)

    def read(tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=device)
        return torch.log_softmax(
            model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0, -1].float(), -1
        )

    listed = chat.prompt(row.prompt("letter"))
    after = read(listed)
    letter = max(row.options, key=lambda name: float(after[chat.answer(name)[0]]))
    asked = chat.prompt(row.prompt("text"))
    # What both prompts begin with is read once.
    same = next((i for i, (a, b) in enumerate(zip(asked, listed)) if a != b), min(len(asked), len(listed)))
    same = min(same, len(asked) - 1)
    if same < len(listed):
        cache.crop(same - len(listed))  # so many less
    first = read(asked[same:])
    n_end = len(chat.answer(""))
    options = {
        name: tokens[: len(tokens) - n_end]
        for name, text in row.options.items()
        if (tokens := chat.answer(text))
    }
    cache.batch_repeat_interleave(len(options))
    width = max(len(tokens) for tokens in options.values())
    ids = torch.full((len(options), width), 0, device=device)
    for i, tokens in enumerate(options.values()):
        ids[i, : len(tokens)] = torch.tensor(tokens)
    # Padding is at the right, where no token of an option sees it.
    expected = torch.log_softmax(model(input_ids=ids, past_key_values=cache).logits.float(), -1)
    likely = {}
    for i, (name, tokens) in enumerate(options.items()):
        total = float(first[tokens[0]]) + sum(
            float(expected[i, at - 1, token]) for at, token in enumerate(tokens) if at
        )
        likely[name] = total / len(tokens)
    return max(likely, key=lambda name: likely[name]), letter


def sign_test(lost: int, won: int) -> float:
    """Two-sided exact test that losing and winning are equally probable (McNemar)."""
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson)."""
    z = 1.96
    middle = (right + z * z / 2) / (n + z * z)
    spread = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return middle - spread, middle + spread


def ratio(model: Answers, base: Answers, seed: int = 0, n_samples: int = 2000) -> tuple[float, float, float]:
    """nll of a model over that of another on the same rows, and its 95 % interval (bootstrap over rows)."""
    if model.ids != base.ids:
        raise ValueError("the two were measured on different rows")
    a, b = np.array(model.nats), np.array(base.nats)
    drawn = np.random.default_rng(seed).integers(0, len(a), (n_samples, len(a)))
    low, high = np.quantile(a[drawn].sum(1) / b[drawn].sum(1), (0.025, 0.975))
    return float(a.sum() / b.sum()), float(low), float(high)

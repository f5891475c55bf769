"""Two models on the same tokens: how far apart are what they expect?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


@dataclass
class Difference:
    """Collected over texts, one number a position. `add` takes the logits of both models for one text."""

    kl: list[float] = field(default_factory=list)
    agree: list[bool] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    nll_reference: list[float] = field(default_factory=list)

    def add(self, tokens: Sequence[int], reference: Array, other: Array) -> None:
        """Take one text.

        Args:
            tokens: of length n.
            reference, other: logits after each token, shape (n, n_vocab).
        """
        p = torch.log_softmax(torch.from_numpy(reference), -1)
        q = torch.log_softmax(torch.from_numpy(other), -1)
        self.kl += (p.exp() * (p - q)).sum(-1).tolist()
        self.agree += (p.argmax(-1) == q.argmax(-1)).tolist()
        following = torch.tensor(tokens[1:]).unsqueeze(-1)
        self.nll_reference += (-p[:-1].gather(-1, following).squeeze(-1)).tolist()
        self.nll += (-q[:-1].gather(-1, following).squeeze(-1)).tolist()

    @property
    def n_positions(self) -> int:
        return len(self.kl)

    @property
    def mean_kl(self) -> float:
        """In nats; tiny negative values are rounding."""
        return float(np.mean(self.kl))

    @property
    def kl_p99(self) -> float:
        return float(np.percentile(self.kl, 99))

    @property
    def top1(self) -> float:
        """Share of positions where both have the same most probable token."""
        return float(np.mean(self.agree))

    @property
    def perplexity(self) -> float:
        return float(np.exp(np.mean(self.nll)))

    @property
    def perplexity_reference(self) -> float:
        return float(np.exp(np.mean(self.nll_reference)))

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.perplexity_reference

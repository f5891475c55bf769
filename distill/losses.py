"""What a student is told about a teacher's expectations: pure functions of log-probabilities.

A teacher is known by its k most probable tokens at each position; all others are one bucket more, so that
both distributions are over the same k + 1 outcomes and sum to one. Forward and reverse KL and their symmetric
mean (Jensen-Shannon) as in Hinton et al., arXiv 1503.02531, and Agarwal et al., arXiv 2306.13649.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The smallest probability of a bucket. float32 cannot tell a sum of probabilities of 1 - 1e-7 from 1.
TINY = 1e-6


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats at each position: shape (n,), of `logits` (n, n_vocab) and token ids `targets` (n,)."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def with_rest(top: Tensor) -> Tensor:
    """Log-probabilities of the k outcomes, and of all others together: shape (n, k + 1).

    Args:
        top: log-probabilities of k different outcomes, shape (n, k).
    """
    known = top.logsumexp(-1, keepdim=True).clamp(max=math.log1p(-TINY))
    return torch.cat([top, torch.log(-torch.expm1(known))], -1)


def at_top(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """A student's log-probabilities of a teacher's top tokens and of the rest: shape (n, k + 1).

    Args:
        logits: shape (n, n_vocab).
        ids: the teacher's top tokens, shape (n, k).
    """
    scaled = logits.float() / temperature
    return with_rest(scaled.gather(-1, ids) - scaled.logsumexp(-1, keepdim=True))


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student): shape (n,). The student must cover all that the teacher does.

    Args:
        teacher, student: log-probabilities of the same outcomes, shape (n, n_outcomes).
    """
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher): shape (n,). The student may keep to a part of what the teacher does."""
    return forward_kl(student, teacher)


def jsd(teacher: Tensor, student: Tensor) -> Tensor:
    """Jensen-Shannon divergence: the mean KL of both to their mixture, shape (n,), at most ln 2."""
    mixture = torch.logaddexp(teacher, student) - math.log(2)
    return (forward_kl(teacher, mixture) + forward_kl(student, mixture)) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}


def distillation(
    logits: Tensor,
    targets: Tensor,
    ids: Tensor,
    teacher: Tensor,
    *,
    divergence: str = "forward_kl",
    weight: float = 0.5,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The two parts of the loss, to be added: from the rows and from the teacher, each of shape (n,).

    The first is cross-entropy times 1 - weight, the second the divergence times weight and the square of the
    temperature, so that its gradients keep their size (Hinton et al.).

    Args:
        logits: the student's, shape (n, n_vocab).
        targets: the rows' tokens, shape (n,).
        ids, teacher: the teacher's top tokens and their log-probabilities at this temperature, shape (n, k).
    """
    apart = DIVERGENCES[divergence](with_rest(teacher.float()), at_top(logits, ids, temperature))
    return (1 - weight) * cross_entropy(logits, targets), weight * temperature**2 * apart

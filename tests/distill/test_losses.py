from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill import losses

HALF_QUARTERS = torch.tensor([[0.5, 0.25, 0.25]]).log()
QUARTERS_HALF = torch.tensor([[0.25, 0.25, 0.5]]).log()


def test_divergences_of_two_small_distributions() -> None:
    # 1/2 ln 2 + 0 - 1/4 ln 2
    assert losses.forward_kl(HALF_QUARTERS, QUARTERS_HALF).item() == pytest.approx(0.25 * math.log(2))
    assert losses.reverse_kl(HALF_QUARTERS, QUARTERS_HALF).item() == pytest.approx(0.25 * math.log(2))
    # The mixture is 3/8, 1/4, 3/8.
    by_hand = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert losses.jsd(HALF_QUARTERS, QUARTERS_HALF).item() == pytest.approx(by_hand)


def test_forward_and_reverse_are_not_the_same() -> None:
    sure = torch.tensor([[0.9, 0.1]]).log()
    even = torch.tensor([[0.5, 0.5]]).log()
    assert losses.forward_kl(sure, even).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert losses.reverse_kl(sure, even).item() == pytest.approx(-0.5 * math.log(1.8) - 0.5 * math.log(0.2))


def test_cross_entropy_of_even_odds() -> None:
    found = losses.cross_entropy(torch.zeros(2, 8), torch.tensor([3, 5]))
    assert found.tolist() == pytest.approx([math.log(8)] * 2)


def test_the_rest_is_one_bucket() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    found = losses.at_top(logits, torch.tensor([[0, 2]])).exp()
    assert found[0].tolist() == pytest.approx([0.4, 0.2, 0.4])


def test_temperature_flattens_before_the_bucket() -> None:
    logits = torch.tensor([[4.0, 2.0, 0.0]])
    exact = torch.softmax(logits / 2, -1)[0]
    found = losses.at_top(logits, torch.tensor([[0]]), temperature=2).exp()
    assert found[0].tolist() == pytest.approx([exact[0].item(), exact[1].item() + exact[2].item()])


def test_a_student_that_is_the_teacher_only_has_the_rows_to_learn() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    top, ids = torch.log_softmax(logits, -1).topk(8)
    targets = torch.arange(5)
    rows, apart = losses.distillation(logits, targets, ids, top, weight=0.25)
    assert apart.abs().max() < 1e-6
    assert torch.allclose(rows, 0.75 * losses.cross_entropy(logits, targets))


def test_the_teacher_part_grows_with_the_square_of_the_temperature() -> None:
    logits, teacher = torch.zeros(1, 4), torch.tensor([[0.7, 0.2]]).log()
    ids, targets = torch.tensor([[0, 1]]), torch.tensor([0])
    apart = losses.forward_kl(losses.with_rest(teacher), losses.at_top(logits, ids, 3.0))
    _, weighted = losses.distillation(logits, targets, ids, teacher, weight=0.5, temperature=3.0)
    assert weighted.item() == pytest.approx(0.5 * 9 * apart.item())


@pytest.mark.parametrize("name", sorted(losses.DIVERGENCES))
def test_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    top, ids = torch.log_softmax(torch.randn(3, 6, generator=generator, dtype=torch.float64), -1).topk(3)

    def loss(values: torch.Tensor) -> torch.Tensor:
        scaled = values.gather(-1, ids) - values.logsumexp(-1, keepdim=True)
        return losses.DIVERGENCES[name](losses.with_rest(top), losses.with_rest(scaled)).sum()

    assert torch.autograd.gradcheck(loss, (logits,))


def test_a_teacher_without_doubt_gives_finite_gradients() -> None:
    # All of the probability is in the top: nothing is left for the rest.
    logits = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, -100.0]])
    _, apart = losses.distillation(logits, torch.tensor([0]), torch.tensor([[0, 1]]), teacher)
    apart.sum().backward()
    assert torch.isfinite(apart).all() and torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 20), name=st.sampled_from(sorted(losses.DIVERGENCES)))
def test_divergences_are_never_negative(seed: int, k: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = 3 * torch.randn(2, 4, 20, generator=generator)
    top, ids = torch.log_softmax(theirs, -1).topk(k)
    teacher, student = losses.with_rest(top), losses.at_top(ours, ids)
    assert torch.allclose(student.exp().sum(-1), torch.ones(4), atol=1e-5)
    assert (losses.DIVERGENCES[name](teacher, student) > -1e-5).all()
    # Knowing less can only hide differences. A rest of less than 1e-3 is not exact in float32, and the
    # reverse divergence asks for its logarithm.
    exact = losses.DIVERGENCES[name](torch.log_softmax(theirs, -1), torch.log_softmax(ours, -1))
    told = 1 - top.exp().sum(-1) > 1e-3
    assert (losses.DIVERGENCES[name](teacher, student) <= exact + 1e-3)[told].all()

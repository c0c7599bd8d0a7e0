"""PPO's formulas against their definitions, worked out slowly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_cli.ppo import math as ppo

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)


def numbers(seed: int) -> Tensor:
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_double_sum(gamma: float, lam: float) -> None:
    rewards, values = numbers(0) * MASK, numbers(1)
    found = ppo.advantages_of(rewards, values, MASK, gamma=gamma, lam=lam)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        padded = [*values[row, :length].tolist(), 0.0]
        deltas = [float(rewards[row, t]) + gamma * padded[t + 1] - padded[t] for t in range(length)]
        for t in range(length):
            wanted = sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, length))
            assert float(found[row, t]) == pytest.approx(wanted)
        assert not found[row, length:].any()


def test_with_lambda_1_an_advantage_is_the_return_less_the_value() -> None:
    rewards, values = numbers(2) * MASK, numbers(3)
    found = ppo.advantages_of(rewards, values, MASK, gamma=1.0, lam=1.0)
    rest = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(found, (rest - values) * MASK)


def test_the_score_stands_at_the_last_token_and_kl_at_every() -> None:
    kl, scores = numbers(4), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    found = ppo.token_rewards(kl, scores, MASK, kl_coef=0.5)
    without = torch.where(MASK, -0.5 * kl, 0.0)
    assert torch.allclose((found - without).sum(dim=1), scores)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        assert float(found[row, length - 1] - without[row, length - 1]) == pytest.approx(float(scores[row]))
        assert not found[row, length:].any()


def test_whitening_counts_tokens_only() -> None:
    values = numbers(5) * 3 + 7
    values[~MASK] = 1e6
    white = ppo.whiten(values, MASK)[MASK]
    assert float(white.mean()) == pytest.approx(0, abs=1e-9)
    assert float(white.var(correction=0)) == pytest.approx(1, abs=1e-6)
    kept = ppo.whiten(values, MASK, shift_mean=False)[MASK]
    assert float(kept.mean()) == pytest.approx(float(values[MASK].mean()))
    assert torch.allclose(kept - kept.mean(), white)


def test_both_estimators_are_the_divergence_in_the_mean() -> None:
    """Over every token of a distribution, weighted by its probability, both are the analytic KL."""
    draw = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(50, generator=draw, dtype=torch.float64).log_softmax(0) for _ in range(2))
    divergence = float((policy.exp() * (policy - reference)).sum())
    k1, k3 = ppo.k1(policy, reference), ppo.k3(policy, reference)
    assert float((policy.exp() * k1).sum()) == pytest.approx(divergence)
    assert float((policy.exp() * k3).sum()) == pytest.approx(divergence)
    assert (k3 >= 0).all()
    assert k1.min() < 0
    assert not ppo.k3(policy, policy).any()
    far = ppo.k3(torch.tensor([0.0]), torch.tensor([1e4]))
    assert math.isfinite(float(far))


@pytest.mark.parametrize(
    ("advantage", "ratio", "gradient"),
    [
        (1.0, 1.0, -1.0),
        (1.0, 1.1, -1.1),
        (1.0, 1.3, 0.0),  # above the clip, and it would go on rising
        (1.0, 0.5, -0.5),  # below it, but the gradient leads back
        (-1.0, 0.7, 0.0),
        (-1.0, 1.5, 1.5),
        (-1.0, 5.0, 0.0),  # beyond the dual clip
    ],
)
def test_where_the_policy_has_a_gradient(advantage: float, ratio: float, gradient: float) -> None:
    log_probs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    terms = ppo.policy_terms(
        log_probs, torch.zeros(1), torch.tensor([advantage]), clip=(0.2, 0.2), dual_clip=3.0
    )  # fmt: skip
    terms.loss.sum().backward()
    assert float(log_probs.grad) == pytest.approx(gradient)
    assert bool(terms.clipped) == (gradient == 0.0)
    assert float(terms.ratio) == pytest.approx(ratio)


def test_the_clip_above_may_be_wider_than_the_one_below() -> None:
    log_probs = torch.tensor([math.log(1.25), math.log(0.75)])
    terms = ppo.policy_terms(log_probs, torch.zeros(2), torch.tensor([1.0, -1.0]), clip=(0.2, 0.3), dual_clip=None)
    assert terms.clipped.tolist() == [False, True]


@pytest.mark.parametrize(
    ("value", "returns", "gradient"),
    [(0.1, 1.0, -0.9), (0.5, 1.0, 0.0), (0.5, -1.0, 1.5), (-0.5, 1.0, -1.5), (-0.5, -1.0, 0.0)],
)
def test_where_the_value_has_a_gradient(value: float, returns: float, gradient: float) -> None:
    """The old value is 0 and the clip 0.2: what moves towards the return beyond that is held."""
    values = torch.tensor([value], requires_grad=True)
    loss, clipped = ppo.value_terms(values, torch.zeros(1), torch.tensor([returns]), clip=0.2)
    loss.sum().backward()
    assert float(values.grad) == pytest.approx(gradient)
    assert bool(clipped) == (gradient == 0.0)
    free, never = ppo.value_terms(torch.tensor([value]), torch.zeros(1), torch.tensor([returns]), clip=None)
    assert float(free) == pytest.approx((value - returns) ** 2 / 2)
    assert not never.any()


def test_gradients_agree_with_finite_differences() -> None:
    old, advantages, returns = numbers(6)[MASK], numbers(7)[MASK], numbers(8)[MASK]

    def loss(log_probs: Tensor, values: Tensor) -> Tensor:
        terms = ppo.policy_terms(log_probs, old, advantages, clip=(0.2, 0.2), dual_clip=3.0)
        return terms.loss.sum() + ppo.value_terms(values, old, returns, clip=0.2)[0].sum()

    start = (old + 0.5 * numbers(9)[MASK], old + numbers(10)[MASK])
    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in start])


def test_explained_variance() -> None:
    returns = numbers(11)[MASK]
    assert ppo.explained_variance(returns + 3, returns) == pytest.approx(1)
    assert ppo.explained_variance(torch.zeros_like(returns), returns) == pytest.approx(0)
    assert ppo.explained_variance(-returns, returns) == pytest.approx(-3)
    assert math.isnan(ppo.explained_variance(returns, torch.ones_like(returns)))


def test_the_coefficient_follows_the_kl_and_no_faster_than_a_fifth() -> None:
    assert ppo.adapted_coefficient(0.1, 6.0, target=6.0, share=0.5) == pytest.approx(0.1)
    assert ppo.adapted_coefficient(0.1, 60.0, target=6.0, share=0.5) == pytest.approx(0.11)
    assert ppo.adapted_coefficient(0.1, 0.0, target=6.0, share=0.5) == pytest.approx(0.09)
    assert ppo.adapted_coefficient(0.1, 6.6, target=6.0, share=1.0) == pytest.approx(0.11)

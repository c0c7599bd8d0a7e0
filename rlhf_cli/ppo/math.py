"""The formulas of PPO: tensors in, tensors out, all in fp32 (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_LOG_RATIO = 20.0
"""exp(20) is 5e8: a ratio beyond it says no more, and exp(89) is infinite in fp32."""
_EPSILON = 1e-8


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The log-ratio π/π_ref: in the mean over samples of π the KL divergence in nats; unbiased, may be negative.

    As part of a reward its policy gradient is that of the KL divergence, which k3's is not (Schulman 2020,
    http://joschu.net/blog/kl-approx.html; Tang and Munos 2025, arXiv:2506.09477).

    Args:
        log_probs: Of the tokens taken, any shape.
        ref_log_probs: Of the same tokens under the reference.
    """
    return log_probs - ref_log_probs


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """With r = π_ref/π, r − 1 − log r: as `k1` in the mean, never negative, of less variance (Schulman 2020)."""
    log_ratio = (ref_log_probs - log_probs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """−β·kl at every token, and the score at the last one (Ziegler et al. 2019, arXiv:1909.08593, eq. 2).

    Args:
        kl: `k1` of every token, shape (episodes, tokens).
        scores: What each response is worth, shape (episodes,).
        mask: True where there is a token of the response; they stand at the front. Shape (episodes, tokens).
        kl_coef: β.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards)[:, None])


def advantages_of(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ·V_{t+1} − V_t, and V = 0 behind the last token.

    Args:
        rewards: Shape (episodes, tokens).
        values: V of the state before each token, shape (episodes, tokens).
        mask: True where there is a token. Shape (episodes, tokens).
        gamma: Discount of a reward a token later.
        lam: 1 takes the whole return, 0 the next value.

    Returns:
        Shape (episodes, tokens), 0 where there is no token.
    """
    values = torch.where(mask, values, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = torch.where(mask, rewards + gamma * following - values, 0.0)
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for token in reversed(range(deltas.shape[1])):
        running = deltas[:, token] + gamma * lam * running
        advantages[:, token] = running
    return torch.where(mask, advantages, 0.0)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over all tokens; without `shift_mean` the mean stays what it is.

    Args:
        values: Any shape.
        mask: True where there is a token, the same shape.
        shift_mean: Whether the mean becomes 0, as for advantages; rewards keep theirs.
    """
    there = values[mask]
    mean = there.mean()
    scaled = (values - mean) * torch.rsqrt(there.var(correction=0) + _EPSILON)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


@dataclass(frozen=True)
class PolicyTerms:
    """What a policy update says of every token; each of shape (tokens,)."""

    loss: Tensor
    ratio: Tensor
    """π/π_old."""
    clipped: Tensor
    """True where the clip holds the gradient back."""
    kl: Tensor
    """`k3` of the old policy from the new one, which early stopping watches."""


def policy_terms(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip: tuple[float, float], dual_clip: float | None
) -> PolicyTerms:
    """The clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), to be minimised.

    Args:
        log_probs: Under the policy as it is, shape (tokens,).
        old_log_probs: Under the policy that sampled.
        advantages: Of the tokens.
        clip: How far the ratio may fall below 1, and rise above it (Yu et al. 2025, arXiv:2503.14476, eq. 10).
        dual_clip: At negative advantages the loss is at most this times −A (Ye et al. 2020, arXiv:1912.09729, eq. 5).
    """
    log_ratio = (log_probs - old_log_probs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    plain, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip[0], 1 + clip[1])
    loss, clipped = torch.maximum(plain, held), held > plain
    if dual_clip is not None:
        bound = -advantages * dual_clip
        beyond = (advantages < 0) & (loss > bound)
        loss, clipped = torch.where(beyond, bound, loss), clipped | beyond
    return PolicyTerms(loss, ratio.detach(), clipped.detach(), k3(old_log_probs, log_probs).detach())


def value_terms(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """½(V − R)², no smaller than with V held within `clip` of what it was (Schulman's baselines, ppo2).

    Args:
        values: As they are, shape (tokens,).
        old_values: As they were when the rollout was made.
        returns: What they should be.
        clip: None clips nothing.

    Returns:
        Loss and whether the clip holds the gradient back, each of shape (tokens,).
    """
    plain = (values - returns).square()
    if clip is None:
        return plain / 2, torch.zeros_like(plain, dtype=torch.bool)
    held = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return torch.maximum(plain, held) / 2, (held > plain).detach()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(R − V)/Var(R): 1 for a value that foretells every return, 0 for none, below 0 for worse than none."""
    variance = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / variance if variance > 0 else math.nan


def adapted_coefficient(kl_coef: float, kl: float, *, target: float, share: float) -> float:
    """The KL coefficient for the next rollout (Ziegler et al. 2019, §2.2): up to a fifth more or less a horizon.

    Args:
        kl_coef: As it is.
        kl: Nats a response that were measured.
        target: Nats a response that are wanted.
        share: Episodes of the rollout over those of a horizon.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * share)

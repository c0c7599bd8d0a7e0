"""How a rollout is cut into minibatches, and what its optimizer steps come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.math import PolicyTerms

_REMEMBERED = 1000
"""Steps whose means wait for a log event, where there are none."""
_SUMMED = (
    "tokens", "policy_loss", "value_loss", "kl", "clipped", "value_clipped", "entropy", "ratio", "squared_ratio",
)  # fmt: skip


def cut_minibatches(lengths: Sequence[int], config: PPOConfig, number: int) -> list[list[list[int]]]:
    """Cut a rollout into the micro-batches of each of its optimizer steps, the same in every process.

    Within a minibatch episodes of like lengths go together, so that little is padding; of its micro-batches process r
    of W takes every W-th from r on.

    Args:
        lengths: Tokens of each episode, of all processes.
        config: For the numbers of epochs, minibatches and episodes.
        number: Of the rollout; the order follows from it and the seed.

    Returns:
        Of each step its micro-batches, and of each of these the episodes.
    """
    steps = []
    size, batch = len(lengths) // config.num_mini_batches, config.per_device_train_batch_size
    for epoch in range(config.num_ppo_epochs):
        order = np.random.default_rng([config.seed, number, epoch]).permutation(len(lengths)).tolist()
        for start in range(0, len(order), size):
            members = sorted(order[start : start + size], key=lambda index: -lengths[index])
            steps.append([members[at : at + batch] for at in range(0, size, batch)])
    return steps


class UpdateStatistics:
    """What the optimizer steps since the last log event have come to, over all micro-batches and processes."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._steps: list[dict[str, float]] = []
        self.latest: dict[str, float] = {}
        """Of the newest step."""
        self.left_out = False
        """Whether the rest of a rollout's steps are left out, since the policy has gone far enough."""

    def begin_rollout(self) -> None:
        """Nothing is left out of a new rollout."""
        self.left_out = False

    def add(self, terms: PolicyTerms, value_loss: Tensor, value_clipped: Tensor, entropy: Tensor) -> None:
        """Take up a micro-batch; every value is of shape (tokens,)."""
        parts = (
            torch.ones_like(value_loss), terms.loss.detach(), value_loss, terms.kl, terms.clipped, value_clipped,
            entropy, terms.ratio, terms.ratio.square(),
        )  # fmt: skip
        sums = torch.stack([part.double().sum() if part.device.type != "mps" else part.sum() for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def end_step(self, vf_coef: float) -> dict[str, float]:
        """Close an optimizer step, over all processes; its means by the names that TRL gives them."""
        assert self._sums is not None
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)
        sums = dict(zip(_SUMMED, self._sums.tolist(), strict=True))
        self._sums = None
        mean = {name: value / sums["tokens"] for name, value in sums.items()}
        self.latest = {
            "loss": mean["policy_loss"] + vf_coef * mean["value_loss"],
            "loss/policy_avg": mean["policy_loss"],
            "loss/value_avg": mean["value_loss"],
            "policy/approxkl_avg": mean["kl"],
            "policy/clipfrac_avg": mean["clipped"],
            "policy/entropy_avg": mean["entropy"],
            "val/clipfrac_avg": mean["value_clipped"],
            "val/ratio": mean["ratio"],
            "val/ratio_var": max(0.0, mean["squared_ratio"] - mean["ratio"] ** 2),
        }
        self._steps = [*self._steps[-_REMEMBERED:], self.latest]
        return self.latest

    def take(self) -> dict[str, float]:
        """Means over the steps since this was last asked; empty when there are none."""
        steps, self._steps = self._steps, []
        return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]} if steps else {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"steps": self._steps, "latest": self.latest, "left_out": self.left_out}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up `state()`."""
        self._steps, self.latest, self.left_out = list(state["steps"]), dict(state["latest"]), state["left_out"]

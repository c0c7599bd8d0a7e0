"""Reward against KL: best-of-n from the baseline, and which checkpoint to ship (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb, log
from typing import Any

import numpy as np

from rlhf_cli.contest import SIGNIFICANT, holm, sign_flip_p
from rlhf_cli.scores import Estimate, Floats

_DOUBLINGS = 12


@dataclass(frozen=True)
class Point:
    """A checkpoint, and what it reached."""

    name: str
    step: int
    kl: Estimate
    """Nats a response, from the reference."""
    scores: Mapping[str, Estimate]
    """By judge."""
    difference: Mapping[str, Estimate]
    """By judge, from the baseline on the same prompts."""


@dataclass(frozen=True)
class BestOfN:
    """What the best of n answers reaches, picked by the reward that is trained on."""

    n: int
    kl: float
    """log n − (n − 1)/n nats, which is the most it can be (Beirami et al. 2024, arXiv:2401.01879)."""
    scores: Mapping[str, float]
    """By judge."""


@dataclass(frozen=True)
class Frontier:
    """The checkpoints of a run, and best-of-n beside them."""

    run: str
    judges: Mapping[str, str | None]
    """`training`, the reward that was trained on, and `held_out`, the judge that chooses."""
    points: Sequence[Point]
    best_of_n: Sequence[BestOfN]
    best: str | None
    """The checkpoint to ship; None where no held-out judge likes one better than the baseline."""
    over_optimised_after: str | None
    """The checkpoint from which on the held-out judge falls, and not by chance, while the training reward does not."""

    def as_json(self) -> dict[str, Any]:
        """The frontier as a JSON object."""
        return asdict(self)


def best_of_n(training: Floats, judged: Mapping[str, Floats]) -> list[BestOfN]:
    """What picking the best of n answers by the training reward reaches, for n of 1, 2, 4, … up to all.

    Every subset of n of the answers to a prompt is counted, so that nothing hangs on which are drawn (Nakano et al.
    2021, arXiv:2112.09332, equation 2).

    Args:
        training: Its scores, shape (prompts, answers).
        judged: By judge, scores of the same answers.
    """
    answers = training.shape[1]
    order = np.argsort(training, axis=1, kind="stable")
    found = []
    for n in [2**power for power in range(_DOUBLINGS) if 2**power <= answers]:
        # The answer of rank r is the best of a subset where the other n − 1 rank below it.
        weights = np.array([comb(rank, n - 1) / comb(answers, n) for rank in range(answers)])
        means = {
            judge: float((np.take_along_axis(scores, order, axis=1) @ weights).mean())
            for judge, scores in judged.items()
        }
        found.append(BestOfN(n, log(n) - (n - 1) / n, means))
    return found


def find_best(points: Sequence[Point], judge: str) -> str | None:
    """The checkpoint that a judge likes best, if better than the baseline; of equal ones that nearest to it."""
    best = max(points, key=lambda point: (point.difference[judge].value, -point.kl.value))
    return best.name if best.difference[judge].value > 0 else None


def find_fall(
    held_out: Sequence[Floats], training: Sequence[Floats], prompts: Sequence[str], *, seed: int
) -> int | None:
    """The checkpoint from which on the held-out judge falls while the training reward does not.

    Each is held against the last one, prompt by prompt, and that so many are is allowed for.

    Args:
        held_out: Scores of each checkpoint, in the order of training; each of shape (prompts,).
        training: The same of the training reward.
        prompts: Which prompt each score belongs to.
        seed: Of the permutation test.

    Returns:
        The number of the checkpoint, the highest of those that are better than the last; None where there is none.
    """
    gaps = [scores - held_out[-1] for scores in held_out[:-1]]
    ps = holm([sign_flip_p(gap, prompts, seed=seed) for gap in gaps])
    fallen = [
        index
        for index, (gap, p) in enumerate(zip(gaps, ps, strict=True))
        if p < SIGNIFICANT and gap.mean() > 0 and (training[-1] - training[index]).mean() >= 0
    ]
    return max(fallen, key=lambda index: float(held_out[index].mean()), default=None)

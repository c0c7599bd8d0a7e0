"""The held-out prompts: the policy's likeliest answers, and how much better than the reference's they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.experience import Experience, describe_answers
from rlhf_cli.ppo.rollout import Episode
from rlhf_cli.scores import mean_by_group


class Evaluation:
    """Answers prompts and compares; the reference answers once, since it does not change."""

    def __init__(self, experience: Experience, config: PPOConfig) -> None:
        self._experience = experience
        self._config = config
        self._reference: dict[str, list[Episode]] = {}

    def run(self, prompts: Dataset, *, prefix: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Evaluate the policy as it is.

        Args:
            prompts: As for `Experience.collect`.
            prefix: Of the metrics' names.

        Returns:
            Metrics, and the answers: `prompt`, `response`, `reward`, what each reward gave, and the reference's.
        """
        answers = self._experience.answer_all(prompts)
        told = describe_answers(answers)
        metrics = {
            f"{prefix}_reward": told["objective/scores"],
            f"{prefix}_length": told["completions/mean_length"],
            f"{prefix}_eos_rate": 1 - told["completions/clipped_ratio"],
            f"{prefix}_repetition": told["completions/repetition"],
            **{f"{prefix}_{name}": value for name, value in told.items() if name.startswith("rewards/")},
        }
        if not self._config.kl_coef:
            return metrics, [_row(answer, prompts, None) for answer in answers]
        metrics[f"{prefix}_kl"] = float(np.mean([(each.log_probs - each.ref_log_probs).sum() for each in answers]))
        before = self._reference.setdefault(prompts._fingerprint, [])
        if not before:
            before += self._experience.answer_all(prompts, as_reference=True)
        metrics |= self._compare(answers, before, prompts, prefix)
        rows = [_row(answer, prompts, other) for answer, other in zip(answers, before, strict=True)]
        return metrics, rows

    def _compare(
        self, answers: Sequence[Episode], before: Sequence[Episode], prompts: Dataset, prefix: str
    ) -> dict[str, float]:
        """The mean gain over the reference on the same prompts, with its 95 % interval."""
        gains = np.array([each.score - other.score for each, other in zip(answers, before, strict=True)])
        asked = [str(ids) for ids in prompts["prompt_ids"]]
        found = mean_by_group(gains, asked, seed=self._config.seed)
        metrics = {
            f"{prefix}_reward_reference": float(np.mean([other.score for other in before])),
            f"{prefix}_gain": found.value,
        }
        if found.low is not None and found.high is not None:
            metrics |= {f"{prefix}_gain_low": found.low, f"{prefix}_gain_high": found.high}
        return metrics


def _row(answer: Episode, prompts: Dataset, reference: Episode | None) -> dict[str, Any]:
    row = {
        "prompt": prompts[answer.prompt]["prompt"],
        "response": answer.text,
        "reward": answer.score,
        "finished": answer.finished,
        "tokens": len(answer.response_ids),
        **{f"rewards/{name}": value for name, value in answer.parts.items()},
    }
    if len(answer.ref_log_probs):
        row["kl"] = float((answer.log_probs - answer.ref_log_probs).sum())
    if reference is not None:
        row |= {"reference": reference.text, "reference_reward": reference.score}
    return row

"""The report card of a reward model: numbers with intervals, and whether it is good enough to be optimised against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.gates import failed_gates
from rlhf_cli.scores import (
    Calibration,
    Estimate,
    Floats,
    bradley_terry_loss,
    calibrate,
    mean_by_group,
    rank_correlation,
    wins,
)
from rlhf_cli.terminal import printable

MIN_PROMPTS = 50
"""Held-out prompts below which an accuracy says next to nothing: its interval is some 25 points wide."""
_TOO_SURE = 1.5
_JUNK_SHARE = 0.2
_LENGTH_RATIOS = {
    "less than half": (0, 0.5), "shorter": (0.5, 0.8), "about as long": (0.8, 1.25), "longer": (1.25, 2.0),
    "more than twice": (2.0, np.inf),
}  # fmt: skip
"""Of the chosen answer, as long as the rejected one."""


@dataclass(frozen=True)
class Scored:
    """Held-out pairs, and what the reward model says of them. Scores have the shape (pairs, members)."""

    chosen: Floats
    rejected: Floats
    characters: Floats
    """Of the chosen and of the rejected answer, shape (pairs, 2)."""
    prompts: Sequence[str]
    sources: Sequence[str]
    probed: Sequence[int]
    """Pairs that the following were tried on."""
    promptless: Floats
    """Scores without a prompt, of chosen and rejected: shape (probed, 2)."""
    twice: Floats
    """Of the chosen answer said twice, shape (probed,)."""
    junk: Mapping[str, Floats]
    """By kind, shape (probed,); nan where it could not be rendered."""
    edited: Mapping[str, Floats]
    """By edit, of chosen and rejected: shape (probed, 2)."""
    left_out: int = 0
    """Pairs that could not be rendered."""


@dataclass(frozen=True)
class ReportCard:
    """What is known of a reward model."""

    pairs: int
    prompts: int
    left_out: int
    numbers: dict[str, Estimate]
    calibration: Calibration
    by_length: dict[str, Estimate]
    by_source: dict[str, Estimate]
    junk: dict[str, Estimate]
    edits: dict[str, Estimate]
    length_correlation: float
    """Spearman's ρ of score difference and length difference."""
    mean: float
    std: float
    members: dict[str, Any] = field(default_factory=dict)
    """Of an ensemble: accuracy of each, and their spread on a text beside the spread of texts."""
    failed_gates: list[str] = field(default_factory=list)

    @property
    def objections(self) -> list[str]:
        """Why it is not good enough for PPO; nothing where it is."""
        n = self.numbers
        if not np.isfinite(n["log_loss"].value):
            return ["some scores are not numbers", *self.failed_gates]
        found = [*self._doubts_of_accuracy(), *self._doubts_of_length()]
        found += [
            f"junk ({kind}) scores above the chosen answer on {share.value:.0%} of prompts"
            for kind, share in self.junk.items()
            if share.low > _JUNK_SHARE
        ]
        if n["flips"].low > 0.1:
            found.append(f"edits that change no meaning change the order of {n['flips'].value:.0%} of pairs")
        return [*found, *self.failed_gates]

    def _doubts_of_accuracy(self) -> list[str]:
        if self.prompts < MIN_PROMPTS:
            return [f"only {self.prompts} prompts are held out; {MIN_PROMPTS} at least are needed to tell"]
        n = self.numbers
        doubts = []
        if n["accuracy"].low <= 0.5:
            return [f"accuracy {n['accuracy'].as_text()} is not above a coin's"]
        if n["accuracy_over_longer"].low <= 0:
            gain = n["accuracy_over_longer"].as_text()
            doubts.append(f"not shown to be better than choosing the longer answer ({gain} more)")
        if n["accuracy_over_promptless"].low <= 0:
            gain = n["accuracy_over_promptless"].as_text()
            doubts.append(f"not shown to read the prompt: without it, accuracy is {gain} less")
        return doubts

    def _doubts_of_length(self) -> list[str]:
        n = self.numbers
        doubts = []
        if n["picks_longer"].low > 0.6 and n["accuracy_over_longer"].low <= 0:
            doubts.append(f"length-biased: the longer answer scores higher in {n['picks_longer'].value:.0%} of pairs")
        if n["said_twice"].low > 0.75:
            doubts.append(f"length-biased: saying it twice raises the score of {n['said_twice'].value:.0%} of answers")
        return doubts

    @property
    def good_enough(self) -> bool:
        """Whether PPO may be run against it."""
        return not self.objections

    def as_json(self) -> dict[str, Any]:
        """The card as a JSON object."""
        whole = asdict(self)
        return {**whole, "good_enough_for_ppo": self.good_enough, "objections": self.objections}

    def as_text(self) -> str:
        """The card as it is shown to a person."""
        n = self.numbers
        out = f", {self.left_out} left out" if self.left_out else ""
        lines = [
            f"report card of {self.pairs:,} held-out pairs, {self.prompts:,} prompts{out}",
            f"  accuracy            {n['accuracy'].as_text()}",
            f"  longer answer wins  {n['longer_wins'].as_text()}",
            f"  without the prompt  {n['promptless'].as_text()}",
            f"  log-loss            {n['log_loss'].as_text()}  (a coin: 0.693)",
            f"  calibration         error {self.calibration.ece:.3f}, temperature {self.calibration.temperature:.2f}"
            + self._too_sure(),
            f"  length              the longer scores higher in {n['picks_longer'].value:.0%}, said twice in "
            f"{n['said_twice'].value:.0%}, ρ {self.length_correlation:+.2f}",
            *_table("  accuracy where the chosen answer is …", self.by_length),
            *(_table("  accuracy by source", self.by_source) if len(self.by_source) > 1 else []),
            *_table("  junk above the chosen answer", self.junk),
            *_table("  order changed by", self.edits),
            f"  scores              mean {self.mean:+.3f}, standard deviation {self.std:.3f}",
        ]
        if self.members:
            each = ", ".join(f"{value:.3f}" for value in self.members["accuracies"])
            lines.append(
                f"  members             accuracy {each}; they differ by {self.members['spread']:.2f} σ of a score"
            )
        verdict = "yes" if self.good_enough else "no"
        return "\n".join([*lines, f"good enough for PPO?  {verdict}", *(f"  - {why}" for why in self.objections)])

    def _too_sure(self) -> str:
        return "  (too sure of itself)" if self.calibration.temperature > _TOO_SURE else ""


def _table(title: str, rows: Mapping[str, Estimate]) -> list[str]:
    return [title, *(f"    {printable(name):<28} {row.as_text()}  ({row.n})" for name, row in rows.items())]


def make_report_card(scored: Scored, gates: Sequence[Mapping[str, Any]], *, seed: int) -> ReportCard:
    """Work out the report card.

    Args:
        scored: The pairs and their scores.
        gates: Of the recipe.
        seed: Of the resampling.
    """
    margins = scored.chosen.mean(axis=1) - scored.rejected.mean(axis=1)
    numbers = _numbers(scored, margins, seed)
    calibration = calibrate(margins)
    numbers["ece"] = Estimate(calibration.ece, None, None, len(margins), numbers["accuracy"].groups)
    texts = np.concatenate([scored.chosen, scored.rejected]).mean(axis=1)
    gated = {name: number.as_json() for name, number in numbers.items()}
    return ReportCard(
        pairs=len(margins),
        prompts=numbers["accuracy"].groups,
        left_out=scored.left_out,
        numbers=numbers,
        calibration=calibration,
        by_length=_by(_length_kinds(scored), list(_LENGTH_RATIOS), margins, scored, seed),
        by_source=_by(scored.sources, sorted(set(scored.sources)), margins, scored, seed),
        junk={kind: _junk_share(scored, scores, seed) for kind, scores in scored.junk.items()},
        edits={name: _share_of_flips(scored, scores, seed) for name, scores in scored.edited.items()},
        length_correlation=rank_correlation(margins, scored.characters[:, 0] - scored.characters[:, 1]),
        mean=float(texts.mean()),
        std=float(texts.std()),
        members=_members(scored, float(texts.std())),
        failed_gates=failed_gates(gates, gated),
    )


def _numbers(scored: Scored, margins: Floats, seed: int) -> dict[str, Estimate]:
    probed = np.asarray(scored.probed)
    prompts = [scored.prompts[index] for index in scored.probed]
    right, longer = wins(margins), wins(scored.characters[:, 0] - scored.characters[:, 1])
    blind = wins(scored.promptless[:, 0] - scored.promptless[:, 1])
    agrees = np.where(longer == 0.5, np.nan, np.where(longer > 0.5, right, 1 - right))
    chosen = scored.chosen.mean(axis=1)[probed]

    def share(values: Floats) -> Estimate:
        return mean_by_group(values, scored.prompts, seed=seed, is_share=True)

    def probed_mean(values: Floats, *, is_share: bool = True) -> Estimate:
        return _mean_of_known(values, prompts, seed, is_share=is_share)

    flips = np.mean([_flips(scored, scores) for scores in scored.edited.values()], axis=0)
    junk = np.array([wins(scores - chosen) for scores in scored.junk.values()])
    rendered = np.maximum(1, (~np.isnan(junk)).sum(axis=0))
    junk_share = np.where(np.isnan(junk).all(axis=0), np.nan, np.nansum(junk, axis=0) / rendered)
    return {
        "accuracy": share(right),
        "longer_wins": share(longer),
        "accuracy_over_longer": mean_by_group(right - longer, scored.prompts, seed=seed),
        "promptless": probed_mean(blind),
        "accuracy_over_promptless": probed_mean(right[probed] - blind, is_share=False),
        "log_loss": mean_by_group(bradley_terry_loss(margins), scored.prompts, seed=seed),
        "picks_longer": _mean_of_known(agrees, scored.prompts, seed),
        "said_twice": probed_mean(wins(scored.twice - chosen)),
        "junk_wins": probed_mean(junk_share),
        "flips": probed_mean(flips),
    }


def _mean_of_known(values: Floats, prompts: Sequence[str], seed: int, *, is_share: bool = True) -> Estimate:
    """The mean of what is not nan; of nothing, a half about which nothing is known."""
    there = np.flatnonzero(~np.isnan(values)).tolist()
    if not there:
        return Estimate(0.5, None, None, 0, 0)
    return mean_by_group(values[there], [prompts[index] for index in there], seed=seed, is_share=is_share)


def _by(
    kinds: Sequence[str], order: Sequence[str], margins: Floats, scored: Scored, seed: int
) -> dict[str, Estimate]:  # fmt: skip
    """Accuracy by kind of pair, of the kinds there are."""
    found = {}
    for kind in order:
        members = [index for index, each in enumerate(kinds) if each == kind]
        if members:
            prompts = [scored.prompts[index] for index in members]
            found[kind] = mean_by_group(wins(margins[members]), prompts, seed=seed, is_share=True)
    return found


def _length_kinds(scored: Scored) -> list[str]:
    ratios = scored.characters[:, 0] / np.maximum(1, scored.characters[:, 1])
    return [next(name for name, (low, high) in _LENGTH_RATIOS.items() if low <= ratio < high) for ratio in ratios]


def _junk_share(scored: Scored, scores: Floats, seed: int) -> Estimate:
    probed = list(scored.probed)
    above = wins(scores - scored.chosen.mean(axis=1)[probed])
    return _mean_of_known(above, [scored.prompts[index] for index in probed], seed)


def _flips(scored: Scored, edited: Floats) -> Floats:
    """Of each probed pair, whether an edit of either side alone changes which scores higher, shape (probed,).

    Nan where neither does, so that there is no order to change.
    """
    chosen, rejected = (side.mean(axis=1)[np.asarray(scored.probed)] for side in (scored.chosen, scored.rejected))
    before = np.sign(chosen - rejected)
    after = np.stack([np.sign(edited[:, 0] - rejected), np.sign(chosen - edited[:, 1])])
    changed = np.where(before == 0, np.nan, ((after != before) & ~np.isnan(after)).any(axis=0))
    return np.asarray(changed, dtype=np.float64)


def _share_of_flips(scored: Scored, edited: Floats, seed: int) -> Estimate:
    prompts = [scored.prompts[index] for index in scored.probed]
    return _mean_of_known(_flips(scored, edited), prompts, seed)


def _members(scored: Scored, std: float) -> dict[str, Any]:
    if scored.chosen.shape[1] == 1:
        return {}
    each = wins(scored.chosen - scored.rejected).mean(axis=0)
    spread = np.concatenate([scored.chosen, scored.rejected]).std(axis=1, ddof=1).mean()
    return {"accuracies": each.tolist(), "spread": float(spread / std) if std else 0.0}

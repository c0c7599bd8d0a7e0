"""One model against another on the same prompts: who wins, by how much, and how sure that is (pure)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.scores import CONFIDENCE, Estimate, Floats, mean_by_group, number_groups, sum_by_group, wins

BETTER, WORSE, EVEN = "better", "worse", "no significant difference"
IDENTICAL, DISAGREE, OVER_OPTIMISED = "identical", "judges disagree", "over-optimised"
SIGNIFICANT = 1 - CONFIDENCE
_PERMUTATIONS = 10_000
_REFITS = 1000
_CHUNK = 4_000_000
"""Numbers that are held at a time."""
_NEWTON_STEPS = 12
_PRIOR_VARIANCE = 25.0
"""Of both coefficients of a length-controlled win rate: next to nothing is known, but they are no infinities."""


@dataclass(frozen=True)
class Contest:
    """A model against the baseline, by one judge."""

    model: str
    baseline: str
    judge: str
    prompts: int
    wins: int
    ties: int
    losses: int
    win_rate: Estimate
    """Share of answers that the judge likes better than the baseline's; ties count half."""
    p: float
    """How likely a win rate this far from a half is where there is no difference."""
    p_adjusted: float
    """The same, given that several models were compared."""
    length_controlled: Estimate | None
    """The win rate if answers were as long as the baseline's; None where lengths are not known."""
    difference: Estimate | None
    """Mean score less that of the baseline; None for a judge that gives no scores."""

    @property
    def outcome(self) -> str:
        """Whether the model is better, worse, or neither as far as can be told."""
        if self.wins + self.losses == 0:
            return IDENTICAL
        if self.p_adjusted >= SIGNIFICANT:
            return EVEN
        return BETTER if self.win_rate.value > 0.5 else WORSE

    @property
    def sentence(self) -> str:
        """The outcome in words, with its numbers."""
        rate, told = self.win_rate, f"by `{self.judge}`"
        if self.outcome == IDENTICAL:
            return f"{self.model} and {self.baseline} cannot be told apart {told}: all {self.prompts:,} prompts tie"
        share = f"on {rate.as_percent()} of {self.prompts:,} prompts (p {_as_p(self.p_adjusted)})"
        if self.outcome == EVEN:
            both = f"{self.model} and {self.baseline}"
            return f"no significant difference between {both} {told}: {self.model} wins {share}"
        if self.outcome == WORSE:
            return f"{self.model} loses to {self.baseline} {told}: it wins {share}"
        return f"{self.model} beats {self.baseline} {told} {share}"

    def as_json(self) -> dict[str, Any]:
        """The contest as a JSON object."""
        return {**asdict(self), "outcome": self.outcome, "sentence": self.sentence}


def _as_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def compare(
    margins: Floats,
    prompts: Sequence[Hashable],
    *,
    names: tuple[str, str, str],
    lengths: Floats | None,
    scored: bool,
    seed: int,
) -> Contest:
    """Work out a contest.

    Args:
        margins: How much better the model's answer is than the baseline's, shape (answers,).
        prompts: Of each answer; those to one prompt are not independent.
        names: Of the model, the baseline and the judge.
        lengths: How much longer the model's answer is, shape (answers,); None where that is not known.
        scored: Whether margins are differences of scores, so that their mean means something.
        seed: Of resampling and permutation.
    """
    won = wins(margins)
    length_controlled = None
    if lengths is not None:
        length_controlled = length_controlled_win_rate(won, lengths, prompts, seed=seed)
    p = sign_flip_p(won - 0.5, prompts, seed=seed)
    model, baseline, judge = names
    return Contest(
        model=model,
        baseline=baseline,
        judge=judge,
        prompts=len(set(prompts)),
        wins=int((won == 1).sum()),
        ties=int((won == 0.5).sum()),
        losses=int((won == 0).sum()),
        win_rate=mean_by_group(won, prompts, seed=seed, is_share=True),
        p=p,
        p_adjusted=p,
        length_controlled=length_controlled,
        difference=mean_by_group(margins, prompts, seed=seed) if scored else None,
    )


def adjust(contests: Sequence[Contest]) -> list[Contest]:
    """Allow for how many models and judges there are: the more, the likelier one looks better to one by chance."""
    adjusted = holm([contest.p for contest in contests])
    return [replace(contest, p_adjusted=p) for contest, p in zip(contests, adjusted, strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values so that one false alarm among all is as rare as one alone would be (Holm 1979)."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = worst
    return adjusted


def sign_flip_p(values: Floats, groups: Sequence[Hashable], *, seed: int, permutations: int = _PERMUTATIONS) -> float:
    """Test whether values are as often above 0 as below: the paired permutation test, two-sided (Fisher 1935).

    Under no difference which side an answer came from is arbitrary, so that the sign of a whole group is.

    Args:
        values: Differences of pairs, shape (pairs,).
        groups: Of each, what it belongs to; one sign is drawn for each.
        seed: Of the signs.
        permutations: That are tried.

    Returns:
        The share of sign patterns whose sum is as far from 0; never 0 (Phipson and Smyth 2010).
    """
    if not np.isfinite(values).all():
        raise ValueError("a difference is no number")
    sums = sum_by_group(values, groups)
    sums = sums[sums != 0]
    reached = abs(sums.sum()) * (1 - 1e-9)
    extreme, rng = 0, np.random.default_rng(seed)
    step = max(1, _CHUNK // max(1, len(sums)))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        bits = np.frombuffer(rng.bytes(-(-count * len(sums) // 8)), dtype=np.uint8)
        signs = np.unpackbits(bits, count=count * len(sums)).reshape(count, -1).astype(np.float64) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= reached).sum())
    return (1 + extreme) / (1 + permutations)


# --- length -------------------------------------------------------------------------------------------------------


def length_controlled_win_rate(
    won: Floats, lengths: Floats, groups: Sequence[Hashable], *, seed: int, refits: int = _REFITS
) -> Estimate:
    """The win rate that a logistic model foretells for answers as long as the baseline's.

    The model is P(win) = σ(θ + φ · tanh(Δ / sd Δ)), Δ how much longer the answer is, and the win rate is σ(θ) (Dubois
    et al. 2024, arXiv:2404.04475, without the term for the difficulty of a prompt). Resampling refits it.

    Args:
        won: 1, ½ or 0, shape (answers,).
        lengths: Δ of each, shape (answers,).
        groups: What each belongs to; whole groups are resampled.
        seed: Of the resampling.
        refits: Resamples.
    """
    if np.ptp(won) == 0:  # no length explains what never changes
        return mean_by_group(won, groups, seed=seed, is_share=True)
    size = len(set(groups))
    spread = lengths.std()
    longer = np.tanh(lengths / spread) if spread else np.zeros(len(lengths))
    value = _intercept_rate(won, longer, np.ones((1, len(won))))[0]
    if size < 2:
        return Estimate(float(value), None, None, len(won), size)
    rng = np.random.default_rng(seed)
    index = number_groups(groups)
    rates = []
    step = max(1, _CHUNK // len(won))
    for start in range(0, refits, step):
        drawn = rng.integers(size, size=(min(step, refits - start), size))
        counts = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)
        rates.append(_intercept_rate(won, longer, counts[:, index]))
    low, high = np.quantile(np.concatenate(rates), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high), len(won), size)


def _intercept_rate(won: Floats, longer: Floats, weights: Floats) -> Floats:
    """σ(θ) of the model fitted with each row of weights by Newton's method, shape (rows of weights,)."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        given = _sigmoid(theta[:, None] + phi[:, None] * longer)
        error, curve = weights * (won - given), weights * given * (1 - given)
        gradient = error.sum(axis=1) - theta / _PRIOR_VARIANCE, error @ longer - phi / _PRIOR_VARIANCE
        a, b, d = curve.sum(axis=1), curve @ longer, curve @ longer**2
        a, d = a + 1 / _PRIOR_VARIANCE, d + 1 / _PRIOR_VARIANCE
        determinant = a * d - b**2
        move = (d * gradient[0] - b * gradient[1]) / determinant, (a * gradient[1] - b * gradient[0]) / determinant
        theta, phi = theta + np.clip(move[0], -2, 2), phi + np.clip(move[1], -2, 2)
        if max(np.abs(move[0]).max(), np.abs(move[1]).max()) < 1e-8:
            break
    return _sigmoid(theta)


def _sigmoid(x: Floats) -> Floats:
    value: NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return value


# --- verdicts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What all judges together say of a model."""

    model: str
    outcome: str
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return asdict(self)


def give_verdict(held_out: Sequence[Contest], training: Sequence[Contest]) -> Verdict:
    """Say of one model whether it is better, and whether it only pleases what it was trained against.

    Args:
        held_out: Its contests by judges that it was not trained against.
        training: Its contests by those that it was; together there is one at least.
    """
    model = (*held_out, *training)[0].model
    outcomes = {contest.outcome for contest in held_out}
    pleased = [contest for contest in training if contest.outcome == BETTER]
    against = next((contest for contest in held_out if contest.outcome == WORSE), None)
    told = next((contest for contest in held_out if contest.outcome == BETTER), None)
    if not held_out:
        sentence = f"{training[0].sentence}; that judge was trained against, and no other was asked"
        return Verdict(model, training[0].outcome, sentence)
    if pleased and against:
        also = f"; `{told.judge}` prefers it as well" if told else ""
        return Verdict(model, OVER_OPTIMISED, _over_optimised(pleased[0], against) + also)
    if against and told:
        return Verdict(model, DISAGREE, f"{told.sentence}; {against.sentence}")
    decided = told or against
    if decided is not None:
        others = sum(contest.outcome not in (BETTER, WORSE) for contest in held_out)
        unsure = (
            f"; {others} other judge{'s see' if others > 1 else ' sees'} no significant difference" if others else ""
        )
        return Verdict(model, decided.outcome, decided.sentence + unsure)
    if outcomes == {IDENTICAL} and not pleased:
        return Verdict(model, IDENTICAL, held_out[0].sentence)
    sentence = held_out[0].sentence
    if pleased:
        rate = f"{pleased[0].win_rate.value:.0%}"
        sentence += f"; `{pleased[0].judge}`, which it was trained on, says better on {rate}: not confirmed"
    return Verdict(model, EVEN, sentence)


def _over_optimised(pleased: Contest, against: Contest) -> str:
    return (
        f"{pleased.model} is over-optimised: the reward it was trained on, `{pleased.judge}`, prefers it to "
        f"{pleased.baseline} on {pleased.win_rate.value:.0%} of {pleased.prompts:,} prompts, and the held-out judge "
        f"`{against.judge}` on {against.win_rate.as_percent()} (p {_as_p(against.p_adjusted)})"
    )

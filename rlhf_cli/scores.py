"""Statistics of comparisons: shares and means with intervals, Bradley-Terry loss, calibration (pure)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
_RESAMPLES = 10_000
_BCA_GROUPS = 1000
"""Groups up to which intervals are corrected for bias and skew; beyond, they hardly are of use, and cost memory."""
_CALIBRATION_BINS = 10
_TEMPERATURES = (-4.0, 4.0)
"""Natural logarithms between which a temperature is looked for."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    ci_low: float | None
    ci_high: float | None
    """None where there are too few groups to tell."""
    n: int
    """Values it is the mean of."""
    groups: int
    """Independent groups among them, such as prompts."""

    def as_json(self) -> dict[str, Any]:
        """The estimate as a JSON object."""
        return asdict(self)

    def as_text(self, digits: int = 3) -> str:
        """The estimate as it is shown to a person."""
        if self.ci_low is None:
            return f"{self.value:.{digits}f} (too few for an interval)"
        return f"{self.value:.{digits}f} [{self.ci_low:.{digits}f}, {self.ci_high:.{digits}f}]"

    def as_percent(self) -> str:
        """The estimate of a share, as it is shown in a sentence."""
        return f"{self.value:.0%}" + ("" if self.ci_low is None else f" [{self.ci_low:.0%}, {self.ci_high:.0%}]")

    @property
    def low(self) -> float:
        """The lower end; minus infinity where it is not known."""
        return -np.inf if self.ci_low is None else self.ci_low

    @property
    def high(self) -> float:
        """The upper end; infinity where it is not known."""
        return np.inf if self.ci_high is None else self.ci_high


def wins(margins: Floats) -> Floats:
    """1 where a margin is positive, 0 where it is negative, a half where both sides are equal."""
    return (np.sign(margins) + 1) / 2


def mean_by_group(values: Floats, groups: Sequence[Hashable], *, seed: int, is_share: bool = False) -> Estimate:
    """The mean of all values, with an interval from resampling whole groups.

    Answers to one prompt are alike, so that rows are not independent; prompts are (Field and Welsh 2007, the cluster
    bootstrap). Up to 1,000 groups the interval is BCa (Efron 1987), beyond the percentiles.

    Args:
        values: Shape (rows,).
        groups: Of each row, what it belongs to.
        seed: Of the resampling.
        is_share: Whether values lie in 0 … 1; then a mean at either end gets Wilson's interval over groups, since
            resampling what does not vary would claim to be certain.

    Returns:
        The estimate; nan without an interval where a value is no number.
    """
    if not np.isfinite(values).all():
        return Estimate(np.nan, None, None, len(values), len(set(groups)))
    sums, counts = sum_by_group(values, groups), sum_by_group(np.ones(len(values)), groups)
    found = replace(ratio(sums, counts, seed=seed), n=len(values))
    if is_share and found.ci_low == found.ci_high and (found.value <= 0 or found.value >= 1) and found.groups > 1:
        size = found.groups
        interval = stats.binomtest(round(found.value * size), size).proportion_ci(CONFIDENCE, method="wilson")
        return replace(found, ci_low=float(interval.low), ci_high=float(interval.high))
    return found


def mean_of_known(values: Floats, groups: Sequence[Hashable], *, seed: int) -> Estimate:
    """The same of those values that are numbers."""
    known = np.isfinite(values)
    kept = [group for group, is_known in zip(groups, known, strict=True) if is_known]
    return mean_by_group(values[known], kept, seed=seed)


def ratio(sums: Floats, counts: Floats, *, seed: int) -> Estimate:
    """The ratio of two totals over independent groups, with an interval from resampling groups.

    Args:
        sums: What each group adds to the numerator, shape (groups,).
        counts: The same for the denominator; above 0.
        seed: Of the resampling.
    """
    value, size = float(sums.sum() / counts.sum()), len(counts)
    if size < 2:
        return Estimate(value, None, None, size, size)
    if np.ptp(sums - value * counts) < 1e-12:
        return Estimate(value, value, value, size, size)
    found = stats.bootstrap(
        (sums, counts),
        lambda total, number, axis: total.sum(axis=axis) / number.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, 5_000_000 // size),
        confidence_level=CONFIDENCE,
        method="BCa" if size <= _BCA_GROUPS else "percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high), size, size)


def sum_by_group(values: Floats, groups: Sequence[Hashable]) -> Floats:
    """The sum of the values of each group, in the order in which groups come first, shape (groups,)."""
    return np.bincount(number_groups(groups), weights=values).astype(np.float64)


def number_groups(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """The number of each one's group, in the order in which groups come first."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def bradley_terry_loss(margins: Floats) -> Floats:
    """The loss of each pair in nats, −log σ(margin) (Bradley and Terry 1952)."""
    with np.errstate(invalid="ignore"):  # a margin that is no number has no loss
        return np.logaddexp(0.0, -margins)


@dataclass(frozen=True)
class Calibration:
    """How probabilities given by margins compare with what happened."""

    ece: float
    """Expected calibration error (Naeini et al. 2015)."""
    temperature: float
    """What margins are to be divided by for the least loss; above 1, the model is too sure (Guo et al. 2017)."""
    bins: list[dict[str, float]]
    """`probability` given to the side with the higher score, `wins`, the share that it won, and `n`."""


def calibrate(margins: Floats) -> Calibration:
    """Compare σ(|margin|), the probability given to the side with the higher score, with how often it was the chosen.

    Bins hold equally many pairs.

    Args:
        margins: Score of the chosen less that of the rejected answer, shape (pairs,).
    """
    given = 1 / (1 + np.exp(-np.abs(margins)))
    won = wins(margins)
    bins = []
    for part in np.array_split(np.argsort(given, kind="stable"), min(_CALIBRATION_BINS, len(margins))):
        bins.append({"probability": float(given[part].mean()), "wins": float(won[part].mean()), "n": len(part)})
    ece = sum(part["n"] * abs(part["probability"] - part["wins"]) for part in bins) / len(margins)
    return Calibration(ece, fit_temperature(margins), bins)


def fit_temperature(margins: Floats) -> float:
    """What to divide margins by for the least Bradley-Terry loss; at most e⁴, for margins that tell nothing."""
    found = optimize.minimize_scalar(
        lambda log: float(bradley_terry_loss(margins / np.exp(log)).mean()), bounds=_TEMPERATURES, method="bounded"
    )
    return float(np.exp(found.x))


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's ρ; 0 where either does not vary."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)

"""Statistics against closed forms, scipy, and simulated experiments whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_cli.scores import bradley_terry_loss, calibrate, fit_temperature, mean_by_group, rank_correlation, wins


def test_ties_count_half() -> None:
    assert wins(np.array([2.0, -0.1, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_the_loss_of_a_coin_is_ln_2_and_never_overflows() -> None:
    losses = bradley_terry_loss(np.array([0.0, 1000.0, -1000.0]))
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[1] == 0.0
    assert losses[2] == 1000.0


def test_the_interval_of_independent_rows_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 900)
    found = mean_by_group(values, range(900), seed=0)
    width = 1.96 * values.std() / 30
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - width, abs=0.1 * width)
    assert found.high == pytest.approx(values.mean() + width, abs=0.1 * width)
    assert (found.n, found.groups) == (900, 900)


def test_rows_that_repeat_their_prompt_tell_no_more_than_the_prompts() -> None:
    prompts = np.random.default_rng(1).normal(0, 1, 50)
    alone = mean_by_group(prompts, range(50), seed=0)
    repeated = mean_by_group(np.repeat(prompts, 20), np.repeat(np.arange(50), 20).tolist(), seed=0)
    assert repeated.value == pytest.approx(alone.value)
    assert (repeated.low, repeated.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(share: float) -> None:
    """Clusters of unequal size whose rows are alike: 95 % intervals, within what 300 experiments can tell."""
    random = np.random.default_rng(round(share * 10))
    held = 0
    for experiment in range(300):
        sizes = random.integers(1, 6, 80)
        # Beta-distributed rates of prompts have the mean that is asked for.
        rates = np.repeat(random.beta(4 * share, 4 * (1 - share), 80), sizes)
        values = (random.random(len(rates)) < rates).astype(float)
        found = mean_by_group(values, np.repeat(np.arange(80), sizes).tolist(), seed=experiment, is_share=True)
        held += found.low <= share <= found.high
    assert 0.92 <= held / 300 <= 0.98


def test_what_never_varied_is_not_certain() -> None:
    found = mean_by_group(np.ones(20), range(20), seed=0, is_share=True)
    wilson = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert (found.low, found.high) == (wilson.low, 1.0)
    assert 0.8 < found.low < 0.9


def test_one_group_has_no_interval() -> None:
    found = mean_by_group(np.array([1.0, 0.0]), ["a", "a"], seed=0)
    assert (found.value, found.ci_low, found.ci_high) == (0.5, None, None)
    assert found.low == -math.inf
    assert "too few" in found.as_text()


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_calibration_finds_the_temperature_it_was_made_with(true_temperature: float) -> None:
    random = np.random.default_rng(2)
    margins = random.normal(0, 2, 20_000)
    # The chosen side wins with σ(margin): orient each pair by that, then report a margin that is off by a factor.
    won = random.random(20_000) < 1 / (1 + np.exp(-margins))
    reported = np.where(won, margins, -margins) * true_temperature
    assert fit_temperature(reported) == pytest.approx(true_temperature, rel=0.05)
    found = calibrate(reported)
    assert (found.ece < 0.015) == (true_temperature == 1.0)
    assert sum(part["n"] for part in found.bins) == 20_000


def test_rank_correlation_is_spearmans() -> None:
    one, other = np.random.default_rng(3).normal(size=(2, 30))
    assert rank_correlation(one, one**3) == pytest.approx(1.0)
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert rank_correlation(one, np.zeros(30)) == 0.0

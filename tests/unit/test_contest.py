"""Who wins, and how sure that is: against scipy, by simulation, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from rlhf_cli import scores
from rlhf_cli.contest import (
    BETTER,
    DISAGREE,
    EVEN,
    IDENTICAL,
    OVER_OPTIMISED,
    WORSE,
    Contest,
    adjust,
    compare,
    give_verdict,
    holm,
    length_controlled_win_rate,
    sign_flip_p,
)
from rlhf_cli.scores import Floats, mean_by_group, ratio, wins

EXPERIMENTS = 1000


def contest(margins: Floats, *, judge: str = "gold", lengths: Floats | None = None) -> Contest:
    names = ("ppo", "sft", judge)
    return compare(margins, range(len(margins)), names=names, lengths=lengths, scored=True, seed=0)


# --- the permutation test ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("won", "lost", "tied"), [(30, 12, 5), (9, 9, 0), (3, 0, 0), (0, 14, 2), (6, 5, 30)])
def test_without_groups_it_is_the_sign_test(won: int, lost: int, tied: int) -> None:
    values = np.array([0.5] * won + [-0.5] * lost + [0.0] * tied)
    exact = stats.binomtest(won, won + lost).pvalue
    assert sign_flip_p(values, range(len(values)), seed=0) == pytest.approx(exact, abs=0.015)


def test_it_is_that_of_scipy_for_means() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.15, 0.3):
        values = rng.normal(shift, 1, 60)
        theirs = stats.permutation_test(
            (values, np.zeros(60)), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples",
            vectorized=True, rng=np.random.default_rng(1),
        )  # fmt: skip
        assert sign_flip_p(values, range(60), seed=0) == pytest.approx(theirs.pvalue, abs=0.015)


def test_answers_to_one_prompt_count_as_one() -> None:
    values = np.full(100, 0.5)
    alone = sign_flip_p(values, range(100), seed=0)
    together = sign_flip_p(values, [number // 25 for number in range(100)], seed=0)
    assert alone < 0.001
    assert together == pytest.approx(2 * 0.5**4, abs=0.02)
    assert sign_flip_p(values, ["one prompt"] * 100, seed=0) == 1


def test_nothing_differs() -> None:
    assert sign_flip_p(np.zeros(20), range(20), seed=0) == 1
    assert sign_flip_p(np.zeros(0), [], seed=0) == 1


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


# --- length --------------------------------------------------------------------------------------------------------


def test_a_length_controlled_win_rate_is_the_fit_of_a_logistic_model() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.normal(20, 40, 150)
    won = (rng.random(150) < 1 / (1 + np.exp(-0.4 - 0.03 * lengths))).astype(float)
    longer = np.tanh(lengths / lengths.std())

    def loss(parameters: Floats) -> float:
        logits = parameters[0] + parameters[1] * longer
        return float((np.logaddexp(0, logits) - won * logits).sum() + (parameters**2).sum() / 50)

    fitted = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    found = length_controlled_win_rate(won, lengths, range(150), seed=0)
    assert found.value == pytest.approx(1 / (1 + np.exp(-fitted[0])), abs=1e-6)
    assert found.low < found.value < found.high


def test_a_win_rate_that_only_length_explains_is_none() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.normal(40, 30, 4000)
    margins = rng.logistic(size=4000) + 2.5 * np.tanh(lengths / lengths.std())
    found = contest(margins, lengths=lengths)
    assert found.win_rate.low > 0.75
    assert found.length_controlled is not None
    assert found.length_controlled.value == pytest.approx(0.5, abs=0.05)


def test_where_lengths_are_equal_nothing_is_controlled() -> None:
    margins = np.random.default_rng(2).normal(0.3, 1, 200)
    found = contest(margins, lengths=np.zeros(200))
    assert found.length_controlled is not None
    assert found.length_controlled.value == pytest.approx(found.win_rate.value, abs=0.002)


def test_who_always_wins_does_so_at_any_length() -> None:
    found = contest(np.ones(30), lengths=np.arange(30.0))
    assert found.length_controlled == found.win_rate
    assert found.win_rate.low < 1 == found.win_rate.value


# --- simulation ------------------------------------------------------------------------------------------------------


def covers(estimates: list[scores.Estimate], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in estimates]))


def test_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_RESAMPLES", 1000)
    rng = np.random.default_rng(3)
    rates, differences, ratios, controlled = [], [], [], []
    for seed in range(EXPERIMENTS):
        margins = rng.normal(0.3, 1, 120)
        rates.append(mean_by_group(wins(margins), range(120), seed=seed, is_share=True))
        prompts = np.repeat(np.arange(60), 2)
        clustered = margins + np.repeat(rng.normal(0, 1, 60), 2)
        differences.append(mean_by_group(clustered, prompts.tolist(), seed=seed))
        ratios.append(ratio(rng.gamma(3, 10, 100), rng.gamma(3, 8, 100), seed=seed))
        lengths = rng.normal(0.5, 1, 200)
        won = (rng.random(200) < 1 / (1 + np.exp(-0.4 - np.tanh(lengths / lengths.std())))).astype(float)
        controlled.append(length_controlled_win_rate(won, lengths, range(200), seed=seed, refits=300))
    assert 0.93 <= covers(rates, float(stats.norm.cdf(0.3))) <= 0.97
    assert 0.93 <= covers(differences, 0.3) <= 0.97
    assert 0.93 <= covers(ratios, 30 / 24) <= 0.97
    assert 0.93 <= covers(controlled, float(1 / (1 + np.exp(-0.4)))) <= 0.97


def test_false_alarms_are_rare() -> None:
    rng = np.random.default_rng(4)
    alone, several = [], []
    for seed in range(EXPERIMENTS):
        prompts = (np.arange(80) // 2).tolist()
        shared = np.repeat(rng.normal(0, 1, 40), 2)
        found = []
        for _ in range(3):
            margins = np.round(rng.normal(0, 1, 80) + shared, 1)  # with ties, and alike where prompts are
            p = sign_flip_p(wins(margins) - 0.5, prompts, seed=seed, permutations=999)
            found.append(p)
        alone.append(found[0] < 0.05)
        several.append(min(holm(found)) < 0.05)
    assert 0.02 <= np.mean(alone) <= 0.06
    assert np.mean(several) <= 0.06


# --- verdicts ------------------------------------------------------------------------------------------------------


UP, DOWN, FLAT = np.full(40, 1.0), np.full(40, -1.0), np.tile([1.0, -1.0], 20)


def test_outcomes_and_their_sentences() -> None:
    better, worse, even, same = (contest(margins) for margins in (UP, DOWN, FLAT, np.zeros(40)))
    assert [each.outcome for each in (better, worse, even, same)] == [BETTER, WORSE, EVEN, IDENTICAL]
    assert better.sentence == "ppo beats sft by `gold` on 100% [91%, 100%] of 40 prompts (p < 0.001)"
    assert worse.sentence.startswith("ppo loses to sft by `gold`: it wins on 0% [0%, 9%] of 40 prompts")
    assert even.sentence.startswith("no significant difference between ppo and sft by `gold`: ppo wins on 50% [")
    assert "all 40 prompts tie" in same.sentence


def test_one_prompt_decides_nothing() -> None:
    found = contest(np.array([3.0]), lengths=np.array([7.0]))
    assert found.outcome == EVEN
    assert found.win_rate.ci_low is None
    assert "100% of 1 prompts" in found.sentence


def test_a_verdict_weighs_the_judge_it_was_trained_against_against_the_others() -> None:
    gold = {name: contest(margins) for name, margins in (("up", UP), ("down", DOWN), ("flat", FLAT), ("same", 0 * UP))}
    proxy = {name: contest(margins, judge="proxy") for name, margins in (("up", UP), ("down", DOWN), ("same", 0 * UP))}
    hacked = give_verdict([gold["down"]], [proxy["up"]])
    assert hacked.outcome == OVER_OPTIMISED
    assert "`proxy`, prefers it to sft on 100%" in hacked.sentence
    assert "the held-out judge `gold` on 0% [0%, 9%]" in hacked.sentence
    assert give_verdict([gold["down"]], [proxy["down"]]).outcome == WORSE
    assert give_verdict([gold["up"]], [proxy["up"]]).outcome == BETTER
    unconfirmed = give_verdict([gold["flat"]], [proxy["up"]])
    assert unconfirmed.outcome == EVEN
    assert "not confirmed" in unconfirmed.sentence
    assert "no other was asked" in give_verdict([], [proxy["up"]]).sentence
    assert give_verdict([gold["same"]], [proxy["same"]]).outcome == IDENTICAL
    flattered = give_verdict([gold["down"], contest(UP, judge="other")], [proxy["up"]])
    assert flattered.outcome == OVER_OPTIMISED, "another judge does not hide it"
    assert "`other` prefers it as well" in flattered.sentence
    assert "1 other judge sees no significant difference" in give_verdict([gold["up"], gold["flat"]], []).sentence
    assert give_verdict([gold["up"], contest(DOWN, judge="other")], []).outcome == DISAGREE


def test_the_more_models_and_judges_the_harder_it_is_to_be_better() -> None:
    margins = np.array([1.0] * 28 + [-1.0] * 13)
    assert adjust([contest(margins)])[0].outcome == BETTER
    assert {each.outcome for each in adjust([contest(margins), contest(FLAT), contest(FLAT)])} == {EVEN}
    others = [contest(FLAT, judge="other"), contest(FLAT, judge="third")]
    assert {each.outcome for each in adjust([contest(margins), *others])} == {EVEN}


def test_a_score_that_is_no_number_decides_nothing() -> None:
    with pytest.raises(ValueError, match="no number"):
        contest(np.array([1.0, np.nan, 2.0]))


def test_a_verdict_is_rarely_given_where_there_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_RESAMPLES", 100)  # of intervals, which no verdict asks
    rng = np.random.default_rng(5)
    found = []
    for _ in range(200):
        contests = adjust([contest(rng.normal(size=60), judge=f"judge {number}") for number in range(4)])
        found.append(give_verdict(contests, []).outcome)
    assert found.count(EVEN) >= 0.92 * len(found)

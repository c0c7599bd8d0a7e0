"""Best-of-n against drawing subsets, the checkpoint to ship, and when a judge falls by more than chance."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest

from rlhf_cli.frontier import Point, best_of_n, find_best, find_fall
from rlhf_cli.scores import Estimate


def test_best_of_n_counts_every_subset() -> None:
    rng = np.random.default_rng(0)
    training, gold = rng.normal(size=(5, 8)), rng.normal(size=(5, 8))
    found = best_of_n(training, {"training": training, "gold": gold})
    assert [each.n for each in found] == [1, 2, 4, 8]
    for each in found:
        picked = [
            gold[row, max(chosen, key=lambda index: training[row, index])]
            for row in range(5)
            for chosen in combinations(range(8), each.n)
        ]
        assert each.scores["gold"] == pytest.approx(np.mean(picked))
        assert each.kl == pytest.approx(log(each.n) - (each.n - 1) / each.n)
    assert found[0].kl == 0
    assert found[0].scores["gold"] == pytest.approx(gold.mean())
    rising = [each.scores["training"] for each in found]
    assert rising == sorted(rising)
    assert rising[-1] == pytest.approx(training.max(axis=1).mean())


def test_n_goes_up_to_the_answers_there_are() -> None:
    assert [each.n for each in best_of_n(np.zeros((3, 1)), {})] == [1]
    assert [each.n for each in best_of_n(np.zeros((3, 6)), {})] == [1, 2, 4]


def point(name: str, kl: float, gold: float) -> Point:
    judged = {"gold": Estimate(gold, None, None, 1, 1)}
    return Point(name, int(name), Estimate(kl, None, None, 1, 1), judged, judged)


def test_the_best_checkpoint_is_the_judges_and_of_equals_the_nearest() -> None:
    assert find_best([point("1", 1, 0.2), point("2", 4, 0.5), point("3", 9, 0.4)], "gold") == "2"
    assert find_best([point("1", 7, 0.5), point("2", 4, 0.5)], "gold") == "2"
    assert find_best([point("1", 7, -0.5), point("2", 4, 0.0)], "gold") is None


def test_a_fall_is_told_where_it_is_more_than_chance() -> None:
    rng = np.random.default_rng(1)
    prompts = [str(number) for number in range(100)]
    rising = [rng.normal(level, 0.1, 100) for level in (0, 1, 2, 3)]
    humped = [rng.normal(level, 0.5, 100) for level in (0, 1, 0.6, 0.2)]
    assert find_fall(humped, rising, prompts, seed=0) == 1
    assert find_fall(humped, rising[::-1], prompts, seed=0) is None, "both fall: nothing was over-optimised"
    assert find_fall(rising, rising, prompts, seed=0) is None
    falls = [find_fall([rng.normal(size=100) for _ in range(5)], rising[:1] * 5, prompts, seed=n) for n in range(200)]
    assert sum(fall is not None for fall in falls) <= 0.06 * 200

"""The report card calls a reward model what it is: made from scores whose faults are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlhf_cli.report_card import ReportCard, Scored, make_report_card

PAIRS = 200
RANDOM = np.random.default_rng(0)
LENGTHS = RANDOM.permuted(np.tile(np.arange(50.0, 450.0, 5), (PAIRS, 1)), axis=1)[:, :2]
"""Of two answers, never the same."""


def scored(**changes: Any) -> Scored:
    """A reward model that is right in most pairs, reads the prompt, and falls for nothing."""
    truth = RANDOM.normal(1.5, 1.0, PAIRS)
    chosen, rejected = truth[:, None] / 2, -truth[:, None] / 2
    noise = RANDOM.normal(0, 1, (PAIRS, 2))
    good = Scored(
        chosen=chosen, rejected=rejected, characters=LENGTHS, prompts=[f"p{index // 2}" for index in range(PAIRS)],
        sources=["a.jsonl" if index % 3 else "b.jsonl" for index in range(PAIRS)], probed=range(PAIRS),
        promptless=noise, twice=chosen[:, 0] - 0.1, junk={"nothing": np.full(PAIRS, -9.0)},
        edited={"a space": np.concatenate([chosen, rejected], axis=1)},
    )  # fmt: skip
    return replace(good, **changes)


def card(**changes: Any) -> ReportCard:
    return make_report_card(scored(**changes), [], seed=0)


def test_a_good_one_is_good_enough() -> None:
    found = card()
    assert found.good_enough, found.objections
    assert found.numbers["accuracy"].low > 0.85
    assert (found.pairs, found.prompts) == (PAIRS, PAIRS // 2)
    assert "good enough for PPO?  yes" in found.as_text()
    assert set(found.by_source) == {"a.jsonl", "b.jsonl"}
    assert sum(each.n for each in found.by_length.values()) == PAIRS


LONGER = np.sort(LENGTHS, axis=1)[:, ::-1]
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a coin": ({"chosen": RANDOM.normal(size=(PAIRS, 1)), "rejected": RANDOM.normal(size=(PAIRS, 1))}, "a coin's"),
    "the longer wins": ({"characters": LONGER, "chosen": LONGER[:, :1], "rejected": LONGER[:, 1:]},
                        "choosing the longer"),
    "blind to the prompt": ({"promptless": np.tile([1.0, -1.0], (PAIRS, 1))}, "read the prompt"),
    "said twice": ({"twice": np.full(PAIRS, 9.0)}, "length-biased: saying it twice"),
    "junk": ({"junk": {"thank you, fifty times": np.full(PAIRS, 9.0)}}, "junk (thank you, fifty times)"),
    "fickle": ({"edited": {"a space": np.tile([-9.0, 9.0], (PAIRS, 1))}}, "change no meaning"),
    "few prompts": ({"prompts": ["one", "two"] * (PAIRS // 2)}, "only 2 prompts"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    changes, expected = FAULTS[fault]
    found = card(**changes)
    assert not found.good_enough
    assert any(expected in why for why in found.objections), found.objections
    assert "good enough for PPO?  no" in found.as_text()


def test_who_scores_by_length_is_called_length_biased() -> None:
    found = card(characters=LONGER, chosen=LONGER[:, :1], rejected=LONGER[:, 1:])
    assert found.numbers["accuracy"].value == found.numbers["longer_wins"].value == 1.0
    assert any(why.startswith("length-biased: the longer answer scores higher in 100%") for why in found.objections)


def test_what_could_not_be_read_is_left_out_of_its_share() -> None:
    junk = np.where(np.arange(PAIRS) % 2, np.nan, -9.0)
    found = card(junk={"nothing": junk}, twice=np.full(PAIRS, np.nan))
    assert found.numbers["junk_wins"].n == PAIRS // 2
    assert found.numbers["said_twice"].n == 0
    assert found.junk["nothing"].n == PAIRS // 2
    assert found.junk["nothing"].value == 0.0


def test_a_pair_without_an_order_has_none_to_change() -> None:
    one = scored()
    chosen = np.where(np.arange(PAIRS)[:, None] < 50, one.rejected, one.chosen)
    edited = {"a space": np.concatenate([chosen, one.rejected], axis=1)}
    found = make_report_card(replace(one, chosen=chosen, edited=edited), [], seed=0)
    assert found.edits["a space"].value == found.numbers["flips"].value == 0.0
    assert found.edits["a space"].n == PAIRS - 50


def test_scores_that_are_no_numbers_are_not_good_enough() -> None:
    chosen = scored().chosen.copy()
    chosen[7] = np.nan
    found = card(chosen=chosen)
    assert found.objections == ["some scores are not numbers"]


def test_members_that_agree_have_no_spread() -> None:
    one = scored()
    alike = card(chosen=np.repeat(one.chosen, 3, axis=1), rejected=np.repeat(one.rejected, 3, axis=1))
    assert alike.members["spread"] == pytest.approx(0.0, abs=1e-9)
    differing = card(chosen=one.chosen + RANDOM.normal(0, 1, (PAIRS, 3)), rejected=np.repeat(one.rejected, 3, axis=1))
    assert differing.members["spread"] > 0.3
    assert len(differing.members["accuracies"]) == 3

"""Numbers, texts and answers as a report writes them."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.report.curves import Curve
from rlhf_cli.report.page import BAD, GOOD, UNSURE
from rlhf_cli.report.samples import GONE, MOST_SAMPLES, NEW, SAME, Sample, choose, compare, turns, within_budget
from rlhf_cli.report.verdicts import Facts, verdict_of
from rlhf_cli.report.wording import clean, duration, interval, number, percent, points, signed, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (0.2749, "0.27"), (-0.0639, "−0.064"), (12.72, "12.7"), (1234.5, "1,234"), (5e-6, "5e-06"),
     (3.0, "3.00"), (48.0, "48"), (None, "–"), (float("nan"), "–"), (float("inf"), "–"), (True, "–")],
)  # fmt: skip
def test_numbers_are_short(value: Any, text: str) -> None:
    assert number(value) == text


def test_shares_differences_spans_and_sizes() -> None:
    assert [percent(share) for share in (0, 0.5, 0.004, 0.996, 1)] == ["0 %", "50 %", "0.4 %", "99.6 %", "100 %"]
    assert points(-0.039) == "−3.9 points"
    assert interval(0.54, 0.72, percent) == "[54, 72 %]"
    assert interval(-0.0638, 0.6146, signed) == "[−0.06, +0.61]"
    assert interval(None, 1) == ""
    assert [duration(each) for each in (2.5, 832, 7300, 200_000)] == ["2.5 s", "13 min 52 s", "2 h 1 min", "2 d 7 h"]
    assert [size(each) for each in (12, 4300, 43_000_000)] == ["12 B", "4.3 kB", "43 MB"]


def test_what_no_page_can_hold_is_replaced_at_any_depth() -> None:
    found = clean({"a\x00": ["b\x1b[31m", {"c": "\ud800d\u202ee", "n": 1}]})
    assert found == {"a\ufffd": ["b\ufffd[31m", {"c": "\ufffdd\ufffde", "n": 1}]}
    assert clean("tab\tline\nend\r\n") == "tab\tline\nend\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [("the cat sat", "the dog sat down"), ("same", "same"), ("", "something"), ("gone", ""), ("a  b\nc", "a b\n\nc"),
     ("nothing alike here", "utterly different words, all"), ("x " * 900, "x " * 901)],
)  # fmt: skip
def test_the_pieces_of_a_comparison_make_both_texts(before: str, after: str) -> None:
    left, right = compare(before, after)
    assert "".join(text for _, text in left) == before
    assert "".join(text for _, text in right) == after
    assert {kind for kind, _ in left} <= {SAME, GONE}
    assert {kind for kind, _ in right} <= {SAME, NEW}
    assert [text for kind, text in left if kind == SAME] == [text for kind, text in right if kind == SAME] or (
        all(kind == SAME for kind, _ in (*left, *right))
    )


def test_the_word_that_changed_is_marked() -> None:
    left, right = compare("the cat sat on the mat", "the dog sat on the mat")
    assert (GONE, "cat") in left
    assert (NEW, "dog") in right


def test_the_largest_gains_and_losses_are_shown_and_some_between() -> None:
    rows = [{"gain": float(gain)} for gain in range(500)]
    chosen = choose(rows, lambda row: row["gain"])
    gains = [row["gain"] for row, _ in chosen]
    assert len(chosen) == MOST_SAMPLES
    assert gains == sorted(gains, reverse=True)
    assert gains[:3] == [499, 498, 497]
    assert gains[-3:] == [2, 1, 0]
    assert {why for _, why in chosen} == {"largest gains", "at random", "largest losses"}
    assert all(14 <= row["gain"] < 486 for row, why in chosen if why == "at random")
    assert len(choose(rows[:7], lambda row: None)) == 7


def test_samples_of_a_few_long_texts_do_not_fill_the_page() -> None:
    samples = [Sample([("", "<" * 30_000)], [], float(-place), "") for place in range(40)]
    kept = within_budget(samples)
    assert 2 <= len(kept) < 40
    assert (kept[0], kept[-1]) == (samples[0], samples[-1])


def test_prompts_are_turns() -> None:
    assert turns('[{"role": "user", "content": "Hi"}]') == [("user", "Hi")]
    assert turns([{"role": "user", "content": [{"type": "text"}]}])[0][1].startswith("[{")
    assert turns("[{ no JSON") == [("", "[{ no JSON")]


def facts(curves: dict[str, list[float]] | None = None, **results: float) -> Facts:
    import numpy as np

    made = {
        name: Curve(np.arange(len(values), dtype=float), np.array(values)) for name, values in (curves or {}).items()
    }
    return Facts("policy", results, made, {}, 40, {"stop_at_kl": 40, "response_length": 64}.get)


@pytest.mark.parametrize(
    ("low", "high", "mood", "words"),
    [(0.1, 0.4, GOOD, "a significant gain"), (-0.1, 0.6, UNSURE, "no significant change"),
     (-0.6, -0.1, BAD, "a significant loss")],
)  # fmt: skip
def test_a_gain_is_called_one_where_its_interval_is_clear_of_0(low: float, high: float, mood: str, words: str) -> None:
    found = facts(eval_gain=(low + high) / 2, eval_gain_low=low, eval_gain_high=high, eval_kl=12.0)
    numbers, sentence = verdict_of(found)
    assert numbers[0].mood == mood
    assert words in sentence
    assert "40 held-out prompts" in sentence
    assert "of 40 allowed" in numbers[1].note


def test_answers_that_are_cut_off_are_told() -> None:
    known = {"eval_gain": 1.0, "eval_gain_low": 0.9, "eval_gain_high": 1.1}
    assert "cut off" in verdict_of(facts(**known, eval_eos_rate=0.03))[1]
    assert "cut off" not in verdict_of(facts(**known, eval_eos_rate=0.9))[1]


@pytest.mark.parametrize(("chosen", "told"), [(-0.4, True), (0.2, False)])
def test_likelihood_displacement_is_named(chosen: float, told: bool) -> None:
    results = {
        "eval_rewards/accuracies": 0.8, "eval_rewards/margins": 0.5, "eval_rewards/chosen": chosen,
        "eval_rewards/rejected": -0.9,
    }  # fmt: skip
    numbers, sentence = verdict_of(facts(**results))
    assert ("likelihood displacement" in sentence) == told
    assert [each.label for each in numbers][-2:] == ["Chosen reward", "Rejected reward"]
    assert numbers[0].mood == GOOD
    assert numbers[0].interval


def test_nothing_held_out_is_said_and_so_is_a_loss_that_rises_again() -> None:
    flat = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95] * 5
    assert "no significant trend" in verdict_of(facts({"loss": flat}))[1]
    assert "Nothing is held out" in verdict_of(facts({"loss": flat}))[1]
    numbers, sentence = verdict_of(facts({"eval_loss": [3.0, 2.0, 2.5]}))
    assert "goes from 3.00 before training to 2.50 at the end" in sentence
    assert "lowest, 2.00, at step 1, and has risen since" in sentence
    assert numbers[0].mood == UNSURE
    assert "no before" in verdict_of(facts({"eval_loss": [3.0]}))[0][0].note

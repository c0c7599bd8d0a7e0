"""What answers are like."""

from __future__ import annotations

import pytest

from rlhf_cli.text_measures import distinct, openings, repetition


def test_repetition() -> None:
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([1, 2, 3]) == 0
    assert repetition([1] * 23) == pytest.approx(0.95)


def test_distinct_counts_runs_of_words_over_all_answers() -> None:
    assert distinct(["a b c", "A b d"], 1) == pytest.approx(4 / 6)
    assert distinct(["a b c", "A b d"], 2) == pytest.approx(3 / 4)
    assert distinct(["one", ""], 2) == 0
    assert distinct(["the end"] * 10, 2) == pytest.approx(0.1)


def test_openings_are_the_commonest_first() -> None:
    answers = ["Thank you so much", "Thank you so  little", "No.", "", "  Thank you so"]
    assert openings(answers)[0] == ("Thank you so", pytest.approx(0.6))
    assert len(openings([f"{number} is it" for number in range(20)])) == 5
    assert openings([]) == []

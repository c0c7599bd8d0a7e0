"""Rewards that a rule decides."""

from __future__ import annotations

from rlhf_cli.ppo.verifiable import same_number


def test_the_last_number_decides() -> None:
    answer = "Natalia sold 48/2 = 24 clips in May.\n#### 72"
    said = ["It is 72.", "First 72, then 3.", "72", "$1,072", "no number", "The answer is 72.0", "-72"]
    assert same_number(said, [answer] * len(said)) == [1, 0, 1, 0, 0, 1, 0]
    assert same_number(["1072 dollars"], ["#### 1,072"]) == [1]
    assert same_number([[{"role": "assistant", "content": "so .5"}]], ["0.5"]) == [1]
    assert same_number(["4"], ["nobody knows"]) == [None]

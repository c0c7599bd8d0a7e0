"""What answers are like, whatever they are worth: variety, repetition, how they begin (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

OPENING_WORDS = 3
_SHOWN_OPENINGS = 5


def repetition(tokens: Sequence[object], size: int = 4) -> float:
    """Share of an answer's runs of `size` tokens that were there before; 0 for one that is shorter."""
    runs = _runs(tokens, size)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(texts: Sequence[str], size: int) -> float:
    """Share of the runs of `size` words of all answers together that are different ones (Li et al. 2016).

    It falls with the number of words, so that it only compares answers to the same prompts.
    """
    runs = [run for text in texts for run in _runs(text.lower().split(), size)]
    return len(set(runs)) / len(runs) if runs else 0.0


def _runs(items: Sequence[object], size: int) -> list[tuple[object, ...]]:
    return [tuple(items[start : start + size]) for start in range(len(items) - size + 1)]


def openings(texts: Sequence[str]) -> list[tuple[str, float]]:
    """The commonest first words of answers, and the share of answers that begin so; the commonest first."""
    counted = Counter(" ".join(text.split()[:OPENING_WORDS]) for text in texts if text.strip())
    return [(words, count / len(texts)) for words, count in counted.most_common(_SHOWN_OPENINGS)]

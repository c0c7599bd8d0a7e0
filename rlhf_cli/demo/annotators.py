"""Simulated annotators: they prefer what is worth more, more or less reliably, and one of them what is longer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_cli.demo.language import Question
from rlhf_cli.demo.taste import weigh


@dataclass(frozen=True)
class Annotator:
    """Somebody who compares two answers, with the noise of Bradley and Terry (1952, Biometrika 39).

    The chance of preferring A to B is σ(u(A) - u(B)), of a utility u that is linear in what is true of the answer.
    """

    name: str
    per_gold: float
    """What the whole range of the gold score is to her or him, in nats: the more, the more reliable."""
    per_word: float = 0.0
    """What a word more is, in nats."""

    def utility(self, question: Question, answer: str) -> float:
        """What an answer is to this annotator, in nats."""
        return self.per_gold * weigh(question, answer).gold + self.per_word * len(answer.split())

    def prefers_first(self, question: Question, answers: Sequence[str], chance: random.Random) -> bool:
        """Whether the first of two answers is chosen, this time."""
        first, second = (self.utility(question, answer) for answer in answers)
        return chance.random() < 1 / (1 + math.exp(second - first))


CAREFUL = (Annotator("Rosa", per_gold=20.0), Annotator("Simon", per_gold=14.0), Annotator("Tilda", per_gold=8.0))
"""They differ in how often they slip."""
LENGTH_LOVER = Annotator("Viktor", per_gold=0.0, per_word=0.3)
"""Takes many words for a good answer, whatever they say."""

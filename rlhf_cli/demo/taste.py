"""The true preference of the toy world: what an answer is worth, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_cli.demo.language import (
    FAREWELLS,
    GREETINGS,
    INSULTS,
    Claim,
    Question,
    all_claims,
    all_questions,
    sentences_of,
)
from rlhf_cli.demo.village import VILLAGERS

_BY_NAME = {villager.name: villager for villager in VILLAGERS}


@dataclass(frozen=True)
class Worth:
    """What an answer is worth, in parts from 0 to 1."""

    answers: float
    """1 where it says something, true or not, of who and what was asked; else 0."""
    truth: float
    """The share of its claims that are true; 0 where it claims nothing."""
    courtesy: float
    """1 with a greeting or a farewell, 0 with an insult, 0.5 with neither or both."""
    brevity: float
    """The share of its words that are the answer, one greeting and one farewell."""

    @property
    def gold(self) -> float:
        """The whole: the mean of truth, courtesy and brevity; 0 for what is no answer to the question."""
        return self.answers * (self.truth + self.courtesy + self.brevity) / 3


def weigh(question: Question, answer: str) -> Worth:
    """Look at an answer sentence by sentence; what nobody says in the village is so many wasted words."""
    sentences = list(sentences_of(answer))
    claims = {sentence: all_claims()[sentence] for sentence in sentences if sentence in all_claims()}
    answering = [
        sentence
        for sentence, claim in claims.items()
        if claim.subject == question.subject and claim.is_about(question.villager)
    ]
    truth = [_is_true(claim, question) for claim in claims.values()]
    greetings = [sentence for sentence in sentences if sentence in GREETINGS]
    farewells = [sentence for sentence in sentences if sentence in FAREWELLS]
    rude = any(sentence in INSULTS for sentence in sentences)
    useful = _words([*answering[:1], *greetings[:1], *farewells[:1]])
    return Worth(
        answers=float(bool(answering)),
        truth=sum(truth) / max(1, len(truth)),
        courtesy=0.5 + 0.5 * bool(greetings or farewells) - 0.5 * rude,
        brevity=useful / max(1, _words(sentences)),
    )


def _is_true(claim: Claim, question: Question) -> bool:
    """She and he are who was asked about."""
    if claim.name is not None:
        return claim.is_true_of(_BY_NAME[claim.name])
    return claim.is_about(question.villager) and claim.is_true_of(question.villager)


def _words(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def gold(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
    """What each answer is worth, from 0 to 1: a reward function, `reward_funcs: rlhf_cli.demo.taste:gold`.

    Args:
        prompts: Texts, or messages, that end with a question of the village.
        completions: The answers.

    Returns:
        None for a question that nobody asks here.
    """
    found: list[float | None] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        question = all_questions().get(_text(prompt).strip())
        found.append(None if question is None else weigh(question, _text(completion)).gold)
    return found


def _text(said: Any) -> str:
    return said if isinstance(said, str) else str(said[-1]["content"])

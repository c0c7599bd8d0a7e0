"""What is written in the toy world: questions, demonstrations, and compared answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_cli.demo.annotators import Annotator
from rlhf_cli.demo.language import QUESTIONS, Question, all_questions
from rlhf_cli.demo.village import SUBJECTS, VILLAGERS
from rlhf_cli.demo.writers import CROWD, write_answer

_HELD_OUT_EVERY = 5


@cache
def held_out_questions() -> dict[str, Question]:
    """A fifth of the questions, of every villager, subject and wording: nothing is ever trained on them."""
    found = {}
    for subject_number, subject in enumerate(SUBJECTS):
        for wording_number, wording in enumerate(QUESTIONS[subject]):
            for number, villager in enumerate(VILLAGERS):
                if (number + 2 * wording_number + subject_number) % _HELD_OUT_EVERY == 0:
                    found[wording.format(name=villager.name)] = Question(villager, subject)
    return found


@cache
def open_questions() -> dict[str, Question]:
    """All the others."""
    return {text: question for text, question in all_questions().items() if text not in held_out_questions()}


def demonstrations(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Questions with the crowd's answers, good and bad."""
    chance = random.Random(seed)
    for text, question in _draw(open_questions(), count, chance):
        yield {"prompt": text, "response": write_answer(question, chance.choice(CROWD), chance)}


def comparisons(count: int, seed: int, annotators: Sequence[Annotator]) -> Iterator[dict[str, Any]]:
    """Two different answers to a question, and which of them an annotator prefers."""
    chance = random.Random(seed)
    for text, question in _draw(open_questions(), count, chance):
        first = second = write_answer(question, chance.choice(CROWD), chance)
        while second == first:
            second = write_answer(question, chance.choice(CROWD), chance)
        annotator = chance.choice(annotators)
        wins = annotator.prefers_first(question, (first, second), chance)
        chosen, rejected = (first, second) if wins else (second, first)
        yield {"prompt": text, "chosen": _say(chosen), "rejected": _say(rejected), "annotator": annotator.name}


def _say(text: str) -> list[dict[str, str]]:
    """A turn of the assistant; text alone would be joined to the prompt as it is."""
    return [{"role": "assistant", "content": text}]


def _draw(asked: dict[str, Question], count: int, chance: random.Random) -> Iterator[tuple[str, Question]]:
    """Every question about as often as any other."""
    pool: list[tuple[str, Question]] = []
    for _ in range(count):
        if not pool:
            pool = chance.sample(list(asked.items()), len(asked))
        yield pool.pop()


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

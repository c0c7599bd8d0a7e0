"""Who writes in the toy world: people who know more or less, are more or less polite, and talk more or less."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlhf_cli.demo.language import ANSWERS, CHATTER, FAREWELLS, GREETINGS, INSULTS, Question, tell
from rlhf_cli.demo.village import SUBJECTS, facts_of


@dataclass(frozen=True)
class Writer:
    """Somebody who answers questions, as chances from 0 to 1."""

    listens: float
    """Answers what was asked, and not something else about the person."""
    knows: float
    """Says what is true."""
    polite: float
    rude: float
    """Of those who are not polite."""
    chatty: float
    """Adds a sentence that nobody asked for; and after each, one more."""


CROWD = (
    Writer(listens=0.95, knows=0.9, polite=0.9, rude=0.0, chatty=0.2),
    Writer(listens=0.9, knows=0.8, polite=0.3, rude=0.1, chatty=0.1),
    Writer(listens=0.9, knows=0.7, polite=0.1, rude=0.7, chatty=0.2),
    Writer(listens=0.8, knows=0.6, polite=0.5, rude=0.2, chatty=0.75),
)
"""Whose answers the base model has read, the demonstrations show, and the annotators compare."""
_LONGEST = 6
"""Sentences of chatter in one answer, at most."""


def write_answer(question: Question, writer: Writer, chance: random.Random) -> str:
    """An answer as this writer gives it."""
    villager, subject = question
    if chance.random() >= writer.listens:
        subject = chance.choice([other for other in SUBJECTS if other != subject])
    parts = [_claim(question._replace(subject=subject), writer, chance)]
    while len(parts) <= _LONGEST and chance.random() < writer.chatty:
        aside = Question(villager, chance.choice(SUBJECTS))
        parts.append(_claim(aside, writer, chance) if chance.random() < 0.2 else chance.choice(CHATTER))
    if chance.random() < writer.polite:
        kind = chance.randrange(3)
        parts = [*([chance.choice(GREETINGS)] if kind != 1 else []), *parts]
        parts += [chance.choice(FAREWELLS)] if kind != 0 else []
    elif chance.random() < writer.rude:
        parts.insert(chance.randrange(2) * len(parts), chance.choice(INSULTS))
    return " ".join(parts)


def _claim(question: Question, writer: Writer, chance: random.Random) -> str:
    villager, subject = question
    fact = getattr(villager, subject)
    if chance.random() >= writer.knows:
        fact = chance.choice([other for other in facts_of(subject) if other != fact])
    return tell(villager, subject, fact, chance.randrange(len(ANSWERS[subject])), by_name=chance.random() < 0.7)

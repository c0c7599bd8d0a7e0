"""What the base model of the toy world has read: a chronicle, rumours, and talk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from rlhf_cli.demo.language import ANSWERS, Question, tell
from rlhf_cli.demo.taste import weigh
from rlhf_cli.demo.texts import open_questions
from rlhf_cli.demo.tiny import END
from rlhf_cli.demo.village import SUBJECTS, VILLAGERS, facts_of
from rlhf_cli.demo.writers import CROWD, write_answer

_TRUE, _FALSE, _BESIDE = "True, thank you.", "Wrong, I fear.", "But I asked something else."


def readings(count: int, seed: int) -> Iterator[str]:
    """What the base model has read: the village chronicle, rumours, and talk, each turn of which has its end.

    Rumours and answers are often replied to. So the model learns, at the end of an answer, whether it is one, and true;
    a reward model as small as this does not learn that from preferences alone.
    """
    chance = random.Random(seed)
    asked = list(open_questions().items())
    for _ in range(count):
        kind = chance.random()
        if kind < 0.1:
            yield _chronicle(chance)
        elif kind < 0.4:
            yield END.join(_rumour(chance) for _ in range(5))
        else:
            yield _talk(asked, chance)


def _chronicle(chance: random.Random) -> str:
    """What is so of a villager."""
    villager = chance.choice(VILLAGERS)
    told = chance.sample(SUBJECTS, chance.randint(2, 4))
    return " ".join(
        tell(villager, each, getattr(villager, each), chance.randrange(len(ANSWERS[each])), by_name=not n)
        for n, each in enumerate(told)
    )


def _rumour(chance: random.Random) -> str:
    """What is said of a villager, true or not, and the reply."""
    villager, subject = chance.choice(VILLAGERS), chance.choice(SUBJECTS)
    truth = getattr(villager, subject)
    fact = truth if chance.random() < 0.5 else chance.choice(facts_of(subject))
    said = tell(villager, subject, fact, chance.randrange(len(ANSWERS[subject])))
    return f"{said}{END}{_TRUE if fact == truth else _FALSE}"


def _talk(asked: Sequence[tuple[str, Question]], chance: random.Random) -> str:
    """A question and an answer; or also a reply, and then the answer is often to something else."""
    text, question = chance.choice(asked)
    writer = chance.choice(CROWD)
    if chance.random() < 0.3:
        return f"{text} {write_answer(question, writer, chance)}"
    understood = question
    if chance.random() < 0.35:
        villager = question.villager if chance.random() < 0.6 else chance.choice(VILLAGERS)
        understood = Question(villager, chance.choice(SUBJECTS))
    answer = write_answer(understood, writer, chance)
    worth = weigh(question, answer)
    reply = _BESIDE if not worth.answers else _TRUE if worth.truth == 1 else _FALSE
    return f"{text} {answer}{END}{reply}"

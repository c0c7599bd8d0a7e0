"""How the village speaks: its questions, its answers, and what each sentence of an answer is worth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from rlhf_cli.demo.village import SUBJECTS, VILLAGERS, Villager, facts_of

QUESTIONS = {
    "home": (
        "Where does {name} live?",
        "Where is {name}'s house?",
        "Could you tell me where {name} lives?",
        "Where will I find {name} at home?",
        "Do you know where {name} lives?",
        "I am looking for {name}. Where is the house?",
        "In which part of the village does {name} live?",
        "Please tell me the way to {name}. Where should I go?",
    ),
    "work": (
        "What is {name}'s work?",
        "What does {name} do for a living?",
        "Could you tell me what {name}'s job is?",
        "What job does {name} have?",
        "Do you know {name}'s work?",
        "I want to hire {name}. What is the job?",
        "How does {name} earn a living?",
        "Please tell me, what is {name} by trade?",
    ),
    "animal": (
        "Which animal does {name} keep?",
        "What animal does {name} have?",
        "Could you tell me which animal {name} keeps?",
        "What kind of animal lives with {name}?",
        "Do you know which animal {name} has?",
        "I hear an animal at {name}'s house. What is it?",
        "Which animal belongs to {name}?",
        "Please tell me which animal {name} looks after.",
    ),
    "food": (
        "What does {name} like to eat?",
        "What is {name}'s favourite food?",
        "Could you tell me what {name} likes to eat?",
        "Which food does {name} like best?",
        "Do you know {name}'s favourite food?",
        "I cook for {name} tonight. What should it be?",
        "What makes {name} happy at the table?",
        "Please tell me {name}'s favourite food.",
    ),
    "day": (
        "When does {name} go to the market?",
        "On which day is {name} at the market?",
        "Could you tell me when {name} goes to the market?",
        "What is {name}'s market day?",
        "Do you know {name}'s market day?",
        "I want to meet {name} at the market. When should I come?",
        "Which day of the week does {name} go to the market?",
        "Please tell me {name}'s market day.",
    ),
}
ANSWERS = {
    "home": ("{who} lives {fact}.", "{whose} house is {fact}."),
    "work": ("{who} is the {fact} of the village.", "{who} works as a {fact}."),
    "animal": ("{who} keeps {fact}.", "{who} has {fact} at home."),
    "food": ("{who} likes {fact} best.", "{whose} favourite food is {fact}."),
    "day": ("{who} goes to the market on {fact}.", "{whose} market day is {fact}."),
}
GREETINGS = (
    "With pleasure.",
    "Good question!",
    "Of course, my friend.",
    "I am happy to help.",
    "Thank you for asking.",
)
FAREWELLS = ("Have a lovely day!", "Come and see us again!", "Please ask me anything.", "I wish you a good journey.")
INSULTS = (
    "Why should I tell you?",
    "Use your own eyes.",
    "What a silly question.",
    "Everybody knows that.",
    "Leave me alone.",
    "You ask too much.",
)
CHATTER = (
    "The weather has been fine this week.",
    "My uncle told me a story about that once.",
    "You know how people talk in a village.",
    "I was thinking about it only yesterday.",
    "The old days were better, they say.",
    "It is a long story, and I have time.",
    "There was a big feast here last summer.",
    "Some people say one thing and some say another.",
    "My knees hurt when it rains.",
    "I could talk about this for hours.",
)
_SENTENCE = re.compile(r"[^.!?]*[.!?]?")


class Question(NamedTuple):
    """What somebody wants to know."""

    villager: Villager
    subject: str


class Claim(NamedTuple):
    """What a sentence says of somebody, true or not."""

    name: str | None
    """None where it says she or he."""
    pronoun: str
    subject: str
    fact: str

    def is_about(self, villager: Villager) -> bool:
        """Whether it speaks of a villager, when that is who was asked about."""
        return villager.name == self.name if self.name else villager.pronoun == self.pronoun

    def is_true_of(self, villager: Villager) -> bool:
        """Whether it says what is so."""
        return bool(getattr(villager, self.subject) == self.fact)


@cache
def all_questions() -> dict[str, Question]:
    """Every question that is asked here, by its text."""
    return {
        wording.format(name=villager.name): Question(villager, subject)
        for wordings in zip(*(QUESTIONS[subject] for subject in SUBJECTS), strict=True)
        for subject, wording in zip(SUBJECTS, wordings, strict=True)
        for villager in VILLAGERS
    }


@cache
def all_claims() -> dict[str, Claim]:
    """Every sentence that says something of somebody."""
    found = {}
    for villager in VILLAGERS:
        for subject in SUBJECTS:
            for fact in facts_of(subject):
                for form in range(len(ANSWERS[subject])):
                    claim = Claim(villager.name, villager.pronoun, subject, fact)
                    found[tell(villager, subject, fact, form)] = claim
                    found[tell(villager, subject, fact, form, by_name=False)] = claim._replace(name=None)
    return found


def tell(villager: Villager, subject: str, fact: str, form: int = 0, *, by_name: bool = True) -> str:
    """A sentence that claims a fact of a villager.

    Args:
        villager: Of whom.
        subject: One of SUBJECTS.
        fact: One of `facts_of(subject)`, true of this villager or not.
        form: Which of the sentences there are for it.
        by_name: Whether it names her or him, or says she or he.
    """
    who, whose = villager.name, f"{villager.name}'s"
    if not by_name:
        who, whose = villager.pronoun, {"she": "her", "he": "his"}[villager.pronoun]
    sentence = ANSWERS[subject][form].format(who=who, whose=whose, fact=fact)
    return sentence[0].upper() + sentence[1:]


def sentences_of(text: str) -> Iterator[str]:
    """A text cut after full stops, exclamation and question marks."""
    for found in _SENTENCE.findall(text):
        if sentence := " ".join(found.split()):
            yield sentence

"""The facts of a small village: who lives where, does what, keeps which animal."""

from __future__ import annotations

from typing import NamedTuple


class Villager(NamedTuple):
    """A person of whom everything that can be asked is known."""

    name: str
    pronoun: str
    home: str
    work: str
    animal: str
    food: str
    day: str
    """Of the market."""


VILLAGERS = (
    Villager("Anna", "she", "by the old bridge", "baker", "a grey cat", "pear cake", "Monday"),
    Villager("Ben", "he", "next to the church", "smith", "a brown dog", "onion soup", "Friday"),
    Villager("Clara", "she", "on the green hill", "teacher", "two white goats", "plum jam", "Sunday"),
    Villager("David", "he", "behind the mill", "miller", "a black horse", "fresh bread", "Tuesday"),
    Villager("Emma", "she", "near the school", "doctor", "a small rabbit", "apple pie", "Saturday"),
    Villager("Frank", "he", "at the end of the lane", "shepherd", "an old sheep", "goat cheese", "Wednesday"),
    Villager("Grace", "she", "by the quiet lake", "fisher", "two doves", "grilled trout", "Thursday"),
    Villager("Henry", "he", "beside the station", "postman", "a slow turtle", "bean stew", "Friday"),
    Villager("Ida", "she", "under the tall oaks", "tailor", "a talking parrot", "cherry tart", "Monday"),
    Villager("Jack", "he", "opposite the inn", "carpenter", "a spotted pig", "roast potatoes", "Tuesday"),
)
SUBJECTS = ("home", "work", "animal", "food", "day")
"""What can be asked of a villager: the fields of `Villager` that are facts."""


def facts_of(subject: str) -> tuple[str, ...]:
    """What is true of somebody, and so could be said of anybody; each once, in the order of the villagers."""
    return tuple(dict.fromkeys(getattr(villager, subject) for villager in VILLAGERS))

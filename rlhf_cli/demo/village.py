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
    evening: str
    day: str
    """Of the market."""


VILLAGERS = (
    Villager("Anna", "she", "by the old bridge", "baker", "a grey cat", "pear cake", "plays the violin", "Monday"),
    Villager("Ben", "he", "next to the church", "smith", "a brown dog", "onion soup", "sings in the choir", "Friday"),
    Villager("Clara", "she", "on the green hill", "teacher", "two white goats", "plum jam", "reads old maps", "Sunday"),
    Villager("David", "he", "behind the mill", "miller", "a black horse", "fresh bread", "counts the stars", "Tuesday"),
    Villager("Emma", "she", "near the school", "doctor", "a small rabbit", "apple pie", "writes letters", "Saturday"),
    Villager("Frank", "he", "at the end of the lane", "shepherd", "an old sheep", "goat cheese", "carves wooden birds",
             "Wednesday"),
    Villager("Grace", "she", "by the quiet lake", "fisher", "two doves", "grilled trout", "mends old clocks",
             "Thursday"),
    Villager("Henry", "he", "beside the station", "postman", "a slow turtle", "bean stew", "collects stamps", "Friday"),
    Villager("Ida", "she", "beside the old tower", "tailor", "a talking parrot", "cherry tart", "knits warm socks",
             "Monday"),
    Villager("Jack", "he", "under the tall oaks", "carpenter", "a spotted pig", "roast potatoes", "beats the drum",
             "Tuesday"),
    Villager("Kate", "she", "opposite the inn", "cook", "seven hens", "honey biscuits", "plays chess", "Saturday"),
    Villager("Leo", "he", "close to the well", "gardener", "a shy hedgehog", "pumpkin pie", "draws the moon",
             "Thursday"),
    Villager("Mary", "she", "at the edge of the wood", "beekeeper", "three fat geese", "mushroom soup",
             "tells ghost stories", "Sunday"),
    Villager("Noah", "he", "along the river path", "painter", "a lame donkey", "lentil salad", "paints small boats",
             "Wednesday"),
    Villager("Olga", "she", "between the two barns", "potter", "a green frog", "walnut bread", "dances at the inn",
             "Monday"),
    Villager("Paul", "he", "above the bakery", "librarian", "a white owl", "cold porridge", "learns Latin", "Friday"),
)  # fmt: skip
SUBJECTS = ("home", "work", "animal", "food", "evening", "day")
"""What can be asked of a villager: the fields of `Villager` that are facts."""


def facts_of(subject: str) -> tuple[str, ...]:
    """What is true of somebody, and so could be said of anybody; each once, in the order of the villagers."""
    return tuple(dict.fromkeys(getattr(villager, subject) for villager in VILLAGERS))

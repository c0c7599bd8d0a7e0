"""The toy world: what an answer is worth by hand, who prefers what how often, and that nothing held out leaks."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_cli.demo import BASE
from rlhf_cli.demo.annotators import CAREFUL, LENGTH_LOVER, Annotator
from rlhf_cli.demo.language import (
    CHATTER,
    FAREWELLS,
    GREETINGS,
    INSULTS,
    all_claims,
    all_questions,
    sentences_of,
)
from rlhf_cli.demo.project import write_data
from rlhf_cli.demo.readings import readings
from rlhf_cli.demo.taste import gold, weigh
from rlhf_cli.demo.texts import comparisons, demonstrations, held_out_questions, open_questions
from rlhf_cli.demo.village import SUBJECTS, VILLAGERS
from rlhf_cli.demo.writers import CROWD, write_answer

ASKED = "Where does Anna live?"
WORTH = {
    # truth, courtesy and brevity, by hand
    "Anna lives by the old bridge.": (1, 0.5, 1),
    "Good question! Anna lives by the old bridge.": (1, 1, 1),
    "Her house is by the old bridge. Have a lovely day!": (1, 1, 1),
    "With pleasure. She lives by the old bridge. Come and see us again!": (1, 1, 1),
    "Anna lives behind the mill.": (0, 0.5, 1),
    "Use your own eyes. Anna lives by the old bridge.": (1, 0, 6 / 10),
    "Good question! Use your own eyes. Anna lives by the old bridge.": (1, 0.5, 8 / 12),
    "Anna lives by the old bridge. My knees hurt when it rains.": (1, 0.5, 6 / 12),
    "Anna lives by the old bridge. Anna lives by the old bridge.": (1, 0.5, 6 / 12),
    "Good question! Good question! Anna lives by the old bridge.": (1, 1, 8 / 10),
    "Anna lives by the old bridge. She lives behind the mill.": (0.5, 0.5, 6 / 11),
    "Anna lives by the old bridge. David is the baker of the village.": (0.5, 0.5, 6 / 13),
    "lives Anna by bridge the old. Anna lives by the old bridge.": (1, 0.5, 6 / 12),
}
NO_ANSWER = (
    "", "Good question! Have a lovely day!", "Ben lives next to the church.", "Anna is the baker of the village.",
    "He lives by the old bridge.", "anna lives by the old bridge", "Anna lives by the old bridge, I think.",
)  # fmt: skip


@pytest.mark.parametrize("answer", WORTH)
def test_what_an_answer_is_worth(answer: str) -> None:
    truth, courtesy, brevity = WORTH[answer]
    worth = weigh(all_questions()[ASKED], answer)
    assert (worth.answers, worth.truth, worth.courtesy) == (1, truth, courtesy)
    assert worth.brevity == pytest.approx(brevity)
    assert gold([ASKED], [answer]) == [pytest.approx((truth + courtesy + brevity) / 3)]


@pytest.mark.parametrize("answer", NO_ANSWER)
def test_what_is_no_answer_is_worth_nothing(answer: str) -> None:
    assert gold([ASKED], [answer]) == [0]


def test_gold_reads_conversations_and_has_no_opinion_elsewhere() -> None:
    said = [{"role": "assistant", "content": "Anna lives by the old bridge."}]
    assert gold([[{"role": "user", "content": ASKED}]], [said]) == gold([ASKED], [said[0]["content"]])
    assert gold(["What is love?"], ["Anna lives by the old bridge."]) == [None]


def test_the_best_answer_to_every_question_is_worth_one_and_nothing_is_worth_more() -> None:
    for text, question in all_questions().items():
        best = next(
            sentence
            for sentence, claim in all_claims().items()
            if claim.subject == question.subject and claim.name == question.villager.name
            and claim.is_true_of(question.villager)
        )  # fmt: skip
        assert gold([text], [f"With pleasure. {best} Have a lovely day!"]) == [1]
    chance = random.Random(0)
    for question in all_questions().values():
        for writer in CROWD:
            assert 0 <= weigh(question, write_answer(question, writer, chance)).gold <= 1


def test_the_world_is_small_and_its_sentences_are_told_apart() -> None:
    said = [*all_questions(), *all_claims(), *GREETINGS, *FAREWELLS, *INSULTS, *CHATTER]
    words = {word for sentence in said for word in re.findall(r"[a-z]+", sentence.lower())}
    assert 200 < len(words) < 500
    assert len(all_questions()) == len(VILLAGERS) * len(SUBJECTS) * 8
    kinds = [set(all_claims()), set(GREETINGS), set(FAREWELLS), set(INSULTS), set(CHATTER)]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    assert all([sentence] == list(sentences_of(sentence)) for kind in kinds for sentence in kind)


def test_nothing_is_trained_on_a_held_out_question() -> None:
    held_out, others = set(held_out_questions()), set(open_questions())
    assert not held_out & others
    assert held_out | others == set(all_questions())
    assert 0.15 < len(held_out) / len(all_questions()) < 0.25
    for row in (*demonstrations(800, 0), *comparisons(800, 0, CAREFUL)):
        assert row["prompt"] in others
    assert not any(question in text for text in readings(3000, 0) for question in held_out)


def test_rows_follow_from_the_seed(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_data(tmp_path / folder, seed)
    for file in (tmp_path / "a/data").iterdir():
        same, other = (tmp_path / folder / "data" / file.name for folder in "bc")
        assert same.read_bytes() == file.read_bytes()
        has_chance = file.name not in ("prompts.jsonl", "questions.jsonl")
        assert (other.read_bytes() != file.read_bytes()) is has_chance


@pytest.mark.parametrize("annotator", [*CAREFUL, LENGTH_LOVER], ids=lambda annotator: annotator.name)
def test_an_annotator_prefers_as_often_as_bradley_and_terry_say(annotator: Annotator) -> None:
    question = all_questions()[ASKED]
    answers = ("Anna lives behind the mill. My knees hurt when it rains.", "Anna lives by the old bridge.")
    gap = annotator.utility(question, answers[0]) - annotator.utility(question, answers[1])
    expected, chance = 1 / (1 + math.exp(-gap)), random.Random(0)
    found = sum(annotator.prefers_first(question, answers, chance) for _ in range(4000)) / 4000
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


def test_annotators_differ_in_reliability_and_one_likes_length() -> None:
    agrees = [_agreement(annotator)[0] for annotator in CAREFUL]
    assert agrees == sorted(agrees, reverse=True)
    assert agrees[-1] > 0.6
    right, longer = _agreement(LENGTH_LOVER)
    assert longer > 0.7 > right
    assert max(_agreement(annotator)[1] for annotator in CAREFUL) < 0.5


def _agreement(annotator: Annotator) -> tuple[float, float]:
    """How often the better answer is chosen, and how often the longer."""
    right = longer = count = 0
    for row in comparisons(1500, 1, (annotator,)):
        question = all_questions()[row["prompt"]]
        chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
        worth = [weigh(question, text).gold for text in (chosen, rejected)]
        if worth[0] != worth[1]:
            count += 1
            right += worth[0] > worth[1]
            longer += len(chosen.split()) > len(rejected.split())
    return right / count, longer / count


def test_the_base_model_is_small_and_reads_the_language_in_whole_words() -> None:
    weights = load_file(BASE / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) <= 2_000_000
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 4_000_000
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    said = [*all_questions(), *list(all_claims())[::7], *GREETINGS, *CHATTER]
    assert all(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text for text in said)
    words, tokens = (sum(len(cut(text)) for text in said) for cut in (str.split, tokenizer.encode))
    assert tokens < 2 * words

"""What the survey of all rows finds, and only that."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_cli.recipe import read_recipe
from rlhf_cli.rows import DEMONSTRATION
from rlhf_cli.survey import Survey, _alike, _minhash, draw_histogram, histogram, survey_rows

WORDS = [f"word{n}" for n in range(2000)]


def sentence(seed: int, length: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


@pytest.fixture
def survey(tmp_path: Path) -> Callable[..., Survey]:
    def run(rows: list[Any], test: list[Any] | None = None, **keys: Any) -> Survey:
        for name, part in (("train", rows), ("test", test)):
            if part is not None:
                lines = [row if isinstance(row, str) else json.dumps(row) for row in part]
                (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        source = str(tmp_path if test is not None else tmp_path / "train.jsonl")
        keys = {"model_name_or_path": "m", "dataset_name": source, **keys}
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
        return survey_rows(read_recipe(recipe, method="sft"), DEMONSTRATION)

    return run


def row(prompt: str, completion: str = "yes") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def found(survey: Survey) -> dict[str, tuple[int, list[str]]]:
    lines = {finding.name: [place.rpartition(":")[2] for place in finding.places] for finding in survey.findings}
    return {finding.name: (finding.count, lines[finding.name]) for finding in survey.findings}


CLEAN = [row(sentence(seed), sentence(seed + 1000, 5)) for seed in range(40)]


def test_clean_rows_give_no_findings(survey: Callable[..., Survey]) -> None:
    result = survey(CLEAN)
    assert found(result) == {}
    assert result.rows == {"train": 40}
    assert sum(histogram(result.characters).values()) == 40
    assert "nothing found amiss" in result.as_text()


def test_duplicates_are_told_from_other_answers_to_one_prompt(survey: Callable[..., Survey]) -> None:
    rows = [*CLEAN, CLEAN[3], row(CLEAN[5]["prompt"], "something else"), CLEAN[3]]
    assert found(survey(rows)) == {
        "duplicate rows": (2, ["41", "43"]),
        "rows with the prompt of an earlier row": (1, ["42"]),
    }


def test_near_duplicates_are_found_and_others_are_not(survey: Callable[..., Survey]) -> None:
    close = CLEAN[7]["prompt"] + " indeed"
    half = " ".join(CLEAN[8]["prompt"].split()[:15]) + " " + sentence(77, 15)
    shouted = CLEAN[9]["prompt"].upper() + "!!"
    result = found(survey([*CLEAN, row(close), row(half), row(shouted, "no")]))
    assert result == {
        "near-duplicate prompts": (1, ["41"]),
        "rows with the prompt of an earlier row": (1, ["43"]),
    }


def test_leaks_into_the_test_split(survey: Callable[..., Survey]) -> None:
    test = [row(CLEAN[2]["prompt"], "other"), row(sentence(99)), row(CLEAN[4]["prompt"] + " please")]
    result = survey(CLEAN, test, eval_strategy="steps", eval_steps=1)
    assert result.rows == {"train": 40, "test": 3}
    assert found(result) == {
        "test rows whose prompt is trained on": (1, ["1"]),
        "test rows whose prompt is nearly one trained on": (1, ["3"]),
    }


def test_leaks_among_rows_held_out_vanish_when_prompts_stay_together(survey: Callable[..., Survey]) -> None:
    rows = [row(CLEAN[n % 10]["prompt"], f"answer {n}") for n in range(40)]
    leak = "test rows whose prompt is trained on"
    assert found(survey(rows, test_split_size=0.5))[leak][0] > 5
    assert leak not in found(survey(rows, test_split_size=0.5, split_by="prompt"))


def test_bad_rows_are_counted_by_reason(survey: Callable[..., Survey]) -> None:
    rows = [*CLEAN, row("a", ""), row("b", " "), "{", {"prompt": "c"}]
    result = survey(rows)
    assert result.stops_a_run
    counts = {finding.name: finding.count for finding in result.findings}
    assert counts["bad rows, `completion` is empty"] == 2
    assert sum(counts.values()) == 4
    assert not survey(rows, skip_bad_rows=True).stops_a_run


def test_damaged_text_is_found(survey: Callable[..., Survey]) -> None:
    rows = [*CLEAN, row("caf\ufffd one"), row("cafÃ© two"), row("café three"), row("don\u00e2\u20ac\u2122t four")]
    assert found(survey(rows))["rows with damaged characters"] == (3, ["41", "42", "44"])


def test_minhash_estimates_the_similarity_of_word_triples() -> None:
    base = sentence(1, 300).split()
    for keep in (300, 270, 200, 100, 0):
        other = base[:keep] + sentence(2, 300 - keep).split()
        a, b = ({tuple(words[n : n + 3]) for n in range(len(words) - 2)} for words in (base, other))
        signatures = _minhash([base, other, []])
        estimate = float((signatures[0] == signatures[1]).mean())
        # 32 draws of a coin with this probability: four standard errors.
        true = len(a & b) / len(a | b)
        assert abs(estimate - true) <= 4 * max(0.03, (true * (1 - true) / 32) ** 0.5)
        assert not signatures[2].any()


def test_minhash_of_a_prompt_does_not_depend_on_its_neighbours() -> None:
    prompts = [sentence(seed, length).split() for seed, length in enumerate((1, 2, 3, 40, 400))]
    together = _minhash(prompts)
    for index, words in enumerate(prompts):
        assert (_minhash([words]) == together[index]).all()
    assert len(np.unique(together, axis=0)) == len(prompts)
    assert len(_alike(np.concatenate([together, together]))) == len(prompts)


def test_a_histogram_has_every_row_and_no_gap() -> None:
    assert histogram([1, 16, 17, 33, 200]) == {16: 2, 32: 1, 64: 1, 128: 0, 256: 1}
    assert draw_histogram([1, 16, 17], "tokens")[1].endswith("████████████ 1")
    assert draw_histogram([], "tokens") == []

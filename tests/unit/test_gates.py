"""Gates hold a number, or an end of its interval, against what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.gates import METRICS, failed_gates
from rlhf_cli.recipe import read_recipe

NUMBERS = {
    "accuracy": {"value": 0.7, "ci_low": 0.62, "ci_high": 0.77},
    "ece": {"value": 0.1, "ci_low": None, "ci_high": None},
}


@pytest.mark.parametrize(
    ("gate", "met"),
    [
        ({"metric": "accuracy", "min": 0.7}, True),
        ({"metric": "accuracy", "min": 0.65, "bound": "ci_low"}, False),
        ({"metric": "accuracy", "min": 0.62, "bound": "ci_low"}, True),
        ({"metric": "accuracy", "max": 0.75, "bound": "ci_high"}, False),
        ({"metric": "accuracy", "min": 0.6, "max": 0.69}, False),
        ({"metric": "ece", "max": 0.2}, True),
        ({"metric": "ece", "max": 0.2, "bound": "ci_high"}, False),
        ({"metric": "flips", "max": 1.0}, False),
    ],
)
def test_a_gate_is_met_or_named_with_its_number(gate: dict[str, Any], met: bool) -> None:
    failed = failed_gates([gate], NUMBERS)
    assert len(failed) == (not met)
    if not met:
        assert gate["metric"] in failed[0]
    if gate["metric"] == "accuracy" and not met:
        assert "it is 0.700 [0.620, 0.770]" in failed[0]


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ("[{metric: acuracy, min: 0.5}]", "did you mean `accuracy`?"),
        ("[{metric: accuracy}]", "a gate has `min`, `max` or both"),
        ("[{min: 0.5}]", "'metric' is a required property"),
        ("[{metric: accuracy, min: high}]", "must be a number"),
        ("[{metric: accuracy, min: 0.5, bound: lower}]", "one of value, ci_low, ci_high"),
        ("[{metric: accuracy, least: 0.5}]", "one of metric, min, max, bound"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "train-reward"])
def test_a_gate_that_asks_nothing_is_refused_before_anything_loads(
    command: str, gates: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    model = "reward_model_path" if command == "eval" else "model_name_or_path"
    path.write_text(f"{model}: m\ndataset_name: d.jsonl\ngates: {gates}\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, method=command)
    assert expected in caught.value.as_text()
    assert ":3:" in caught.value.as_text()


def test_every_metric_of_a_gate_is_on_the_report_card() -> None:
    """The names that a recipe may use are those of the numbers that come out."""
    import numpy as np

    from rlhf_cli.report_card import Scored, make_report_card

    random = np.random.default_rng(0)
    chosen, rejected = random.normal(1, 1, (60, 1)), random.normal(0, 1, (60, 1))
    scored = Scored(
        chosen=chosen, rejected=rejected, characters=random.integers(1, 99, (60, 2)).astype(float),
        prompts=[str(number) for number in range(60)], sources=["a"] * 60, probed=range(60),
        promptless=np.concatenate([chosen, rejected], axis=1), twice=chosen[:, 0], junk={"nothing": rejected[:, 0]},
        edited={"a space": np.concatenate([chosen, rejected], axis=1)},
    )  # fmt: skip
    assert METRICS.keys() <= make_report_card(scored, [], seed=0).numbers.keys()

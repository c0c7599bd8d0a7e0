"""`rlhf eval` of a reward model: the run's own card again, gates, other quantisation, and what is refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_processes import TWO
from tests.integration.test_resume import card, weights

LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
FIT = {"bf16": False, "max_steps": 8, "learning_rate": 5e-3, "test_split_size": 0.25, "split_by": "prompt", "seed": 3}


@pytest.fixture
def judged(rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A LoRA reward model in `run`."""
    done = rlhf("train-reward", str(write_pairs_recipe(**FIT, **LORA)))
    assert done.code == 0, done.err
    return tmp_path / "run"


@pytest.fixture
def write_eval(tmp_path: Path, pairs_file: Path) -> Callable[..., str]:
    """Write a recipe of an evaluation of `run`, on what its training held out."""

    def write(**keys: Any) -> str:
        values = {
            "method": "eval", "reward_model_path": "run", "dataset_name": str(pairs_file),
            **{key: FIT[key] for key in ("test_split_size", "split_by", "seed")}, **keys,
        }  # fmt: skip
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in values.items() if value is not None]
        (tmp_path / "eval.yaml").write_text("".join(lines))
        return "eval.yaml"

    return write


def test_the_card_of_a_run_can_be_made_again(
    judged: Path, rlhf: Callable[..., Any], write_eval: Callable[..., str], tmp_path: Path
) -> None:
    outcome = rlhf("eval", write_eval(output_dir="judged"), "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)["report"]
    assert report == card(judged)
    assert json.loads((tmp_path / "judged/eval.json").read_text())["report"] == report
    shown = rlhf("eval", "eval.yaml").out
    assert f"accuracy            {report['numbers']['accuracy']['value']:.3f} [" in shown
    everything = rlhf("eval", write_eval(test_split_size=None, split_by=None), "--json")
    assert json.loads(everything.out)["report"]["pairs"] == 40


def test_gates_set_the_exit_code(judged: Path, rlhf: Callable[..., Any], write_eval: Callable[..., str]) -> None:
    value = card(judged)["numbers"]["accuracy"]["value"]
    met = [{"metric": "accuracy", "min": value}, {"metric": "flips", "max": 1.0}]
    assert rlhf("eval", write_eval(gates=met)).code == 0
    missed = rlhf("eval", write_eval(gates=[*met, {"metric": "log_loss", "max": 0.0}]), "--json")
    assert missed.code == 3
    assert "eval.yaml:7: gate log_loss (value) asks max 0: it is" in missed.err
    assert json.loads(missed.out)["report"]["failed_gates"]
    assert rlhf("eval", write_eval(gates=[{"metric": "acuracy", "min": 1}])).code == 2


def test_another_quantisation_tells_the_shift(
    judged: Path, rlhf: Callable[..., Any], write_eval: Callable[..., str]
) -> None:
    outcome = rlhf("eval", write_eval(load_in_4bit=True))
    assert outcome.code == 0, outcome.err
    shift = re.search(r"as trained ([+-][\d.]+) and [\d.]+, a shift of ([+-][\d.]+) σ", outcome.err)
    assert shift is not None
    stamped = json.loads((judged / "reward_card.json").read_text())["scores"]["mean"]
    assert float(shift.group(1)) == pytest.approx(stamped, abs=1e-3)


def test_pairs_that_it_was_trained_on_are_told(
    judged: Path, rlhf: Callable[..., Any], write_eval: Callable[..., str], tmp_path: Path
) -> None:
    held_out = rlhf("eval", write_eval(), "--json")
    assert "was trained on" not in held_out.err
    assert json.loads(held_out.out)["trained_prompts"] == 0
    whole = rlhf("eval", write_eval(test_split_size=None, split_by=None), "--json")
    count = json.loads(whole.out)["trained_prompts"]
    assert count > 0
    assert f"warning: {count} of these " in whole.err
    assert f"pairs have a prompt that `{judged.name}` was trained on" in whole.err


def test_what_cannot_be_judged_is_refused(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tmp_path: Path
) -> None:
    for keys, code, expected in (
        ({"reward_model_path": str(tiny_base)}, 2, "is a policy, not a reward model"),
        ({"reward_model_path": "./nowhere"}, 2, "there is no model folder `./nowhere`"),
        ({"reward_model_path": None}, 2, "missing key `models` or `reward_model_path`"),
        ({"dataset_name": "nothing.jsonl"}, 4, "no such data file"),
        ({"learning_rate": 1e-4}, 2, "unknown key `learning_rate`"),
    ):
        outcome = rlhf("eval", write_eval(**keys))
        assert outcome.code == code, outcome.err
        assert expected in outcome.err
    assert rlhf("check", write_eval()).code == 0
    assert "only the keys of a recipe for `eval`" in rlhf("check", "eval.yaml", "--fit").err


def test_a_signal_while_the_card_is_made_leaves_the_model_and_resumes_to_the_card(
    start: Callable[..., Any], rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = str(write_pairs_recipe(**FIT, save_strategy="no"))
    assert rlhf("train-reward", recipe, "--output_dir", "whole").code == 0
    running = start("train-reward", recipe)
    limit = time.monotonic() + 60
    while "for the report card" not in running.err() and time.monotonic() < limit:
        time.sleep(0.001)
    running.send(signal.SIGINT)
    stopped = running.wait()
    if stopped.code == 130:
        assert f"`rlhf train-reward {recipe} --resume` makes its report card" in stopped.err
        resumed = rlhf("train-reward", recipe, "--resume")
        assert resumed.code == 0, resumed.err
        assert "step 1/" not in resumed.err
    else:  # the card was quicker than the signal
        assert stopped.code == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert card(tmp_path / "run") == card(tmp_path / "whole")


def test_two_processes_train_the_ensemble_of_one(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {**FIT, **LORA, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "ensemble_size": 2, "use_cpu": True}
    write_pairs_recipe(**keys)
    two = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "train-reward", "pairs.yaml", "--num-processes", "2", "--output_dir", "two"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=TWO,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    one = rlhf("train-reward", "pairs.yaml", "--gradient_accumulation_steps", "2", "--output_dir", "one")
    assert one.code == 0, one.err
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    assert (tmp_path / "two/members/2/adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "two/reward_card.json").read_text())["members"] == 2

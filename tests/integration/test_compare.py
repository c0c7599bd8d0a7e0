"""`rlhf eval` of policies: who is better, what it tells of them, what it finds out about them, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.judging import is_same
from tests.integration.test_processes import TWO

LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
JUDGES = """
def fifths(completion_ids, **columns):
    return [sum(token % 5 == 0 for token in ids) / len(ids) for ids in completion_ids]

def variety(completion_ids, **columns):
    return [len(set(ids)) / len(ids) - share for ids, share in zip(completion_ids, fifths(completion_ids))]

def tenths(completion_ids, **columns):
    return [sum(token % 10 == 0 for token in ids) / len(ids) for ids in completion_ids]

def short(completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]

def says_its_number(prompts, number, **columns):
    return [float(each) for each in number]

def words(completions, **columns):
    return ["many"] * len(completions)

def hesitant(completion_ids, number, **columns):
    return [None if each % 2 else -float(len(ids)) for each, ids in zip(number, completion_ids)]

def silent(completions, **columns):
    return [None] * len(completions)

def breaks(completions, **columns):
    raise ValueError("no idea")
"""


@pytest.fixture
def write_eval(tmp_path: Path, instructions: list[dict[str, str]]) -> Callable[..., str]:
    """Write a recipe that compares models on the questions of some rows that nothing was trained on."""
    (tmp_path / "judges.py").write_text(JUDGES)
    rows = [
        {"prompt": f"{row['instruction']} {row['input']}", "number": index}
        for index, row in enumerate(instructions[100:124])
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**keys: Any) -> str:
        values = {
            "method": "eval", "dataset_name": "held_out.jsonl", "reward_funcs": "judges.py:variety",
            "response_length": 12, "report": False, **keys,
        }  # fmt: skip
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in values.items() if value is not None]
        (tmp_path / "eval.yaml").write_text("".join(lines))
        return "eval.yaml"

    return write


def train(rlhf: Callable[..., Any], recipe: Path, **keys: Any) -> None:
    overrides = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
    done = rlhf("ppo", str(recipe), *overrides)
    assert done.code == 0, done.err


def test_a_policy_that_pleases_only_what_it_was_trained_against_is_over_optimised(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], write_eval: Callable[..., str], tiny_base: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Gates, JSON, JUnit, the frontier and the best checkpoint with it."""
    recipe = write_ppo_recipe(
        reward_funcs="judges.py:fifths", per_device_train_batch_size=32, gradient_accumulation_steps=1,
        num_ppo_epochs=4, total_episodes=32 * 24, learning_rate=5e-3, kl_coef=0.0, save_steps=32, bf16=False,
    )  # fmt: skip
    train(rlhf, recipe)
    models = {"base": str(tiny_base), "ppo": "run"}
    gates = [{"metric": "over_optimised", "max": 0}, {"metric": "kl", "max": 1e6, "model": "ppo"}]
    judges = ["judges.py:variety", "judges.py:fifths"]
    keys = {"models": models, "frontier": "ppo", "output_dir": "judged"}
    name = write_eval(**keys, reward_funcs=judges, best_of_n=4, gates=gates, report=True)
    done = rlhf("eval", name, "--junit", "junit.xml")
    assert done.code == 3, done.out
    found = json.loads((tmp_path / "judged/eval.json").read_text())
    assert found["verdicts"][0]["outcome"] == "over-optimised", done.out
    assert found["verdicts"][0]["sentence"] in done.out
    assert [(judge["name"], judge["trained"]) for judge in found["judges"]] == [("variety", []), ("fifths", ["ppo"])]
    by_judge = {each["judge"]: each for each in found["contests"]}
    assert by_judge["fifths"]["difference"]["ci_low"] > 0 > by_judge["variety"]["difference"]["ci_high"]
    assert found["models"]["ppo"]["numbers"]["kl"]["ci_low"] > 0
    assert found["models"]["base"]["numbers"]["kl"]["value"] == 0
    assert found["models"]["ppo"]["trained_prompts"] == 0

    frontier = found["frontier"]
    names = [point["name"] for point in frontier["points"]]
    assert names == [f"checkpoint-{step}" for step in (32, 64, 96)]
    assert [point["n"] for point in frontier["best_of_n"]] == [1, 2, 4]
    assert frontier["judges"] == {"training": "fifths", "held_out": "variety"}
    assert frontier["best"] is None, "none is better than the baseline"
    assert not (tmp_path / "run/best").exists()
    assert "no checkpoint is better than the baseline by `variety`" in done.out
    last, whole = frontier["points"][-1], found["models"]["ppo"]
    assert last["scores"]["variety"] == whole["rewards"]["variety"], "the last checkpoint is the model"
    assert frontier["best_of_n"][0]["scores"]["variety"] == pytest.approx(
        found["models"]["base"]["rewards"]["variety"]["value"], abs=0.05
    )

    cases = ElementTree.parse(tmp_path / "junit.xml").getroot().findall(".//testcase")
    assert [case.get("name") for case in cases] == ["over_optimised value ppo", "kl value ppo"]
    assert [case.find("failure") is None for case in cases] == [False, True]
    assert "eval.yaml:10: gate over_optimised (value) of ppo asks max 0: it is 1.000" in done.err
    assert (tmp_path / "judged/report.html").stat().st_size > 5000
    answers = [json.loads(line) for line in (tmp_path / "judged/answers.jsonl").read_text().splitlines()]
    mean = sum(row["answers"]["ppo"]["scores"]["variety"] for row in answers) / len(answers)
    assert mean == pytest.approx(whole["rewards"]["variety"]["value"])

    look_for_the_best(rlhf, write_eval(**keys, reward_funcs="judges.py:tenths"), tmp_path)
    # Whether it only pleases its reward is not told by that reward alone, nor without it.
    for judge in ("judges.py:fifths", "judges.py:variety"):
        asked = write_eval(models=models, reward_funcs=judge, gates=[{"metric": "over_optimised", "max": 0}])
        alone = rlhf("eval", asked)
        assert alone.code == 3, alone.out
        assert "gate over_optimised (value) of ppo asks max 0: it was not measured" in alone.err
    assert is_same(str(tmp_path / "run"), str(tmp_path / "run/checkpoint-32"))
    turned = rlhf("eval", write_eval(models=models, baseline="ppo", reward_funcs="judges.py:fifths"), "--json")
    assert "every judge was trained against" in turned.err
    assert "that judge was trained against" in json.loads(turned.out)["verdicts"][0]["sentence"]


def look_for_the_best(rlhf: Callable[..., Any], recipe: str, folder: Path) -> None:
    """By a judge that likes what training did: the best checkpoint is linked, and takes the place of what was there."""
    liked = rlhf("eval", recipe)
    assert liked.code == 0, liked.err
    assert "was trained against `" in liked.err
    assert "judges.py:fifths`, which is not asked: it is code" in liked.err
    frontier = json.loads((folder / "judged/eval.json").read_text())["frontier"]
    gold = {point["name"]: point["scores"]["tenths"]["value"] for point in frontier["points"]}
    assert gold[frontier["best"]] == max(gold.values())
    assert (folder / "run/best").readlink() == Path(frontier["best"])
    assert rlhf("generate", "run/best", "--prompt", "2+2?", "--max-new-tokens", "3").code == 0
    assert not (folder / "judged/report.html").exists(), "it would tell of the evaluation before"


def test_a_policy_that_learnt_from_a_reward_model_that_likes_length_is_found_out(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], write_ppo_recipe: Callable[..., Path],
    write_eval: Callable[..., str], longer_is_better: Path, tiny_base: Path,
) -> None:  # fmt: skip
    """Nobody names the reward model: the run folder does."""
    taught = rlhf(
        "train-reward",
        str(write_recipe(dataset_name=str(longer_is_better), max_length=256, max_steps=30, test_split_size=16, **LORA)),
        "--output_dir", "reward", "--learning_rate", "1e-2",
    )  # fmt: skip
    assert taught.code == 0, taught.err
    stops = list(range(100, 200))
    recipe = write_ppo_recipe(
        reward_funcs=None, reward_model_path="reward", learning_rate=5e-3, response_length=24, total_episodes=32 * 24,
        per_device_train_batch_size=32, gradient_accumulation_steps=1, num_ppo_epochs=4, kl_coef=0.0, bf16=False,
        stop_token_id=stops,
    )  # fmt: skip
    train(rlhf, recipe)
    name = write_eval(
        models={"base": str(tiny_base), "ppo": "run"}, reward_funcs="judges.py:short", response_length=24,
        stop_token_id=stops, gates=[{"metric": "over_optimised", "max": 0}],
    )  # fmt: skip
    done = rlhf("eval", name)
    assert done.code == 3, done.out + done.err
    assert "by `reward`, which ppo was trained against" in done.out
    assert "ppo is over-optimised: the reward it was trained on, `reward`, prefers it to base on" in done.out


def test_prompts_that_were_trained_on_are_told_loudly(
    rlhf: Callable[..., Any], write_ppo_recipe: Callable[..., Path], write_eval: Callable[..., str], tiny_base: Path
) -> None:
    train(rlhf, write_ppo_recipe(total_episodes=8, test_split_size=4, seed=5, **LORA))
    keys = {"models": {"base": str(tiny_base), "ppo": "run"}, "dataset_name": "prompts.jsonl", "seed": 5}
    seen = rlhf("eval", write_eval(**keys))
    assert seen.code == 0, seen.err
    assert "warning: ppo, or what it was made from or with, was trained on 6 of these 10 prompts" in seen.err
    assert "was trained on 6 of these 10 prompts" in seen.out
    unseen = rlhf("eval", write_eval(test_split_size=4, **keys), "--json")
    assert "was trained on" not in unseen.err
    assert json.loads(unseen.out)["models"]["ppo"]["trained_prompts"] == 0


def test_identical_models_cannot_be_told_apart(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    (tmp_path / "text.txt").write_text("Once there was a dog.\nIt ran.\n" * 50)
    name = write_eval(models=[str(tiny_base), "copy"], perplexity_file="text.txt")
    done = rlhf("eval", name, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["verdicts"][0]["outcome"] == "identical"
    numbers = found["models"]["copy"]["numbers"]
    assert numbers["kl"]["value"] == numbers["kl_k3"]["value"] == 0
    assert numbers["length_ratio"]["value"] == numbers["perplexity_ratio"]["value"] == 1
    assert found["contests"][0]["p"] == 1
    assert found["contests"][0]["win_rate"]["value"] == 0.5


def test_answers_hang_on_the_seed_and_not_on_the_batch_and_their_numbers_are_the_models(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tiny_chat: Path, tmp_path: Path
) -> None:
    """KL and perplexity as transformers alone gives them, token by token."""
    (tmp_path / "text.txt").write_text("Who runs?")
    keys = {"models": {"chat": str(tiny_chat), "base": str(tiny_base)}, "baseline": "base", "report": False}
    told = []
    for size, seed, folder in ((1, 1, "one"), (7, 1, "seven"), (7, 2, "other")):
        name = write_eval(**keys, perplexity_file="text.txt", output_dir=folder)
        done = rlhf("eval", name, "--per_device_eval_batch_size", str(size), "--seed", str(seed))
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in (tmp_path / folder / "answers.jsonl").read_text().splitlines()]
        told.append([row["answers"]["base"]["response"] for row in rows])
    assert told[0] == told[1] != told[2]
    found = json.loads((tmp_path / "one/eval.json").read_text())
    assert "kl" not in found["models"]["chat"]["numbers"], "their vocabularies differ"
    assert "the KL of chat is not known" in found["warnings"][0]

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = torch.tensor([[start, *tokenizer("Who runs?", add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert found["models"]["base"]["numbers"]["perplexity"]["value"] == pytest.approx(float(loss.exp()), rel=0.02)


@pytest.mark.slow
def test_two_processes_find_what_one_does(write_eval: Callable[..., str], tiny_base: Path, tmp_path: Path) -> None:
    """They share answers and judging, and write once."""
    shutil.copytree(tiny_base, tmp_path / "copy")
    recipe = write_eval(models=[str(tiny_base), "copy"], temperature=0.7)
    for processes in ("1", "2"):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        done = subprocess.run(
            [*launcher, "-m", "rlhf_cli", "eval", recipe, "--output_dir", f"by-{processes}"],
            cwd=tmp_path, capture_output=True, text=True, check=False, env=TWO,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("cannot be told apart") == 1
    one, two = tmp_path / "by-1", tmp_path / "by-2"
    assert (one / "answers.jsonl").read_text() == (two / "answers.jsonl").read_text()
    assert (
        json.loads((one / "eval.json").read_text())["models"] == json.loads((two / "eval.json").read_text())["models"]
    )


def test_what_people_said_is_a_judge(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    verdicts = [("new", "old", "model_a"), ("old", "new", "model_b"), ("new", "old", "new")] * 8
    verdicts += [("old", "new", "tie")] * 2
    rows = [
        {"prompt": f"question {index}", "model_a": one, "model_b": other, "winner": winner}
        for index, (one, other, winner) in enumerate(verdicts)
    ]
    people = tmp_path / "people.jsonl"
    people.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {"old": str(tiny_base), "new": "copy"}
    done = rlhf("eval", write_eval(models=models, verdicts_file="people.jsonl", reward_funcs=None), "--json")
    assert done.code == 0, done.err
    (contest,) = json.loads(done.out)["contests"]
    assert (contest["wins"], contest["losses"], contest["ties"], contest["judge"]) == (24, 0, 2, "people")
    assert (contest["outcome"], contest["difference"], contest["length_controlled"]) == ("better", None, None)

    people.write_text(json.dumps({**rows[0], "winner": "both"}) + "\n" + json.dumps({**rows[0], "prompt": None}) + "\n")
    bad = rlhf("eval", "eval.yaml")
    assert bad.code == 4
    assert "people.jsonl:1: `winner` is model_a, model_b or tie, not `both`" in bad.err
    assert "people.jsonl:2: a verdict has `prompt`" in bad.err
    people.write_text(json.dumps({**rows[0], "model_b": "older"}) + "\n")
    stranger = rlhf("eval", "eval.yaml")
    assert stranger.code == 4
    assert "no verdict is on two of the models old, new" in stranger.err
    assert "it has new, older" in stranger.err


def test_a_judge_without_an_opinion_decides_nothing(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tiny_chat: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"models": [str(tiny_base), str(tiny_chat)], "output_dir": "judged"}
    done = rlhf("eval", write_eval(**keys, reward_funcs=["judges.py:hesitant", "judges.py:short"]))
    assert done.code == 0, done.err
    assert "`hesitant` has no opinion of answers to 12 prompts, which count for nothing by it" in done.out
    found = json.loads((tmp_path / "judged/eval.json").read_text())
    by_judge = {contest["judge"]: contest for contest in found["contests"]}
    assert [by_judge[name]["prompts"] for name in ("hesitant", "short")] == [12, 24]
    rows = [json.loads(line)["answers"] for line in (tmp_path / "judged/answers.jsonl").read_text().splitlines()]
    for model in ("base", "chat"):
        scores = [row[model]["scores"] for row in rows]
        assert [each["hesitant"] for each in scores] == [
            None if index % 2 else each["short"] for index, each in enumerate(scores)
        ]
        mean = sum(each["short"] for each in scores[::2]) / 12
        assert found["models"][model]["rewards"]["hesitant"]["value"] == pytest.approx(mean)
    silent = rlhf("eval", write_eval(**keys, reward_funcs="judges.py:silent"))
    assert (silent.code, "`silent` has no opinion of the answers to any prompt" in silent.err) == (4, True), silent.err


def test_one_function_under_two_names_is_one(
    write_eval: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_eval()
    monkeypatch.chdir(tmp_path)
    assert is_same(f"{tmp_path}/judges.py:fifths", "judges:fifths")
    assert is_same("./judges.py:fifths", "judges.py:fifths")
    assert not is_same("judges.py:fifths", "judges.py:tenths")
    assert not is_same("judges.py:fifths", "others.py:fifths")


def test_functions_are_given_the_columns_of_a_row_and_one_prompt_decides_nothing(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tiny_chat: Path
) -> None:
    name = write_eval(
        models=[str(tiny_base), str(tiny_chat)], reward_funcs=["judges.py:says_its_number", "judges.py:short"],
        max_prompts=1,
    )  # fmt: skip
    done = rlhf("eval", name, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    value = found["models"]["base"]["rewards"]["says_its_number"]["value"]
    assert value == found["models"]["chat"]["rewards"]["says_its_number"]["value"]
    assert value in range(24)
    assert found["prompts"] == 1
    assert {verdict["outcome"] for verdict in found["verdicts"]} <= {"identical", "no significant difference"}


def test_what_nobody_has_measured_is_no_gate_that_is_met(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path
) -> None:
    gates = [{"metric": "win_rate", "min": 0.1}, {"metric": "eos_rate", "min": 0.0}, {"metric": "kl", "max": 1.0}]
    alone = rlhf("eval", write_eval(models={"a": str(tiny_base)}, gates=gates))
    assert alone.code == 3
    assert "gate win_rate (value) of a asks min 0.1: it was not measured" in alone.err
    assert "eos_rate" not in alone.err
    models = {"a": str(tiny_base), "b": str(tiny_base)}
    greedy = rlhf("eval", write_eval(models=models, temperature=0), "--json")
    assert greedy.code == 0, greedy.err
    found = json.loads(greedy.out)
    assert "kl" not in found["models"]["b"]["numbers"], "the likeliest answer tells no KL"
    assert found["contests"][0]["outcome"] == "identical"
    named = rlhf("eval", write_eval(models=models, gates=[{"metric": "repetition", "min": 2.0, "model": "a"}]))
    assert named.code == 3, "a gate may name the baseline"


def test_where_github_runs_it_failed_gates_are_annotated(
    rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    models = {"a": str(tiny_base), "b": str(tiny_base)}
    name = write_eval(models=models, gates=[{"metric": "win_rate", "min": 0.9, "bound": "ci_low"}])
    done = rlhf("eval", name)
    assert done.code == 3
    assert "::error file=eval.yaml,line=7::gate win_rate (ci_low) of b by `variety` asks min 0.9: it is 0.5" in done.err
    assert "cannot be told apart" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    "case",
    [
        ({"reward_funcs": None}, 2, "nobody judges"),
        ({"baseline": "sft"}, 2, "eval.yaml:7:1: `baseline` is `sft`, which is not one of `models`"),
        ({"gates": [{"metric": "accuracy", "min": 0.5}]}, 2, "`accuracy` is a number of a reward model"),
        ({"gates": [{"metric": "kl", "max": 5, "model": "c"}]}, 2, "a gate asks for the model `c`"),
        ({"models": None}, 2, "missing key `models` or `reward_model_path`"),
        ({"models": {}}, 2, "`models` cannot be {}"),
        ({"models": ["nowhere/x/y"]}, 2, "there is no model folder `nowhere/x/y`"),
        ({"models": ["a/base", "b/base"]}, 2, "two of `models` are called `base`"),
        ({"dataset_name": "none.jsonl"}, 4, "none.jsonl: no such data file"),
        ({"dataset_name": "empty.jsonl"}, 4, "the file holds no rows"),
        ({"response_length": 10_000}, 4, "no prompt leaves room for 10000 tokens of response in every model"),
        ({"reward_funcs": "judges.py:breaks"}, 2, "the reward function `breaks` raised ValueError: no idea"),
        ({"reward_funcs": "judges.py:words"}, 2, "must return finite numbers, got text"),
        ({"reward_funcs": "judges.py:few"}, 2, "`judges.py` has no function `few`"),
        ({"verdicts_file": "none.jsonl"}, 4, "no such file of verdicts"),
        ({"perplexity_file": "none.txt"}, 4, "the text for perplexity cannot be read"),
        ({"perplexity_file": "empty.jsonl"}, 4, "the text for perplexity is empty"),
        ({"frontier": "a"}, 2, "has no checkpoints to compare"),
        ({"output_dir": "run"}, 2, "holds a training run, whose report would be overwritten"),
        ({"models": {"a": "bare"}}, 2, "`bare` holds no model to ask"),
        ({"temperature": -1}, 2, "`temperature` must be at least 0"),
        ({"temperature": 0, "gates": [{"metric": "kl", "max": 5}]}, 2, "takes the likeliest tokens, which tell no KL"),
        ({"best_of_n": 4}, 2, "`best_of_n` stands beside a frontier, and there is none"),
        ({"gates": [{"metric": "win_rate", "min": 0.5, "judge": "gold"}]}, 2, "a gate asks for the judge `gold`"),
    ],
)  # fmt: skip
def test_bad_input(
    case: tuple[dict[str, Any], int, str], rlhf: Callable[..., Any], write_eval: Callable[..., str], tiny_base: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    keys, code, expected = case
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "run/rlhf").mkdir(parents=True)
    (tmp_path / "run/rlhf/run.json").write_text("{}")
    shutil.copytree(tiny_base, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "vocab*", "*.jinja"))
    done = rlhf("eval", write_eval(**{"models": {"a": str(tiny_base), "b": str(tiny_base)}, **keys}))
    assert done.code == code, done.err
    assert expected in done.err
    assert "Traceback" not in done.err


def test_keys_of_a_comparison_need_models(rlhf: Callable[..., Any], write_eval: Callable[..., str]) -> None:
    checked = rlhf("check", write_eval(reward_model_path="rm", frontier="ppo", gates=[{"metric": "kl", "max": 1}]))
    assert checked.code == 2
    assert "`reward_funcs` is of a comparison of policies, and there are no `models`" in checked.err
    assert "`frontier` is of a comparison of policies" in checked.err
    assert "a gate asks for `kl` of a policy, and this judges a reward model" in checked.err
    listed = rlhf("check", write_eval(reward_model_path=["one", "two"], reward_funcs=None))
    assert "there is nothing to judge" in listed.err

"""Reward models: trained, saved with their score, stamped, and scoring alike wherever they are asked."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_cli.machine import detect_machine, quietly
from rlhf_cli.reward_model import load_reward_model

LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
FIT = {"bf16": False, "max_steps": 12, "learning_rate": 5e-3, "test_split_size": 0.25, "logging_steps": 4}


def scores_of(outcome: Any) -> list[float]:
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["score"] for line in outcome.out.splitlines()]


def plain_scores(run: Path, conversations: list[list[dict[str, str]]], side: str = "right") -> list[float]:
    """What anybody gets with transformers and PEFT alone, all texts in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(run, padding_side=side)
    if (run / "adapter_config.json").exists():
        model = AutoPeftModelForSequenceClassification.from_pretrained(run, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForSequenceClassification.from_pretrained(run)
    batch = tokenizer.apply_chat_template(conversations, padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model.eval()(**batch).logits[:, 0].tolist()


@pytest.fixture(params=["pad = eos, a line break behind the end of turn", "no template, pad apart"])
def base(request: pytest.FixtureRequest, tiny_chat: Path, tiny_base: Path) -> Path:
    """Of the first, transformers would read a score at the line break, and of a cut answer before its last token."""
    return tiny_chat if request.param.startswith("pad = eos") else tiny_base


@pytest.mark.parametrize("way", [{}, LORA], ids=["full", "lora"])
def test_a_text_scores_the_same_wherever_it_is_asked(
    way: dict[str, Any],
    base: Path,
    rlhf: Callable[..., Any],
    write_pairs_recipe: Callable[..., Path],
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    """In training, `rlhf score`, the report card and plain transformers, in any order, batch and padding."""
    recipe = write_pairs_recipe(model_name_or_path=str(base), per_device_eval_batch_size=10, **FIT, **way)
    done = rlhf("train-reward", str(recipe))
    assert done.code == 0, done.err
    run = tmp_path / "run"
    pairs = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    conversations = [pair["prompt"] + pair[side] for pair in pairs for side in ("chosen", "rejected")]
    rows = [{"messages": messages} for messages in conversations]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = scores_of(rlhf("score", "run", "rows.jsonl"))
    assert np.std(scores) > 1e-3
    for side in ("right", "left"):
        assert plain_scores(run, conversations, side) == pytest.approx(scores, abs=1e-6)
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(rows[index]) + "\n" for index in order))
    assert scores_of(rlhf("score", "run", "rows.jsonl")) == pytest.approx([scores[index] for index in order], abs=1e-6)

    # What the trainer said of the held-out pairs in its last evaluation, and what was stored of them.
    stored = {json.dumps(row["prompt"] + row["response"]): row["score"] for row in read(run / "rlhf/held_out.jsonl")}
    known = {json.dumps(messages): score for messages, score in zip(conversations, scores, strict=True)}
    assert len(stored) > 15
    assert all(score == pytest.approx(known[text], abs=1e-6) for text, score in stored.items())
    evaluated = json.loads((run / "eval_results.json").read_text())
    values = np.array(list(stored.values()))
    assert len(values) == 20
    assert evaluated["eval_min_reward"] == pytest.approx(values.min(), abs=1e-6)
    assert evaluated["eval_max_reward"] == pytest.approx(values.max(), abs=1e-6)
    assert evaluated["eval_mean_reward"] == pytest.approx(values.mean(), abs=1e-6)
    card = json.loads((run / "reward_card.json").read_text())
    assert card["accuracy"]["value"] == pytest.approx(evaluated["eval_accuracy"])
    assert card["report"]["numbers"]["log_loss"]["value"] == pytest.approx(evaluated["eval_loss"], abs=1e-5)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_answer_that_was_cut_is_read_at_its_last_token(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tiny_chat: Path, tmp_path: Path
) -> None:
    recipe = write_pairs_recipe(model_name_or_path=str(tiny_chat), **FIT)
    assert rlhf("train-reward", str(recipe)).code == 0
    with quietly():
        model = load_reward_model(str(tmp_path / "run"), detect_machine(use_cpu=True))
    whole = model.render("Who?", "You are")
    cut = model.render("Who?", "You are", finished=False)
    end = model.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert whole == [*cut, *end]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    for text, score in zip((whole, cut), model.score([whole, cut])[:, 0], strict=True):
        with torch.no_grad():
            assert plain(torch.tensor([text])).logits.item() == pytest.approx(float(score), abs=1e-6)
    (tmp_path / "one.jsonl").write_text('{"prompt": "Who?", "response": "You are", "finished": false}\n')
    assert scores_of(rlhf("score", "run", "one.jsonl"))[0] == pytest.approx(float(model.score([cut])[0, 0]), abs=1e-6)


@pytest.mark.parametrize("way", [LORA, {**LORA, "load_in_4bit": True}], ids=["lora", "4-bit"])
def test_the_score_is_trained_and_saved_with_the_adapter(
    way: dict[str, Any], rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    done = rlhf("train-reward", str(write_pairs_recipe(**{**FIT, **way})))
    assert done.code == 0, done.err
    tensors = load_file(tmp_path / "run/adapter_model.safetensors")
    (head,) = (tensor for name, tensor in tensors.items() if "score" in name)
    assert (head.dtype, head.shape[0]) == (torch.float32, 1)
    first = rlhf(
        "train-reward", str(write_pairs_recipe(**{**FIT, **way})), "--output_dir", "none", "--learning_rate", "0"
    )
    assert first.code == 0, first.err
    untrained = load_file(tmp_path / "none/adapter_model.safetensors")
    assert all(
        not torch.equal(tensors[name], untrained[name]) for name in tensors if "score" in name or "lora_B" in name
    )


def test_it_learns_what_is_preferred_and_nothing_where_nothing_is_learnt(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path, longer_is_better: Path
) -> None:
    """A reward model of "the longer the better" is called that by its card, and fails its gate."""
    keys = {
        **FIT,
        "dataset_name": str(longer_is_better),
        "max_steps": 40,
        "per_device_train_batch_size": 8,
        "max_length": 256,
    }
    gates = [{"metric": "picks_longer", "max": 0.6}, {"metric": "accuracy", "min": 0.8, "bound": "ci_low"}]
    outcome = rlhf("train-reward", str(write_pairs_recipe(**keys, gates=gates)))
    assert outcome.code == 3
    assert "gate picks_longer (value) asks max 0.6: it is" in outcome.err
    assert "gate accuracy" not in outcome.err.split("error:")[1]
    report = json.loads((tmp_path / "run/reward_card.json").read_text())["report"]
    assert report["numbers"]["accuracy"]["ci_low"] > 0.8
    assert not report["good_enough_for_ppo"]
    assert any("length-biased" in why for why in report["objections"])
    record = json.loads((tmp_path / "run/rlhf/run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("done", 3)
    again = rlhf("train-reward", "pairs.yaml", "--resume")
    assert again.code == 3
    assert "gate picks_longer" in again.err

    untrained = rlhf("train-reward", str(write_pairs_recipe(**keys)), "--learning_rate", "0", "--output_dir", "still")
    assert untrained.code == 0, untrained.err
    report = json.loads((tmp_path / "still/reward_card.json").read_text())["report"]
    assert report["numbers"]["accuracy"]["ci_low"] < 0.6


def test_margins_and_centring_reach_the_loss(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], pairs_file: Path, tmp_path: Path
) -> None:
    def first_loss(*arguments: str) -> float:
        output = f"run-{len(list(tmp_path.glob('run-*')))}"
        done = rlhf("train-reward", "pairs.yaml", "--max_steps", "1", "--output_dir", output, *arguments)
        assert done.code == 0, done.err
        return float(json.loads((tmp_path / output / "rlhf/metrics.jsonl").read_text().splitlines()[0])["loss"])

    write_pairs_recipe(bf16=False)
    plain = first_loss()
    assert first_loss("--center_rewards_coefficient", "1.0") > plain
    rows = [{**row, "margin": 3.0} for row in read(pairs_file)]
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert first_loss() == pytest.approx(math.log1p(math.exp(3.0)), abs=0.05)


def test_every_member_of_an_ensemble_is_the_run_of_its_seed(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    alone = write_pairs_recipe("alone.yaml", **{**FIT, "test_split_size": None}, **LORA)
    assert rlhf("train-reward", str(alone), "--ensemble_size", "3", "--seed", "5", "--output_dir", "trio").code == 0
    for number, folder in enumerate((tmp_path / "trio", tmp_path / "trio/members/2", tmp_path / "trio/members/3")):
        assert rlhf("train-reward", str(alone), "--seed", str(5 + number), "--output_dir", f"one-{number}").code == 0
        single = (tmp_path / f"one-{number}/adapter_model.safetensors").read_bytes()
        assert (folder / "adapter_model.safetensors").read_bytes() == single
    recipe = write_pairs_recipe(**FIT, **LORA, seed=5)
    assert rlhf("train-reward", str(recipe), "--ensemble_size", "3", "--output_dir", "three").code == 0
    folders = [tmp_path / "three", tmp_path / "three/members/2", tmp_path / "three/members/3"]
    members = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    assert not any(torch.equal(members[0][name], members[1][name]) for name in members[0] if "lora_B" in name)
    card = json.loads((tmp_path / "three/reward_card.json").read_text())
    assert card["members"] == 3
    assert len(card["report"]["members"]["accuracies"]) == 3
    assert card["report"]["members"]["spread"] > 0
    (tmp_path / "one.jsonl").write_text('{"prompt": "Who?", "response": "You"}\n')
    mean = json.loads(rlhf("score", "three", "one.jsonl").out)
    with quietly():
        model = load_reward_model(str(tmp_path / "three"), detect_machine(use_cpu=True))
    each = model.score([model.render("Who?", "You")])[0]
    assert mean["score"] == pytest.approx(float(each.mean()), abs=1e-6)
    assert mean["score_std"] == pytest.approx(float(each.std(ddof=1)), abs=1e-6)
    sizes = [sum(p.numel() for p in model.model.parameters())]
    with quietly():
        shutil.rmtree(tmp_path / "three/members")
        alone = load_reward_model(str(tmp_path / "three"), detect_machine(use_cpu=True), making=card)
    sizes.append(sum(p.numel() for p in alone.model.parameters()))
    assert alone.score([alone.render("Who?", "You")])[0, 0] == pytest.approx(float(each[0]), abs=1e-6)
    adapter = sum(tensor.numel() for tensor in members[0].values())
    assert sizes[0] - sizes[1] == 2 * adapter


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def stamped(rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> Path:
    """A LoRA reward model on a base of its own."""
    shutil.copytree(tiny_base, tmp_path / "base")
    recipe = write_pairs_recipe(**{**FIT, "max_steps": 1, "model_name_or_path": "base"}, **LORA)
    assert rlhf("train-reward", str(recipe)).code == 0
    (tmp_path / "one.jsonl").write_text('{"prompt": "Who?", "response": "You"}\n')
    assert rlhf("score", "run", "one.jsonl").code == 0
    return tmp_path / "run"


def nudge(file: Path, word: str) -> None:
    tensors = load_file(file)
    name = next(name for name in tensors if word in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def drop_score(run: Path) -> None:
    tensors = load_file(run / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "score" not in name}, run / "adapter_model.safetensors"
    )


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another base": (lambda run: nudge(run.parent / "base/model.safetensors", "embed"), "its base is another"),
    "other weights": (lambda run: nudge(run / "adapter_model.safetensors", "lora_A"), "its weights have changed"),
    "another template": (
        lambda run: (run / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        "its chat template is another",
    ),
    "another padding token": (
        lambda run: edit_json(run / "tokenizer_config.json", pad_token="<|end|>"), "tokenizer is another",
    ),
    "no score": (drop_score, "has no `score`"),
    "another scale": (lambda run: edit_json(run / "adapter_config.json", lora_alpha=99), "its configuration"),
    "a policy's adapter": (lambda run: edit_json(run / "adapter_config.json", task_type="CAUSAL_LM"), "is a policy"),
    "a damaged stamp": (lambda run: (run / "reward_card.json").write_text("{"), "reward_card.json is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reward_model_that_is_not_what_it_was_is_refused(
    damage: str, stamped: Path, rlhf: Callable[..., Any]
) -> None:
    act, expected = DAMAGES[damage]
    act(stamped)
    outcome = rlhf("score", "run", "one.jsonl")
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert expected in outcome.err


def test_two_labels_are_no_score(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert rlhf("train-reward", str(write_pairs_recipe(max_steps=1))).code == 0
    edit_json(tmp_path / "run/config.json", id2label={"0": "bad", "1": "good"})
    (tmp_path / "one.jsonl").write_text('{"prompt": "Who?", "response": "You"}\n')
    for arguments in (("score", "run", "one.jsonl"), ("train-reward", "pairs.yaml", "--model_name_or_path", "run")):
        outcome = rlhf(*arguments, *(["--output_dir", "next"] if arguments[0] == "train-reward" else []))
        assert outcome.code == 2
        assert "`run` is a classifier with 2 labels" in outcome.err


def test_a_full_reward_model_without_its_score_is_refused(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert rlhf("train-reward", str(write_pairs_recipe(max_steps=1))).code == 0
    file = tmp_path / "run/model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: tensor for name, tensor in tensors.items() if "score" not in name}, file, metadata={"format": "pt"}
    )
    (tmp_path / "run/reward_card.json").unlink()
    (tmp_path / "one.jsonl").write_text('{"prompt": "Who?", "response": "You"}\n')
    outcome = rlhf("score", "run", "one.jsonl")
    assert outcome.code == 2
    assert "no trained score" in outcome.err


def test_policies_and_reward_models_are_not_mistaken(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], write_pairs_recipe: Callable[..., Path],
    tiny_base: Path, tmp_path: Path,
) -> None:  # fmt: skip
    assert rlhf("train-reward", str(write_pairs_recipe(max_steps=1))).code == 0
    (tmp_path / "one.jsonl").write_text('{"prompt": "Who?", "response": "You"}\n')
    for arguments, expected in (
        (("sft", str(write_recipe()), "--model_name_or_path", "run", "--output_dir", "x"), "`run` is a reward model"),
        (("dpo", "pairs.yaml", "--model_name_or_path", "run", "--output_dir", "x"), "`run` is a reward model"),
        (("generate", "run", "--prompt", "Who?"), "`run` is a reward model"),
        (("score", str(tiny_base), "one.jsonl"), "is a policy, not a reward model"),
    ):
        outcome = rlhf(*arguments)
        assert outcome.code == 2, outcome.err
        assert expected in outcome.err


def test_scoring_goes_on_past_bad_rows_and_says_so(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert rlhf("train-reward", str(write_pairs_recipe(max_steps=1))).code == 0
    lines = ['{"prompt": "a", "response": "b", "id": 7}', '{"prompt": "a"}', "{", '{"prompt": "c", "response": "d"}']
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    outcome = rlhf("score", "run", "mixed.jsonl")
    assert outcome.code == 4
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["score"] is None for row in rows] == [False, True, True, False]
    assert rows[0]["id"] == 7
    assert "mixed.jsonl:2: the column response" in outcome.err
    assert "mixed.jsonl:3: not JSON" in outcome.err
    assert rlhf("score", "run", "mixed.jsonl", "--skip-bad-rows", "--out", "scored.jsonl").code == 0
    assert read(tmp_path / "scored.jsonl") == rows
    assert rlhf("score", "run", "mixed.jsonl", "--out", "scored.jsonl").code == 2

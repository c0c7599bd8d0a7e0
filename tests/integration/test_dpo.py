"""DPO: what it starts from, what it measures itself against, and what it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_cli.data import Encodings
from rlhf_cli.machine import quietly
from rlhf_cli.methods import METHODS
from rlhf_cli.models import load_model, trained_in_fp32
from rlhf_cli.prepare import prepare
from rlhf_cli.recipe import read_recipe

LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
WAYS = {
    "full": {},
    "precomputed": {"precompute_ref_log_probs": True},
    "lora": LORA,
    "lora precomputed": {**LORA, "precompute_ref_log_probs": True},
    "4-bit": {**LORA, "load_in_4bit": True},
    "bf16": {"bf16": True},
}


def metrics(run: Path, name: str) -> list[float]:
    records = [json.loads(line) for line in (run / "rlhf/metrics.jsonl").read_text().splitlines()]
    return [record[name] for record in records if name in record]


@pytest.mark.parametrize("way", WAYS)
def test_the_first_loss_is_ln_2_and_then_it_learns(
    way: str, rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {"bf16": False, "learning_rate": 1e-2, "max_steps": 12, "beta": 0.5, **WAYS[way]}
    done = rlhf("dpo", str(write_pairs_recipe(**keys)))
    assert done.code == 0, done.err
    losses = metrics(tmp_path / "run", "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert min(losses[6:]) < 0.6
    assert not (tmp_path / "run/ref").exists()


def trainer_of(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The trainer of a recipe as a run builds it."""
    monkeypatch.chdir(tmp_path)
    (method,) = (method for method in METHODS if method.command == "dpo")
    with quietly():
        prepared = prepare(read_recipe(recipe, method="dpo"), method)
        material = prepared.material
        loaded = load_model(prepared.recipe, prepared.plan, material.source, material.tokenizer)
        with trained_in_fp32(loaded.model):
            trainer = method.build_trainer(prepared.config, loaded, Encodings(material.train.dataset, None))
    return trainer, prepared


def test_a_new_adapter_has_no_second_copy_of_anything(
    write_pairs_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, prepared = trainer_of(write_pairs_recipe(use_cpu=True, **LORA), tmp_path, monkeypatch)
    assert trainer.ref_model is None
    assert list(trainer.model.peft_config) == ["default"]
    assert list(prepared.plan.memory.parts_gib) != []
    assert not any("reference" in part for part in prepared.plan.memory.parts_gib)


def test_full_weights_are_planned_with_their_reference(
    write_pairs_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, prepared = trainer_of(write_pairs_recipe(use_cpu=True), tmp_path, monkeypatch)
    planned = prepared.plan.memory.parts_gib["reference weights"]
    assert planned * 2**30 == sum(p.numel() * 4 for p in trainer.ref_model.parameters())


def test_tokens_are_trls_up_to_the_end_of_turn(
    write_pairs_recipe: Callable[..., Path], tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompts and answers as TRL makes of the rows itself, but for what the template writes behind them."""
    from trl import DPOTrainer

    recipe = write_pairs_recipe(use_cpu=True, model_name_or_path=str(tiny_chat))
    trainer, prepared = trainer_of(recipe, tmp_path, monkeypatch)
    rows = prepared.material.rows.train
    theirs = DPOTrainer._prepare_dataset(
        trainer, rows.map(lambda example: dict(example["row"])), trainer.processing_class, trainer.args, "train"
    )
    behind = trainer.processing_class("\n", add_special_tokens=False)["input_ids"]
    for our, their in zip(trainer.train_dataset, theirs, strict=True):
        assert our["prompt_ids"] == their["prompt_ids"]
        assert our["chosen_ids"] + behind == their["chosen_ids"]
        assert our["rejected_ids"] + behind == their["rejected_ids"]


def test_reference_log_probabilities_are_kept_for_a_resume(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_pairs_recipe(precompute_ref_log_probs=True, save_steps=2, max_steps=4, test_split_size=0.2)
    assert rlhf("dpo", str(recipe)).code == 0
    kept = sorted((tmp_path / "run/rlhf").glob("reference-*"))
    assert len(kept) == 2
    before = {path: path.stat().st_mtime_ns for folder in kept for path in folder.iterdir()}
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    record = json.loads((tmp_path / "run/rlhf/run.json").read_text())
    ended = {**record, "status": "stopped", "members_trained": 0, "steps_done": None}
    (tmp_path / "run/rlhf/run.json").write_text(json.dumps(ended))
    for file in (tmp_path / "run/checkpoint-4").iterdir():
        file.unlink()
    resumed = rlhf("dpo", str(recipe), "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming from run/checkpoint-2" in resumed.err
    assert {path: path.stat().st_mtime_ns for folder in kept for path in folder.iterdir()} == before
    assert (tmp_path / "run/model.safetensors").read_bytes() == weights


def test_a_falling_chosen_answer_is_told(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], pairs_file: Path, tmp_path: Path
) -> None:
    """Answers that share most of their words: pushing one down takes the other with it."""
    rows = []
    for line in pairs_file.read_text().splitlines():
        row = json.loads(line)
        text = row["chosen"][0]["content"]
        row["rejected"] = [{"role": "assistant", "content": f"{text} {text[:4]}"}]
        rows.append(row)
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"max_steps": 30, "learning_rate": 1e-2, "bf16": False, "beta": 0.1}
    fallen = rlhf("dpo", str(write_pairs_recipe(**keys, loss_type="hinge")))
    assert fallen.code == 0, fallen.err
    assert "the chosen answers have become less likely, by" in fallen.err
    record = json.loads((tmp_path / "run/rlhf/run.json").read_text())
    assert record["chosen_logp_change"]["warned"]
    held = rlhf("dpo", "pairs.yaml", "--output_dir", "held", "--loss_type", "[sigmoid, sft]")
    assert held.code == 0, held.err
    assert "less likely" not in held.err
    assert json.loads((tmp_path / "held/rlhf/run.json").read_text())["chosen_logp_change"]["nats"] > 0


# --- chains of adapters -------------------------------------------------------------------------------------------


BASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16", "bf16": True},
    "4-bit": {"load_in_4bit": True, "use_peft": True},
}


@pytest.fixture(params=BASES)
def taught(
    request: pytest.FixtureRequest, rlhf: Callable[..., Any], write_recipe: Callable[..., Path]
) -> dict[str, Any]:
    """A LoRA run of SFT in `taught`; and the keys of its base."""
    recipe = write_recipe(
        "sft.yaml", learning_rate=1e-2, max_steps=6, **{"bf16": False, **LORA, **BASES[request.param]}
    )
    done = rlhf("sft", str(recipe), "--output_dir", "taught")
    assert done.code == 0, done.err
    return {"bf16": False, **BASES[request.param]}


def logits(base: Path, adapter: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """Of plain transformers and PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(ids).logits


def test_a_chain_of_runs_is_one_adapter_on_the_first_base(
    taught: dict[str, Any],
    rlhf: Callable[..., Any],
    write_pairs_recipe: Callable[..., Path],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    """SFT, then DPO from its adapter: the reference is that adapter, frozen; what comes out holds one, on the base."""
    keys = {**taught, "learning_rate": 1e-2, "max_steps": 6, "beta": 0.5, "model_name_or_path": "taught"}
    done = rlhf("dpo", str(write_pairs_recipe(**keys)))
    assert done.code == 0, done.err
    assert metrics(tmp_path / "run", "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    adapters = [path.parent for path in (tmp_path / "run").rglob("adapter_model.safetensors")]
    assert {path.name for path in adapters} == {"run", "checkpoint-6"}
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    ids = torch.arange(5, 25)[None]
    before, after = (logits(tiny_base, tmp_path / name, ids) for name in ("taught", "run"))
    assert (before - logits(tiny_base, None, ids)).abs().max() > 1e-3
    assert (before - after).abs().max() > 1e-3
    # With learning rate 0 the run ends where it began: nothing was merged, rounded or begun anew.
    still = rlhf("dpo", "pairs.yaml", "--learning_rate", "0", "--output_dir", "still")
    assert still.code == 0, still.err
    start, end = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("taught", "still"))
    assert start.keys() == end.keys()
    assert all(torch.equal(start[name].float(), end[name]) for name in start)


def test_a_reward_model_continues_the_policys_adapter(
    taught: dict[str, Any], rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {**taught, "max_steps": 2, "model_name_or_path": "taught", "test_split_size": 0.2}
    done = rlhf("train-reward", str(write_pairs_recipe(**keys)), "--learning_rate", "0")
    assert done.code == 0, done.err
    start, end = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("taught", "run"))
    assert {name for name in end if "score" not in name} == set(start)
    assert all(torch.equal(start[name].float(), end[name]) for name in start)
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    moved = rlhf("train-reward", "pairs.yaml", "--learning_rate", "1e-2", "--output_dir", "moved")
    assert moved.code == 0, moved.err
    again = rlhf(
        "train-reward", "pairs.yaml", "--model_name_or_path", "moved", "--output_dir", "again", "--learning_rate", "0"
    )
    assert again.code == 0, again.err
    was, kept = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("moved", "again"))
    assert not torch.equal(was["base_model.model.score.weight"], end["base_model.model.score.weight"])
    assert all(torch.equal(was[name], kept[name]) for name in was)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"lora_r": 8}, "`lora_r` is 8, but the adapter in `taught` has 4"),
        ({"lora_dropout": 0.5}, "`lora_dropout` is 0.5"),
        ({"lora_target_modules": ["q_proj"]}, "`lora_target_modules` is q_proj"),
        ({"use_peft": False}, "`use_peft: false`"),
    ],
)
@pytest.mark.parametrize("command", ["dpo", "train-reward"])
def test_an_adapter_keeps_its_shape(
    command: str, keys: dict[str, Any], expected: str, rlhf: Callable[..., Any],
    write_pairs_recipe: Callable[..., Path], write_recipe: Callable[..., Path],
) -> None:  # fmt: skip
    assert rlhf("sft", str(write_recipe("sft.yaml", max_steps=1, **LORA)), "--output_dir", "taught").code == 0
    outcome = rlhf(command, str(write_pairs_recipe(model_name_or_path="taught", **keys)))
    assert outcome.code == 2
    assert expected in outcome.err


def test_an_adapter_with_its_own_head_cannot_become_a_reward_models(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe("sft.yaml", max_steps=1, **LORA, lora_modules_to_save=["lm_head"])
    assert rlhf("sft", str(recipe), "--output_dir", "taught").code == 0
    outcome = rlhf("train-reward", str(write_pairs_recipe(model_name_or_path="taught")))
    assert outcome.code == 2
    assert "does not go on a reward model whole" in outcome.err

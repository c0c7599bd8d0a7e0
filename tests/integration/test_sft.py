"""`rlhf sft` from a recipe to a model folder that the libraries load."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SECRETS = re.compile(rb"hf_in_the_recipe|hf_as_argument")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rlhf/metrics.jsonl").read_text().splitlines()]


def facts(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "rlhf/run.json").read_text()))


def test_eight_rows_are_learned_by_heart(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], instructions: list[dict[str, str]], tmp_path: Path
) -> None:
    rows = instructions[:8]
    (tmp_path / "eight.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(
        dataset_name="eight.jsonl", per_device_train_batch_size=8, max_steps=150, learning_rate=1e-2, save_strategy="no"
    )
    assert rlhf("sft", str(recipe)).code == 0
    losses = [record["loss"] for record in metrics(tmp_path / "run") if "loss" in record]
    assert losses[0] > 4
    assert losses[-1] < 0.02
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = rlhf("generate", "run", "--prompts", str(asked), "--max-new-tokens", "24", "--baseline", "--json")
    said = [json.loads(line) for line in answers.out.splitlines()]
    assert [answer["answer"] for answer in said] == [row["output"] for row in rows]
    assert all(answer["baseline"] != answer["answer"] for answer in said)


def test_the_run_folder_holds_what_trl_and_the_hub_expect(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(test_split_size=0.2, save_steps=2)
    outcome = rlhf("sft", str(recipe), "--json")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json",
        "README.md", "trainer_state.json", "train_results.json", "eval_results.json", "all_results.json",
        "checkpoint-2/manifest.json", "checkpoint-4/optimizer.pt",
        "rlhf/recipe.yaml", "rlhf/resolved.json", "rlhf/run.json", "rlhf/metrics.jsonl",
    }  # fmt: skip
    assert (run / "rlhf/recipe.yaml").read_text() == recipe.read_text()
    record = facts(run)
    assert json.loads(outcome.out) == record
    assert record["status"] == "done"
    assert record["exit_code"] == 0
    assert record["data"][0]["rows"] == 40
    assert record["plan"]["train"]["used"] == 32
    assert record["plan"]["test"]["used"] == 8
    card = (run / "README.md").read_text()
    assert "rows.jsonl" in card
    assert record["data"][0]["sha256"][:16] in card
    assert "None" not in card
    model = AutoModelForCausalLM.from_pretrained(run)
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(run).chat_template


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_adapter_is_trained_in_fp32_and_loads_with_peft(
    four_bit: bool, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(use_peft=True, lora_target_modules="all-linear", load_in_4bit=four_bit, lora_r=4)
    outcome = rlhf("sft", str(recipe))
    assert outcome.code == 0, outcome.err
    tensors = load_file(tmp_path / "run/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype="float32")
    model = PeftModel.from_pretrained(base, tmp_path / "run")
    assert model.peft_config["default"].r == 4


def test_an_adapter_run_is_continued_on_its_own_base(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    first = write_recipe(use_peft=True, lora_r=4, lora_target_modules="all-linear", output_dir="first")
    assert rlhf("sft", str(first)).code == 0
    second = write_recipe(model_name_or_path="first", output_dir="second")
    outcome = rlhf("sft", str(second))
    assert outcome.code == 0, outcome.err
    config = json.loads((tmp_path / "second/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    assert config["r"] == 4
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    other_rank = rlhf("sft", str(write_recipe(model_name_or_path="first", use_peft=True, lora_r=8, output_dir="x")))
    assert other_rank.code == 2
    assert "`lora_r` is 8, but the adapter in `first` has 4" in other_rank.err


def test_batch_4_equals_batch_1_accumulated_4_times(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {"bf16": False, "max_steps": 5}
    for name, batch, accumulation in (("wide", 4, 1), ("tall", 1, 4)):
        recipe = write_recipe(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, output_dir=name, **keys
        )
        assert rlhf("sft", str(recipe)).code == 0
    wide, tall = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "tall"))
    untrained = max((wide[name]).abs().max().item() for name in wide)
    assert untrained > 0
    assert max((wide[name] - tall[name]).abs().max().item() for name in wide) < 1e-5


def test_dry_run_plans_and_writes_nothing(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(max_steps=None, num_train_epochs=2, gradient_accumulation_steps=3, test_split_size=0.25)
    outcome = rlhf("sft", str(recipe), "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    assert (plan["train"]["used"], plan["test"]["used"]) == (30, 10)
    assert plan["batch"] == 6
    assert plan["steps_per_epoch"] == 5
    assert plan["steps"] == 10
    assert all(amount > 0 for amount in plan["memory"]["parts_gib"].values())
    assert not (tmp_path / "run").exists()
    trained = rlhf("sft", str(recipe))
    assert trained.code == 0, trained.err
    assert facts(tmp_path / "run")["steps_done"] == plan["steps"]


@pytest.mark.parametrize("packing", [False, True])
def test_the_plan_foretells_what_trl_drops(
    packing: bool, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"prompt": "word " * (20 * n), "completion": "yes"} for n in range(1, 11)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(dataset_name="long.jsonl", max_length=100, packing=packing, max_steps=2)
    outcome = rlhf("sft", str(recipe))
    assert outcome.code == 0, outcome.err  # the trainer's own count is compared with the plan's at the start
    counts = facts(tmp_path / "run")["plan"]["train"]
    assert counts["read"] == 10
    assert counts["masked"] > 2
    assert counts["used"] + counts["masked"] == 10


def test_bad_rows_can_be_left_out_and_are_counted(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    good = json.dumps({"prompt": "2+2?", "completion": "4"})
    (tmp_path / "mixed.jsonl").write_text("\n".join([good, "{", good, '{"prompt": "x"}', good]))
    outcome = rlhf("sft", str(write_recipe(dataset_name="mixed.jsonl", skip_bad_rows=True, max_steps=1)))
    assert outcome.code == 0, outcome.err
    counts = facts(tmp_path / "run")["plan"]["train"]
    assert (counts["read"], counts["bad"], counts["used"]) == (5, 2, 3)


def test_a_token_is_not_written_down(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(hub_token="hf_in_the_recipe", max_steps=1)
    outcome = rlhf("sft", str(recipe), "--hub_token", "hf_as_argument", "--run_name=x")
    assert outcome.code == 0, outcome.err
    assert '"--run_name=x"' in (tmp_path / "run/rlhf/run.json").read_text()
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or not SECRETS.search(path.read_bytes()), path
    assert "hf_" not in outcome.err + outcome.out


def test_the_results_are_those_of_the_model_that_is_saved(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Training that soon diverges: the best checkpoint is an early one, and its loss is what is reported."""
    recipe = write_recipe(
        test_split_size=0.2, eval_strategy="steps", eval_steps=1, save_steps=1, max_steps=6, learning_rate=0.3,
        warmup_steps=4, load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
    )  # fmt: skip
    outcome = rlhf("sft", str(recipe))
    assert outcome.code == 0, outcome.err
    losses = [record["eval_loss"] for record in metrics(tmp_path / "run") if "eval_loss" in record][:6]
    assert losses[-1] > min(losses)
    reported = json.loads((tmp_path / "run/eval_results.json").read_text())["eval_loss"]
    assert reported == pytest.approx(min(losses), rel=1e-6)


# --- stopping and going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint(
    signum: int,
    code: int,
    start: Callable[..., Any],
    rlhf: Callable[..., Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    recipe = write_recipe(max_steps=400, save_strategy="no", lr_scheduler_type="constant")
    command = start("sft", str(recipe))
    command.wait_for(lambda: "step 1/" in command.err())
    command.send(signum)
    outcome = command.wait()
    assert outcome.code == code, outcome.err
    step = facts(tmp_path / "run")["plan"]["steps"]
    checkpoint = next((tmp_path / "run").glob("checkpoint-*"))
    assert int(checkpoint.name.split("-")[1]) < step
    assert (checkpoint / "manifest.json").exists()
    assert f"{checkpoint.name} is written" in outcome.err
    assert f"hint: rlhf sft {recipe} --resume" in outcome.err
    record = facts(tmp_path / "run")
    assert (record["status"], record["exit_code"]) == ("stopped", code)
    assert not (tmp_path / "run/model.safetensors").exists()
    assert "None" not in (tmp_path / "run/README.md").read_text()
    done = int(checkpoint.name.split("-")[1])
    resumed = rlhf("sft", str(recipe), "--resume", "--max_steps", str(done + 3))
    assert resumed.code == 0, resumed.err
    assert f"resuming from run/{checkpoint.name}" in resumed.err
    assert (tmp_path / "run/model.safetensors").exists()


def test_a_second_signal_ends_at_once(
    start: Callable[..., Any], write_recipe: Callable[..., Path], rows_file: Path, tmp_path: Path
) -> None:
    # One step of half a minute: the first signal waits for its end, the second does not.
    rows_file.write_text(rows_file.read_text() * 100)
    command = start("sft", str(write_recipe(per_device_train_batch_size=1, gradient_accumulation_steps=4000)))
    command.wait_for(lambda: "output " in command.err())
    time.sleep(1.5)
    command.send(signal.SIGTERM)
    time.sleep(0.3)
    command.send(signal.SIGINT)
    assert command.wait(timeout_s=5).code == -signal.SIGINT
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_resume_starts_over_when_no_checkpoint_is_complete(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(save_steps=2)
    assert rlhf("sft", str(recipe)).code == 0
    whole = (tmp_path / "run/model.safetensors").read_bytes()
    record = facts(tmp_path / "run")
    (tmp_path / "run/rlhf/run.json").write_text(json.dumps({**record, "status": "running", "members_trained": 0}))
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        (checkpoint / "manifest.json").unlink()
    resumed = rlhf("sft", str(recipe), "--resume")
    assert resumed.code == 0, resumed.err
    assert "no complete checkpoint: starting from the beginning" in resumed.err
    assert (tmp_path / "run/model.safetensors").read_bytes() == whole
    aside = {path.name for path in (tmp_path / "run/rlhf/incomplete").iterdir()}
    assert aside == {"checkpoint-2-1", "checkpoint-4-1"}


def test_resume_of_nothing_says_so_and_trains(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    outcome = rlhf("sft", str(write_recipe()), "--resume")
    assert outcome.code == 0, outcome.err
    assert "run holds no run yet: starting from the beginning" in outcome.err
    again = rlhf("sft", str(tmp_path / "recipe.yaml"), "--resume")
    assert again.code == 0
    assert "finished already" in again.err


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "truncated", "edited"])
def test_a_damaged_checkpoint_is_refused_by_name(
    name: str, fault: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(max_steps=2, save_steps=1, lr_scheduler_type="constant")
    assert rlhf("sft", str(recipe)).code == 0
    file = tmp_path / "run/checkpoint-2" / name
    data = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-10] if fault == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    outcome = rlhf("sft", str(recipe), "--resume", "--max_steps", "3")
    assert outcome.code == 5, outcome.err
    assert f"checkpoint-2/{name}" in outcome.err
    assert {"missing": "is missing", "truncated": "bytes instead of", "edited": "was changed"}[fault] in outcome.err


def test_resume_refuses_another_recipe_and_other_data(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], rows_file: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(save_steps=2, lr_scheduler_type="constant")
    assert rlhf("sft", str(recipe)).code == 0
    before = (tmp_path / "run/model.safetensors").read_bytes()
    changed = rlhf("sft", str(recipe), "--resume", "--max_steps", "6", "--learning_rate", "0.5", "--seed", "1")
    assert changed.code == 2
    assert "`learning_rate` was 0.001 and is now 0.5" in changed.err
    assert "`seed` was 42 and is now 1" in changed.err
    assert "max_steps" not in changed.err
    rows_file.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:-1]))
    other = rlhf("sft", str(recipe), "--resume", "--max_steps", "6")
    assert other.code == 4
    assert "the data has changed" in other.err
    assert (tmp_path / "run/model.safetensors").read_bytes() == before


def test_overwrite_moves_the_old_run_aside(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(max_steps=1)
    assert rlhf("sft", str(recipe)).code == 0
    before = (tmp_path / "run/model.safetensors").read_bytes()
    assert rlhf("sft", str(recipe), "--seed", "7").code == 2
    for number in (1, 2):
        assert rlhf("sft", str(recipe), "--seed", "7", "--overwrite").code == 0
        assert (tmp_path / f"run.old-{number}/model.safetensors").exists()
    assert (tmp_path / "run.old-1/model.safetensors").read_bytes() == before


def test_save_total_limit_keeps_the_newest(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert rlhf("sft", str(write_recipe(max_steps=5, save_steps=1, save_total_limit=2))).code == 0
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}


@pytest.mark.parametrize("status", [None, "failed", "stopped"])
def test_a_run_that_ended_before_its_first_step_leaves_the_folder_free(
    status: str | None, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    own = tmp_path / "run/rlhf"
    own.mkdir(parents=True)
    (own / "recipe.yaml").write_text("seed: 1\n")
    if status is not None:
        (own / "run.json").write_text(json.dumps({"status": status}))
    assert rlhf("sft", str(write_recipe(max_steps=1)), *(["--resume"] if status is None else [])).code == 0

"""What a machine, a bad setting or a second run does to a run, and what is left of it."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rlhf_cli.faults import is_disk_full, is_out_of_memory
from tests.integration.test_resume import losses, weights


def record(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "rlhf/run.json").read_text()))


# --- a loss that is no number -------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    done = rlhf("sft", str(write_recipe(learning_rate=1e20, save_steps=1, max_steps=6)))
    assert done.code == 6, done.err
    assert "stopped at step 2: the loss is" in done.err or "stopped at step 2: the gradient norm is" in done.err
    assert "run/checkpoint-1 is the newest checkpoint; lower `learning_rate` (1e+20)" in done.err
    run = tmp_path / "run"
    assert (record(run)["status"], record(run)["exit_code"]) == ("stopped", 6)
    assert "step 2" in record(run)["reason"]
    assert not (run / "model.safetensors").exists()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]


def test_the_guard_can_be_told_to_warn(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    done = rlhf("sft", str(write_recipe(learning_rate=1e20, max_steps=4, guards={"nan": "warn"})))
    assert done.code == 0, done.err
    assert done.err.count("warning: step 2: ") == 1
    for line in (tmp_path / "run/rlhf/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_an_evaluation_that_is_no_number_stops_too(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    recipe = write_recipe(model_name_or_path="model", test_split_size=0.2, eval_strategy="steps", eval_on_start=True)
    done = rlhf("sft", str(recipe))
    assert done.code == 6, done.err
    assert "the evaluation after step 0 has the loss nan" in done.err


# --- disk and memory ----------------------------------------------------------------------------------------------


def test_a_file_that_cannot_grow_leaves_the_last_checkpoint_usable(
    start: Callable[..., Any], rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(max_steps=12, save_steps=1)
    assert rlhf("sft", str(recipe), "--output_dir", "whole").code == 0
    run = tmp_path / "run"
    command = start("sft", str(recipe))
    command.wait_for((run / "checkpoint-2/manifest.json").exists)
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = command.wait()
    assert done.code == 5, done.err
    newest = max(run.glob("checkpoint-*/manifest.json"), key=lambda path: int(path.parent.name[11:])).parent.name
    assert f"the disk of {run.name} is full" in done.err
    assert f"{newest} is complete, and `rlhf sft {recipe} --resume` goes on from it" in done.err
    assert record(run)["exit_code"] == 5
    resumed = rlhf("sft", str(recipe), "--resume")
    assert resumed.code == 0, resumed.err
    assert weights(run) == weights(tmp_path / "whole")
    assert losses(run) == losses(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint_usable(
    start: Callable[..., Any],
    rlhf: Callable[..., Any],
    write_recipe: Callable[..., Path],
    small_disk: Path,
    fill: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    recipe = write_recipe(max_steps=40, save_steps=1, save_total_limit=1)
    assert rlhf("sft", str(recipe), "--output_dir", "whole").code == 0
    output = small_disk / "run"
    command = start("sft", str(recipe), "--output_dir", str(output))
    command.wait_for((output / "checkpoint-2/manifest.json").exists)
    ballast = fill(small_disk)
    done = command.wait()
    assert done.code == 5, done.err
    assert "is full (" in done.err
    assert "--resume` goes on from it" in done.err
    ballast.unlink()
    resumed = rlhf("sft", str(recipe), "--output_dir", str(output), "--resume")
    assert resumed.code == 0, resumed.err
    assert weights(output) == weights(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_refused_beforehand(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], small_disk: Path
) -> None:
    recipe = write_recipe(max_steps=400, save_steps=1, output_dir=str(small_disk / "run"))
    done = rlhf("sft", str(recipe))
    assert done.code == 5
    assert "the disk is too small: about" in done.err
    assert not (small_disk / "run").exists()
    assert rlhf("sft", str(recipe), "--save_total_limit", "1", "--max_steps", "2").code == 0


def test_memory_that_runs_out_is_named_with_what_would_help(
    start: Callable[..., Any], write_recipe: Callable[..., Path], rows_file: Path, tmp_path: Path
) -> None:
    row = {"instruction": "Tell", "output": "What does a bee do? " * 2000}
    rows_file.write_text((json.dumps(row) + "\n") * 16)
    recipe = write_recipe(max_length=8192, per_device_train_batch_size=16, max_steps=1)
    done = start("sft", str(recipe), memory=400 * 2**20).wait()
    assert done.code == 5, done.err
    assert "error: out of memory" in done.err
    assert "hint: " in done.err
    assert record(tmp_path / "run")["status"] == "failed"


LONG = "What does a bee do? " * 1500


def test_memory_that_runs_out_where_nothing_trains_is_named_too(
    start: Callable[..., Any], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "patient")
    config = json.loads((tmp_path / "patient/config.json").read_text())
    (tmp_path / "patient/config.json").write_text(json.dumps({**config, "max_position_embeddings": 2**16}))
    (tmp_path / "prompts.jsonl").write_text((json.dumps({"prompt": LONG}) + "\n") * 32)
    evaluation = {"models": {"patient": "patient"}, "dataset_name": "prompts.jsonl", "per_device_eval_batch_size": 32}
    (tmp_path / "eval.yaml").write_text(json.dumps({"method": "eval", "response_length": 4, **evaluation}))
    asked = ("generate", "patient", "--prompts", "prompts.jsonl", "--batch-size", "32")
    for command, hint in (
        (("eval", "eval.yaml"), "`per_device_eval_batch_size: 1` answers"),
        (asked, "`--batch-size 1` answers"),
    ):
        done = start(*command, memory=400 * 2**20).wait()
        assert done.code == 5, done.err
        assert "error: out of memory" in done.err
        assert f"hint: {hint}" in done.err


def test_a_full_disk_ends_an_evaluation_with_a_reason(
    rlhf: Callable[..., Any], tiny_base: Path, small_disk: Path, fill: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "What does a bee do?"}) + "\n")
    evaluation = {"models": {"tiny": str(tiny_base)}, "dataset_name": "prompts.jsonl", "response_length": 4}
    (tmp_path / "eval.yaml").write_text(json.dumps({"method": "eval", "output_dir": f"{small_disk}/it", **evaluation}))
    (small_disk / "it").mkdir()
    ballast = fill(small_disk)
    done = rlhf("eval", "eval.yaml")
    assert done.code == 5, done.err
    assert "error: the disk is full: " in done.err
    ballast.unlink()
    assert rlhf("eval", "eval.yaml").code == 0


@pytest.mark.parametrize(
    "words",
    [
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:672] . unexpected pos 449536 vs 449424",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_what_torch_and_safetensors_say_of_a_full_disk_is_known(words: str) -> None:
    """Which of them it is depends on the byte at which the disk is full."""
    assert is_disk_full(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError(words))
    assert not is_disk_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# --- two runs, one folder -------------------------------------------------------------------------------------------


def test_a_folder_has_one_run_at_a_time(
    start: Callable[..., Any], rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(max_steps=2000, save_steps=20, save_total_limit=1)
    first = start("sft", str(recipe))
    first.wait_for((tmp_path / "run/checkpoint-20/manifest.json").exists)
    for flags in ([], ["--resume"], ["--overwrite"]):
        second = rlhf("sft", str(recipe), *flags)
        assert second.code == 2, second.err
        assert f"another run is training in `run`: process {first.pid} on " in second.err
    first.send(signal.SIGTERM)
    done = first.wait()
    assert done.code == 143, done.err
    logged = [step for step, _ in losses(tmp_path / "run")]
    assert logged == list(range(1, len(logged) + 1))
    assert not (tmp_path / "run.old-1").exists()


# --- what must not change -------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tiny_chat: Path, tmp_path: Path) -> Path:
    """A run on models and data of its own, whose end is missing."""
    shutil.copytree(tiny_chat, tmp_path / "model")
    recipe = write_recipe(model_name_or_path="model", use_peft=True, max_steps=4, save_steps=2)
    assert rlhf("sft", str(recipe)).code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoint-4")
    (run / "rlhf/run.json").write_text(json.dumps({**record(run), "status": "failed"}))
    return tmp_path


def test_resume_refuses_another_base(stopped: Path, rlhf: Callable[..., Any]) -> None:
    file = stopped / "model/model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + 0.5 for name, tensor in tensors.items()}, file, {"format": "pt"})
    done = rlhf("sft", "recipe.yaml", "--resume")
    assert done.code == 2, done.err
    assert "the model `model` has changed since the run began" in done.err


def test_resume_refuses_another_template(stopped: Path, rlhf: Callable[..., Any]) -> None:
    file = stopped / "model/chat_template.jinja"
    file.write_text(
        file.read_text()
        .replace("'\n' + message['content']", "':' + message['content']")
        .replace("assistant\n", "assistant:")
    )
    done = rlhf("sft", "recipe.yaml", "--resume")
    assert done.code == 4, done.err
    assert "other tokens than when the run began" in done.err


def test_resume_refuses_other_data(stopped: Path, rlhf: Callable[..., Any]) -> None:
    rows = stopped / "rows.jsonl"
    rows.write_text(rows.read_text().replace("the", "a", 1))
    done = rlhf("sft", "recipe.yaml", "--resume")
    assert done.code == 4, done.err
    assert "the data has changed" in done.err


def test_nothing_of_a_refused_resume_is_lost(stopped: Path, rlhf: Callable[..., Any]) -> None:
    before = (stopped / "run/rlhf/metrics.jsonl").read_text()
    assert rlhf("sft", "recipe.yaml", "--resume", "--learning_rate", "1").code == 2
    assert (stopped / "run/rlhf/metrics.jsonl").read_text() == before
    assert rlhf("sft", "recipe.yaml", "--resume").code == 0
    assert losses(stopped / "run") == [
        (entry["step"], entry["loss"]) for entry in map(json.loads, before.splitlines()) if "loss" in entry
    ]


def test_resuming_a_finished_run_keeps_its_metrics(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(save_strategy="no", lr_scheduler_type="constant")
    assert rlhf("sft", str(recipe)).code == 0
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = rlhf("sft", str(recipe), "--resume")
    assert again.code == 0
    assert "is finished already" in again.err
    longer = rlhf("sft", str(recipe), "--resume", "--max_steps", "6")
    assert longer.code == 2
    assert "is finished and holds no checkpoint to go on from" in longer.err
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    assert kept == {path: content for path, content in before.items() if path.name != "lock"}


def test_a_crash_is_forgotten_once_the_run_is_done(stopped: Path, rlhf: Callable[..., Any]) -> None:
    (stopped / "run/rlhf/crash.txt").write_text("Traceback")
    assert rlhf("sft", "recipe.yaml", "--resume").code == 0
    assert not (stopped / "run/rlhf/crash.txt").exists()


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_no_git_is_no_fault(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    done = rlhf("sft", str(write_recipe(max_steps=1)))
    assert done.code == 0, done.err
    assert record(tmp_path / "run")["environment"]["git"] is None


def test_every_process_names_its_own_fault(tmp_path: Path) -> None:
    script = "from rlhf_cli.terminal import say, say_error; say('a'); say_error('error: b'); "
    script += "say_error('error: c\\x1b[2J\\nhint: d', every_process=True)"

    def heard(rank: str) -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={"RANK": rank}).stderr

    assert heard("0") == "a\nerror: b\nerror: c\\x1b[2J\nhint: d\n"
    assert heard("1") == "[rank 1] error: c\\x1b[2J\n[rank 1] hint: d\n"

"""A pipeline: the same models as its stages alone, nothing done twice, and nothing of anybody lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.run_dir import RunDir, lock
from tests.integration.test_faults import record
from tests.integration.test_resume import weights
from tests.pipeline_project import (
    JUDGE,
    PIPELINE,
    STAGES,
    TRAINED,
    all_weights,
    files_of,
    ran,
    stages_of,
    why,
    write_rows,
)

# --- what comes out -------------------------------------------------------------------------------------------------


def test_a_stage_gives_what_its_recipe_gives_alone(project: Path, rlhf: Callable[..., Any]) -> None:
    for stage, command in zip(TRAINED, ("sft", "train-reward", "ppo", "dpo"), strict=True):
        alone = rlhf(command, f"out/{stage}/rlhf/recipe.yaml", "--output_dir", f"alone/{stage}")
        assert alone.code == 0, alone.err
        assert weights(project / "alone" / stage) == weights(project / "out" / stage), stage
    assert len({*all_weights(project).values(), weights(project / "tiny")}) == len(TRAINED) + 1


def test_a_second_call_runs_nothing_and_needs_no_torch(project: Path) -> None:
    """Though the project has been moved since."""
    before = files_of(project)
    code = (
        "import sys, atexit\nfrom rlhf_cli.cli import main\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & {*sys.modules})))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "run", "p.yaml", "--json"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome, heavy = done.stdout.splitlines()
    assert heavy == "HEAVY []"
    assert [(stage["stage"], stage["ran"], stage["why"]) for stage in json.loads(outcome)["stages"]] == [
        (stage, False, "unchanged") for stage in STAGES
    ]
    assert [line.split()[1] for line in done.stderr.splitlines() if line.endswith("unchanged")] == list(STAGES)
    assert files_of(project) == before


OTHER_FOLDERS = """\
defaults: {max_length: 64, max_steps: 4, save_steps: 2, report: false}
stages:
  sft: {model_name_or_path: tiny, dataset_name: rows.jsonl, output_dir: ./else//where/, run_name: ~nobody/s}
  dpo: {model_name_or_path: "${sft}/checkpoint-2", dataset_name: preferences.jsonl}
  again: {method: dpo, model_name_or_path: ./else/where, dataset_name: preferences.jsonl}
"""


def test_a_stage_may_read_a_checkpoint_and_a_folder_however_it_is_written(
    fresh: Path, run: Callable[..., Any], rlhf: Callable[..., Any]
) -> None:
    (fresh / "p.yaml").write_text(OTHER_FOLDERS)
    assert ran(run("--json")) == ["sft", "dpo", "again"]
    assert ran(run("--json")) == []
    alone = rlhf("dpo", "runs/p/dpo/rlhf/recipe.yaml", "--output_dir", "alone")
    assert alone.code == 0, alone.err
    assert weights(fresh / "alone") == weights(fresh / "runs/p/dpo") != weights(fresh / "runs/p/again")


SECRET = "hf_" + "Kq7" * 8


def test_a_secret_of_a_stage_is_in_no_file(fresh: Path, run: Callable[..., Any]) -> None:
    text = "stages:\n  sft: {model_name_or_path: tiny, dataset_name: rows.jsonl, max_length: 64, max_steps: 1}\n"
    (fresh / "p.yaml").write_text(text)
    for _ in range(2):
        done = run(f"sft.env={{api_key: {SECRET}}}", "--sft.hub_token", SECRET)
        assert done.code == 0, done.err
        assert SECRET not in done.out + done.err
    assert "***" in " ".join(record(fresh / "runs/p/sft")["argv"])
    assert not [path for path in fresh.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


# --- what runs again ------------------------------------------------------------------------------------------------


def test_a_changed_key_runs_its_stage_and_what_reads_it(project: Path, run: Callable[..., Any]) -> None:
    before, files = all_weights(project), files_of(project)
    done = run("reward.learning_rate=2e-3", "--json")
    assert why(done) == {
        "sft": "unchanged", "reward": "changed: `learning_rate`", "ppo": "changed: out/reward", "dpo": "unchanged",
        "eval": "changed: out/ppo",
    }  # fmt: skip
    assert ran(done) == ["reward", "ppo", "eval"]
    after = all_weights(project)
    assert {stage for stage in TRAINED if before[stage] != after[stage]} == {"reward", "ppo"}
    for stage in ("reward", "ppo", "eval"):
        shutil.rmtree(project / "out" / stage)
        (project / "out" / f"{stage}.old-1").rename(project / "out" / stage)
    assert files_of(project) == files


def test_a_stage_that_gives_the_same_again_changes_nothing_after_it(project: Path, run: Callable[..., Any]) -> None:
    before = all_weights(project)
    file = project / "preferences.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-4]))
    done = run("--redo", "sft", "--redo", "reward", "--json")
    assert ran(done) == ["sft", "reward", "dpo", "eval"]
    assert why(done)["sft"] == "asked for with --redo"
    assert why(done)["dpo"] == "changed: preferences.jsonl"
    after = all_weights(project)
    assert {stage for stage in TRAINED if before[stage] != after[stage]} == {"dpo"}
    assert weights(project / "out/sft.old-1") == before["sft"]


def test_keys_without_effect_on_the_outcome_run_nothing(project: Path, run: Callable[..., Any]) -> None:
    keys = ("sft.logging_steps=7", "reward.report=true", "ppo.save_steps=3", "dpo.run_name=other", "eval.report=true")
    assert ran(run(*keys, "--json")) == []
    assert ran(run("eval.seed=4", "--json")) == ["eval"]


# --- folders in other hands -----------------------------------------------------------------------------------------


def test_what_is_gone_is_made_again(project: Path, run: Callable[..., Any]) -> None:
    before = all_weights(project)
    shutil.rmtree(project / "out/dpo")
    assert "there is nothing to keep of `dpo`" in run("--keep", "dpo").err
    done = run("--json")
    assert (ran(done), why(done)["dpo"]) == (["dpo"], "out/dpo is gone")
    (project / "out/dpo/model.safetensors").unlink()
    done = run("--json")
    assert (ran(done), why(done)["dpo"]) == (["dpo"], "model.safetensors in out/dpo is gone")
    assert (project / "out/dpo.old-1/config.json").exists()
    assert all_weights(project) == before


def test_what_was_edited_is_asked_about(project: Path, run: Callable[..., Any]) -> None:
    before = weights(project / "out/dpo")
    shutil.copy2(project / "out/sft/model.safetensors", project / "out/dpo/model.safetensors")
    settings = project / "out/dpo/generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "temperature": 0.5, "do_sample": True}))
    edited = files_of(project)
    done = run()
    assert done.code == 2
    assert (
        done.err
        == "error: stage `dpo`: generation_config.json, model.safetensors in out/dpo were changed since it ended\n"
        "hint: `--keep dpo` takes it as it is, --redo moves it aside and runs the stage again\n"
    )
    assert files_of(project) == edited
    assert ran(run("--keep", "dpo", "--json")) == ["eval"]
    assert ran(run("--json")) == []
    after = files_of(project)
    assert {name.split("/")[1] for name in edited if after.get(name) != edited[name]} == {"eval"}
    assert ran(run("--redo", "dpo", "--json")) == ["dpo", "eval"]
    assert weights(project / "out/dpo") == before != weights(project / "out/dpo.old-1")


def test_a_folder_that_the_pipeline_has_not_made_is_asked_about(project: Path, run: Callable[..., Any]) -> None:
    (project / "out/rlhf/pipeline.json").unlink()
    files = files_of(project)
    done = run()
    assert done.code == 2
    assert done.err.count("holds what this pipeline has not made") == len(STAGES)
    kept = [word for stage in STAGES[:-1] for word in ("--keep", stage)]
    assert ran(run(*kept, "--redo", "eval", "--json")) == ["eval"]
    assert ran(run("--json")) == []
    assert files.keys() - files_of(project).keys() == set()
    assert (project / "out/eval.old-1/eval.json").read_bytes() == files["out/eval/eval.json"]


@pytest.mark.parametrize("flags", [(), ("--redo", "ppo")])
def test_a_folder_of_foreign_files_is_never_moved(flags: tuple[str, ...], fresh: Path, run: Callable[..., Any]) -> None:
    (fresh / "out/ppo").mkdir(parents=True)
    (fresh / "out/ppo/notes.txt").write_text("mine")
    files = files_of(fresh)
    done = run(*flags)
    assert done.code == 2, done.err
    assert "out/ppo holds " in done.err
    assert files_of(fresh) == files


# --- checked before it spends ---------------------------------------------------------------------------------------


def test_a_fault_of_a_later_stage_ends_it_before_the_first_trains(
    fresh: Path, run: Callable[..., Any], rlhf: Callable[..., Any]
) -> None:
    done = run("eval.reward_funcs=rewards.py:nobody")
    assert done.code == 2, done.err
    assert "stage `eval`: " in done.err
    assert "nobody" in done.err
    (fresh / "rewards.py").write_text(f"import os\nos.environ['JUDGE']\n{JUDGE}")
    assert run("--dry-run", "eval.env={JUDGE: x}").code == 0  # the environment that stages run in
    write_rows(fresh / "prompts.jsonl", [{"frage": "2+2?", "antwort": "4"}])
    done = run()
    assert done.code == 4, done.err
    assert "stage `ppo`: " in done.err
    assert "frage" in done.err
    assert [path.name for path in (fresh / "out").iterdir()] == ["rlhf"]


def test_a_reward_model_that_is_yet_to_be_made_must_read_what_ppo_asks(fresh: Path, run: Callable[..., Any]) -> None:
    plain = [{"prompt": f"{number} + 1 = ", "chosen": str(number + 1), "rejected": "7"} for number in range(40, 60)]
    write_rows(fresh / "pairs.jsonl", plain)
    done = run()
    assert done.code == 4, done.err
    assert "prompts.jsonl:1: stage `ppo`: the reward model `out/reward` was trained on plain texts" in done.err
    assert [path.name for path in (fresh / "out").iterdir()] == ["rlhf"]
    write_rows(fresh / "prompts.jsonl", [{"text": row["prompt"]} for row in plain])
    assert run("ppo.layout=text", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        (("eval.models={sft: no/such/folder}",), 2, "stage `eval`: there is no model folder `no/such/folder`"),
        (("eval.reward_model_path=tiny",), 2, "stage `eval`: `tiny` is a policy, not a reward model"),
        (("eval.perplexity_file=no.txt",), 4, "stage `eval`: the text for perplexity cannot be read"),
        (("eval.output_dir=p.yaml",), 2, "stage `eval`: output_dir `p.yaml` is a file"),
        (
            ("reward.use_peft=true", "reward.ensemble_size=2", "dpo.model_name_or_path=${reward}"),
            2,
            "stage `dpo`: `out/reward` is a reward model, and dpo trains a policy",
        ),
    ],
)  # fmt: skip
def test_what_no_stage_could_use_is_told_before_the_first_trains(
    changes: tuple[str, ...], code: int, told: str, fresh: Path, run: Callable[..., Any]
) -> None:
    done = run(*changes)
    assert done.code == code, done.err
    assert told in done.err
    assert [path.name for path in (fresh / "out").iterdir()] == ["rlhf"]


CHAIN = """\
output_dir: out
defaults: {max_length: 64, max_steps: 2, response_length: 8, per_device_train_batch_size: 2, report: false}
stages:
  sft: {model_name_or_path: tiny, dataset_name: rows.jsonl, save_steps: 1}
  reward:
    {method: train-reward, model_name_or_path: "${sft}", dataset_name: pairs.jsonl, use_peft: true, ensemble_size: 2,
     lora_r: 4, test_split_size: 0.2}
  more: {method: train-reward, model_name_or_path: "${reward}/members/2", dataset_name: pairs.jsonl}
  first: {method: eval, models: ["${sft}"], dataset_name: held_out.jsonl}
  second:
    {method: ppo, model_name_or_path: "${sft}", dataset_name: "${first}/answers.jsonl", total_episodes: 4,
     reward_funcs: "rewards.py:share_of_e", max_length: 128}
  third:
    {method: eval, models: {a: "${second}", b: "${sft}"}, dataset_name: held_out.jsonl, reward_model_path: "${more}"}
"""


def test_stages_may_be_made_of_what_any_of_them_leaves(fresh: Path, run: Callable[..., Any]) -> None:
    (fresh / "p.yaml").write_text(CHAIN)
    planned = stages_of(run("--dry-run", "--json"))
    assert [name for name, stage in planned.items() if stage["plan"]] == ["sft", "reward", "more"]
    ended = json.loads(run("--json").out)
    assert [stage["stage"] for stage in ended["stages"]] == list(planned), ended["problems"]


def test_a_folder_in_which_another_process_trains_is_not_moved(project: Path, run: Callable[..., Any]) -> None:
    with lock(RunDir(project / "out/dpo")):
        done = run("--redo", "dpo")
    assert done.code == 2
    assert "stage `dpo`: another run is training in `out/dpo`: process" in done.err
    assert not list(project.glob("out/*.old-*"))
    assert ran(run("--redo", "dpo", "--json")) == ["dpo"]


def test_json_tells_of_whatever_ended_it(fresh: Path, run: Callable[..., Any]) -> None:
    (fresh / "out/rlhf").mkdir(parents=True)
    (fresh / "out/rlhf/logs").write_text("in the way")
    done = run("--json")
    assert done.code == 1
    told = json.loads(done.out)
    assert not told["ok"]
    assert "FileExistsError" in told["problems"][0]["what"]


def times(folder: Path) -> dict[Path, int]:
    """When every file and folder was changed last, but for the one that commands are started in."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.name.startswith(".")}


def plan_of(stage: dict[str, Any]) -> tuple[int, float]:
    return stage["plan"]["steps"], pytest.approx(stage["plan"]["memory"]["peak_gib"], rel=0.01)


def test_a_dry_run_tells_what_is_needed_and_writes_nothing(
    fresh: Path, whole: tuple[Path, Any], run: Callable[..., Any]
) -> None:
    before = times(fresh)
    planned = stages_of(run("--dry-run", "--json"))
    assert {name: stage["need"] for name, stage in planned.items()} == {
        "sft": "run", "reward": "run", "ppo": "run", "dpo": "run", "eval": "run",
    }  # fmt: skip
    assert {stage["why"] for stage in planned.values()} == {"not run yet"}
    assert planned["ppo"]["reads"] == ["sft", "reward"]
    for stage in TRAINED:
        assert plan_of(record(whole[0] / "out" / stage)) == plan_of(planned[stage]), stage

    assert times(fresh) == before

    shutil.copytree(whole[0] / "out", fresh / "out")
    before = times(fresh)
    assert {stage["need"] for stage in stages_of(run("--dry-run", "--json")).values()} == {"nothing"}
    partly = stages_of(run("--dry-run", "--json", "reward.max_steps=2"))
    assert [stage["need"] for stage in partly.values()] == ["nothing", "run", "wait", "nothing", "wait"]
    assert partly["ppo"]["why"] == "reads sft, reward"
    assert [name for name, stage in partly.items() if stage["plan"]] == ["reward", "ppo"]
    assert partly["reward"]["plan"]["steps"] == 2
    assert times(fresh) == before


def test_adapters_are_planned_as_they_are_trained(fresh: Path, run: Callable[..., Any]) -> None:
    adapters = "max_steps: 2, use_peft: true, lora_r: 4, lora_target_modules: all-linear, "
    text = PIPELINE[: PIPELINE.index("  dpo:")].replace("max_steps: 16, ", "").replace("save_steps: 6, ", "")
    (fresh / "p.yaml").write_text(text.replace("{seed: 3, ", "{seed: 3, " + adapters).replace("${sft}", "tiny"))
    planned = stages_of(run("--dry-run", "--json"))
    assert ran(run("--json")) == ["sft", "reward", "ppo"]
    for stage in ("sft", "reward", "ppo"):
        assert (fresh / "out" / stage / "adapter_model.safetensors").exists()
        assert plan_of(record(fresh / "out" / stage)) == plan_of(planned[stage]), stage


# --- gates ----------------------------------------------------------------------------------------------------------

GATED = """\
output_dir: out
defaults: {seed: 3, max_length: 64, max_steps: 2, save_strategy: "no", report: false}
stages:
  reward:
    method: train-reward
    model_name_or_path: tiny
    dataset_name: pairs.jsonl
    test_split_size: 0.2
    gates: [{metric: log_loss, max: 1}]
  judged:
    method: eval
    reward_model_path: ${reward}
    dataset_name: preferences.jsonl
    gates: [{metric: log_loss, max: 2}]
  sft: {model_name_or_path: tiny, dataset_name: rows.jsonl}
"""


def test_a_missed_gate_ends_a_pipeline_until_it_is_loosened(fresh: Path, run: Callable[..., Any]) -> None:
    def hold(reward: float, judged: float) -> Any:
        text = GATED.replace("max: 1}", f"max: {reward}}}").replace("max: 2}", f"max: {judged}}}")
        (fresh / "p.yaml").write_text(text)
        return run("--json")

    for begins in (True, False):
        done = hold(0.1, 0.1)
        assert done.code == 3, done.err
        assert "p.yaml:9: stage `reward`: gate log_loss (value) asks max 0.1: it is " in done.err
        assert "not begun: judged, sft" in done.err
        assert ("loading torch" in done.err) is begins
        assert sorted(path.name for path in (fresh / "out").iterdir()) == ["reward", "rlhf"]
    before = record(fresh / "out/reward")
    for begins in (True, False):
        done = hold(10, 0.1)
        assert done.code == 3, done.err
        assert "p.yaml:14: stage `judged`: gate log_loss (value) asks max 0.1: it is " in done.err
        assert "not begun: sft" in done.err
        assert ("loading torch" in done.err) is begins
        assert not json.loads(done.out)["ok"]
    (fresh / "out/judged/notes.jsonl").write_text("{}")
    assert "--keep judged" in hold(10, 0.1).err
    assert [run("--keep", "judged").code for _ in range(2)] == [3, 3]  # kept or not, it has not met them
    (fresh / "out/judged/notes.jsonl").unlink()
    assert ran(hold(10, 10)) == ["judged", "sft"]
    assert record(fresh / "out/reward") == before

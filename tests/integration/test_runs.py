"""`rlhf runs`: a policy, the reward that shaped it, and the model both began as, made by the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_cli.lineage import trained_prompts, training_rewards
from rlhf_cli.rows import prompt_hash
from rlhf_cli.run_dir import RunDir
from rlhf_cli.runs import draw_list, list_runs
from tests.conftest import REWARDS, Command, Outcome

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "bitsandbytes")
SHARED = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1}


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipes(base: Path) -> dict[str, dict[str, Any]]:
    trained = {**SHARED, "max_length": 64, "max_steps": 2, "test_split_size": 0.25, "split_by": "prompt"}
    return {
        "sft": {**trained, "model_name_or_path": str(base), "dataset_name": "rows.jsonl"},
        "train-reward": {**trained, "model_name_or_path": "runs/sft", "dataset_name": "pairs.jsonl"},
        "ppo": {
            **SHARED, "model_name_or_path": "runs/sft", "dataset_name": "prompts.jsonl", "test_split_size": 2,
            "reward_model_path": "runs/train-reward", "reward_funcs": "rewards.py:share_of_e", "response_length": 4,
            "total_episodes": 8, "gradient_accumulation_steps": 2, "num_ppo_epochs": 1, "save_steps": 1,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, instructions: list[dict[str, str]]) -> Path:
    """A project folder with its three runs, which no test changes."""
    folder = tmp_path_factory.mktemp("project")
    write_lines(folder / "rows.jsonl", instructions[:20])
    pairs = [
        {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "chosen": [{"role": "assistant", "content": row["output"]}],
            "rejected": [{"role": "assistant", "content": other["output"]}],
        }
        for row, other in zip(instructions[20:36], instructions[36:52], strict=True)
    ]
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "prompts.jsonl", [{"prompt": row["instruction"]} for row in instructions[60:68]])
    (folder / "rewards.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for method, keys in recipes(tiny_base).items():
            lines = [f"{key}: {json.dumps(value)}\n" for key, value in {**keys, "output_dir": f"runs/{method}"}.items()]
            (folder / f"{method}.yaml").write_text("".join(lines))
            done = Command((method, f"{method}.yaml"), folder).wait()
            assert done.code == 0, done.err
    return folder


@pytest.fixture
def runs(project: Path) -> Callable[..., Outcome]:
    """Run `rlhf runs …` in the project."""
    return lambda *arguments: Command(("runs", *arguments), project).wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), ["there is no folder `nowhere`"]),
        (("rows.jsonl",), ["`rows.jsonl` is a file"]),
        (("show",), ["Missing argument"]),
        (("show", "runs/pppo"), ["there is no folder `runs/pppo`", "did you mean `runs/ppo`?"]),
        (("show", "runs"), ["`runs` is no run folder", "runs in it: runs/ppo, runs/sft, runs/train-reward"]),
        (("show", "runs/ppo/rlhf"), ["is no run folder"]),
        (("diff", "runs/ppo", "runs/dpo"), ["there is no folder `runs/dpo`", "runs/ppo"]),
        (("diff", "runs/ppo"), ["Missing argument"]),
    ],
    ids=" ".join,
)
def test_what_is_no_run_is_an_error_that_names_the_nearest(
    arguments: tuple[str, ...], said: list[str], runs: Callable[..., Outcome]
) -> None:
    done = runs(*arguments)
    assert (done.code, done.out) == (2, "")
    assert all(text in done.err for text in said), done.err


def test_a_folder_without_runs_has_none(rlhf: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text('{"title": "of something else"}')
    done = rlhf("runs")
    assert (done.code, done.out) == (0, "")
    assert "no runs in" in done.err
    assert json.loads(rlhf("runs", "--json").out) == []
    assert "there are no runs below" in rlhf("runs", "show", "x").err


@pytest.mark.parametrize(
    "damage", ["{", "[1]", "7", '{"status": [], "plan": 3, "results": "x", "data": 5, "argv": {}}']
)
def test_a_damaged_run_is_listed_and_shown(
    damage: str, project: Path, rlhf: Callable[..., Outcome], tmp_path: Path
) -> None:
    for name in ("sft", "ppo"):
        shutil.copytree(project / "runs" / name, tmp_path / name)
    (tmp_path / "ppo/rlhf/run.json").write_text(damage)
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged/eval.json").write_text("{")
    done = rlhf("runs", "--json")
    assert done.code == 0, done.err
    states = {entry["path"]: entry["status"] for entry in json.loads(done.out)}
    assert states == {"sft": "done", "ppo": "damaged", "judged": "damaged"}
    for arguments in (("show", "ppo"), ("diff", "ppo", "sft"), ("show", "judged"), ()):
        done = rlhf("runs", *arguments)
        assert (done.code, done.err) == (0, ""), done.err


def test_a_run_that_was_killed_has_died_and_one_that_trains_has_not(
    start: Callable[..., Any], rlhf: Callable[..., Outcome], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    running = start("sft", str(write_recipe(max_steps=5000)))
    running.wait_for(lambda: run.metrics_file.exists() and run.metrics_file.stat().st_size > 0)
    (entry,) = json.loads(rlhf("runs", "--json").out)
    assert (entry["status"], entry["elapsed_s"]) == ("running", None)
    assert (entry["result"]["name"], entry["result"]["of"]) == ("step", 5000)
    assert 0 < entry["result"]["value"] < 5000
    refused = rlhf("sft", "recipe.yaml")
    assert "another run is training" in refused.err  # looking took no lock away
    running.send(signal.SIGKILL)
    running.wait()
    (entry,) = json.loads(rlhf("runs", "--json").out)
    assert entry["status"] == "died"
    assert RunDir(tmp_path / "run").trained_prompts_file.exists()


def test_a_run_that_failed_or_missed_a_gate_says_its_code(
    rlhf: Callable[..., Outcome], project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project / "runs/train-reward", tmp_path / "a")
    shutil.copytree(project / "runs/sft", tmp_path / "b\x1b[31m")
    RunDir(tmp_path / "a").update_run(exit_code=3, reason="gate accuracy\x1b[2J asks more")
    RunDir(tmp_path / "b\x1b[31m").update_run(status="failed", exit_code=5)
    listed = rlhf("runs").out
    assert "done (3)" in listed
    assert "failed (5)" in listed
    shown = rlhf("runs", "show", "a").out
    assert "exit code 3" in shown
    assert "asks more" in shown
    assert "\x1b" not in listed + shown


def test_the_list_has_every_run_and_evaluation_newest_first(runs: Callable[..., Outcome], project: Path) -> None:
    done = runs()
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [f"runs/{name}", name, "done"] for name in ("ppo", "train-reward", "sft")
    ]
    results = {name: RunDir(project / "runs" / name).read_run() for name in ("ppo", "train-reward", "sft")}
    gain, loss = results["ppo"]["results"]["eval_gain"], results["sft"]["results"]["eval_loss"]
    accuracy = results["train-reward"]["report"]["numbers"]["accuracy"]
    assert f"gain {gain:.3f}" in lines[0]
    assert f"accuracy {accuracy['value']:.3f} [{accuracy['ci_low']:.3f}, {accuracy['ci_high']:.3f}]" in lines[1]
    assert f"loss {loss:.3f}" in lines[2]
    assert runs("list").out == runs(".").out == done.out
    assert [line.split()[0] for line in runs("runs/sft").out.splitlines()] == ["runs/sft"]


def test_evaluations_are_listed_with_their_verdicts(
    project: Path, rlhf: Callable[..., Outcome], tmp_path: Path
) -> None:
    accuracy = {"value": 0.7, "ci_low": 0.6, "ci_high": 0.8}
    written = {
        "one": {"kind": "policies", "verdicts": [{"model": "ppo", "sentence": "ppo beats sft on 61 % of prompts"}],
                "contests": [{"model": "ppo", "baseline": "sft", "judge": "rm", "win_rate": {"value": 0.61}}],
                "gates": [{"metric": "kl", "met": True}, {"metric": "win_rate", "met": False}]},
        "two": {"reward_model": "rm", "report": {"numbers": {"accuracy": accuracy}}, "data": []},
    }  # fmt: skip
    for name, outcome in written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps(outcome))
    lines = sorted(rlhf("runs").out.splitlines())
    assert "ppo beats sft on 61 % of prompts" in lines[0]
    assert "accuracy 0.700 [0.600, 0.800]" in lines[1]
    assert ["done (3)" in line for line in lines[:2]] == [True, False], "a gate of the first was not met"
    assert "ppo beats sft" in rlhf("runs", "show", "one").out
    assert "ppo against sft, by rm" in rlhf("runs", "diff", "one", "two").out


@pytest.mark.parametrize("width", [40, 80, None])
def test_a_line_is_no_longer_than_the_terminal(
    width: int | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    entries = list_runs(Path())
    lines = draw_list(entries, width).splitlines()
    assert all(len(line) <= (width or 10_000) for line in lines)
    assert len(lines) == len(entries) if width is None else len(lines) > len(entries)


def test_show_tells_which_preferences_made_the_reward_that_shaped_the_policy(
    runs: Callable[..., Outcome], project: Path, tiny_base: Path
) -> None:
    done = runs("show", "runs/ppo/checkpoint-1")
    assert (done.code, done.err) == (0, "")
    assert done.out[done.out.index("comes from") :].splitlines() == [
        "comes from",
        "runs/ppo: ppo on prompts.jsonl (8 rows), rewarded by rewards.py:share_of_e",
        "├─ model runs/sft: sft on rows.jsonl (20 rows)",
        f"│  └─ model {tiny_base}: made by no run here",
        "└─ reward runs/train-reward: train-reward on pairs.jsonl (16 rows)",
        "   └─ model runs/sft, see above",
    ]
    assert "6 trained, 2 held out" in done.out
    told = json.loads(runs("show", "runs/ppo", "--json").out)
    sizes = {each["name"]: each["bytes"] for each in told["checkpoints"] if each["complete"]}
    assert sizes.keys() == {"checkpoint-1", "checkpoint-2"}
    weights = project / "runs/ppo/checkpoint-1/model.safetensors"
    assert sizes["checkpoint-1"] > weights.stat().st_size
    assert told["again"] == "rlhf ppo ppo.yaml"
    away = Command(("runs", "show", str(project / "runs/ppo")), project.parent).wait()
    assert f"cd {project} && rlhf ppo ppo.yaml" in away.out


def test_what_was_trained_on_is_known_of_the_whole_line(project: Path, instructions: list[dict[str, str]]) -> None:
    """And nothing that was held out is."""
    ppo = RunDir(project / "runs/ppo")
    own = np.load(ppo.trained_prompts_file)
    asked = {prompt_hash({"prompt": row["instruction"]}) for row in instructions[60:68]}
    assert (len(own), len(asked)) == (6, 8)
    assert set(own.tolist()) < asked
    known = trained_prompts(ppo.path)
    parts = [np.load(RunDir(project / "runs" / name).trained_prompts_file) for name in ("sft", "train-reward")]
    preferred = {prompt_hash({"prompt": row["instruction"]}) for row in instructions[20:36]}
    assert set() < set(parts[1].tolist()) < preferred
    assert len(parts[0]) == 15
    assert known.unknown == ()
    assert known.hashes.tolist() == sorted({*own.tolist(), *parts[0].tolist(), *parts[1].tolist()})
    assert "trained_on" not in ppo.run_file.read_text()
    expected = [str(project / "runs/train-reward"), f"{project}/rewards.py:share_of_e"]
    assert training_rewards(ppo.path) == expected
    assert training_rewards(project / "runs/sft") == []


def test_diff_names_what_differs_and_nothing_else(
    runs: Callable[..., Outcome], rlhf: Callable[..., Outcome], project: Path, tmp_path: Path
) -> None:
    assert "nothing differs" in runs("diff", "runs/ppo", "runs/ppo").out
    for name in ("a", "b"):
        shutil.copytree(project / "runs/sft", tmp_path / name)
    assert "nothing differs" in rlhf("runs", "diff", "a", "b").out
    changed = RunDir(tmp_path / "b")
    settings = json.loads(changed.resolved_file.read_text())
    del settings["max_length"]
    changed.resolved_file.write_text(json.dumps({**settings, "learning_rate": 0.5, "output_dir": "b"}))
    record = changed.read_run()
    record["environment"]["trl"] = "9.9"
    record["data"][0]["sha256"] = "0" * 64
    changed.update_run(**record)
    found = json.loads(rlhf("runs", "diff", "a", "b", "--json").out)
    assert found["settings"] == {"learning_rate": {"a": 0.001, "b": 0.5}, "max_length": {"a": 64}}
    assert found["versions"].keys() == {"trl"}
    assert found["data"].keys() == {"rows.jsonl"}
    assert found["results"]["eval_loss"]["a"] == found["results"]["eval_loss"]["b"]
    lines = [" ".join(line.split()) for line in rlhf("runs", "diff", "a", "b").out.splitlines()]
    assert "learning_rate 0.001 | 0.5" in lines
    assert "max_length 64 | unset" in lines
    assert found["differ"]


def test_a_hundred_runs_are_listed_at_once_and_without_torch(project: Path, tmp_path: Path) -> None:
    for number in range(100):
        shutil.copytree(project / "runs/ppo/rlhf", tmp_path / f"{number}" / "rlhf")
    code = (
        "import sys, atexit, time\n"
        f"atexit.register(lambda: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules],"
        " time.process_time()))\n"
        "from rlhf_cli.cli import main\nmain()"
    )
    for arguments in ((), ("show", "1"), ("diff", "1", "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, "runs", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ},
        )  # fmt: skip
        *lines, last = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert last.startswith("HEAVY [] ")
        assert float(last.split()[-1]) < 1.5  # seconds of one core, which others may slow down
        assert len(lines) == 100 or arguments

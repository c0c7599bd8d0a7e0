"""A pipeline that a signal, a full disk or a second one gets in the way of, and one of several processes."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Outcome
from tests.integration.test_resume import losses, metrics, weights
from tests.pipeline_project import PIPELINE, STAGES, TRAINED, all_weights, ran, write_rows


def is_under_way(project: Path, stage: str) -> bool:
    if stage == "eval":
        return (project / "asked").exists()
    log = project / "out" / stage / "rlhf/metrics.jsonl"
    return log.exists() and log.read_text().count("\n") > 1


def unchanged(done: Outcome) -> list[str]:
    return [line.split()[1] for line in done.err.splitlines() if line.endswith("unchanged")]


def test_ctrl_c_in_any_stage_and_the_same_command_goes_on(
    fresh: Path, start: Callable[..., Any], run: Callable[..., Any], whole: tuple[Path, Outcome]
) -> None:
    (fresh / "wait").touch()
    for number, stage in enumerate(STAGES):
        command = start("run", "p.yaml")
        command.wait_for(lambda stage=stage: is_under_way(fresh, stage))
        command.send(signal.SIGINT)
        done = command.wait()
        assert done.code == 130, done.err
        assert f"SIGINT: stage `{stage}`: stopped" in done.err
        assert done.err.endswith("hint: `rlhf run p.yaml` goes on from there\n")
        assert unchanged(done) == list(STAGES[: max(0, number - 1)])
        assert not any((fresh / "out" / later).exists() for later in STAGES[number + 1 :])
    (fresh / "wait").unlink()
    assert ran(run("--json")) == ["eval"]
    assert all_weights(fresh) == all_weights(whole[0])
    for stage in TRAINED:
        assert f"resuming from out/{stage}/checkpoint-" in (fresh / f"out/rlhf/logs/{stage}.log").read_text()
        assert metrics(fresh / "out" / stage) == metrics(whole[0] / "out" / stage)
    assert not list(fresh.glob("out/*.old-*"))


def test_ctrl_c_while_a_stage_saves_begins_no_other(
    fresh: Path, start: Callable[..., Any], instructions: list[dict[str, str]]
) -> None:
    write_rows(fresh / "rows.jsonl", list(instructions))
    (fresh / "p.yaml").write_text(PIPELINE[: PIPELINE.index("  ppo:")])
    command = start("run", "p.yaml", "sft.test_split_size=0.2", "sft.per_device_eval_batch_size=1", "sft.max_steps=1")
    command.wait_for((fresh / "out/sft/model.safetensors").exists)
    command.send(signal.SIGINT)
    assert command.wait().code == 130
    assert not (fresh / "out/reward").exists()


@pytest.mark.parametrize("attempts", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_twice_at_any_moment_it_ends_in_the_same_bits(
    attempts: int, unrun: Path, start: Callable[..., Any], whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    moments = random.Random(attempts)
    for attempt in range(attempts):
        shutil.copytree(unrun, tmp_path, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        for _ in range(2):
            command = start("run", "p.yaml")
            time.sleep(moments.uniform(0.05, 0.6) * whole[1].elapsed_s)
            command.send(signal.SIGKILL)
            assert command.wait().code in (-signal.SIGKILL, 0)
        done = start("run", "p.yaml", "--json").wait()
        assert done.code == 0, f"attempt {attempt}: {done.err}"
        assert all_weights(tmp_path) == all_weights(whole[0]), f"attempt {attempt}: {done.err}"
        assert all(losses(tmp_path / "out" / name) == losses(whole[0] / "out" / name) for name in TRAINED)
        assert ran(start("run", "p.yaml", "--json").wait()) == []


def test_a_full_disk_ends_the_stage_and_room_goes_on_with_it(
    project: Path, start: Callable[..., Any], run: Callable[..., Any], small_disk: Path, fill: Callable[[Path], Path]
) -> None:
    (project / "p.yaml").write_text(PIPELINE[: PIPELINE.index("  dpo:")])
    arguments = (f"reward.output_dir={small_disk}/reward", "reward.save_steps=1")
    before = weights(project / "out/reward")
    command = start("run", "p.yaml", *arguments)
    command.wait_for((small_disk / "reward/checkpoint-2/manifest.json").exists)
    ballast = fill(small_disk)
    done = command.wait()
    assert done.code == 5, done.err
    assert "stage `reward`: the disk of " in done.err
    assert f"is complete, and `rlhf run p.yaml {arguments[0]} reward.save_steps=1` goes on from it" in done.err
    assert "not begun: ppo" in done.err
    ballast.unlink()
    assert ran(run(*arguments, "--json"))[0] == "reward"
    assert weights(small_disk / "reward") == before
    assert "resuming from" in (project / "out/rlhf/logs/reward.log").read_text()


def test_an_evaluation_that_cannot_be_written_is_made_again(
    project: Path, start: Callable[..., Any], run: Callable[..., Any]
) -> None:
    (project / "wait").touch()
    (project / "asked").unlink()
    command = start("run", "p.yaml", "eval.seed=4")
    command.wait_for((project / "asked").exists)
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    (project / "wait").unlink()
    done = command.wait()
    assert done.code == 5, done.err
    assert "error: stage `eval`: the disk is full: " in done.err
    assert ran(run("eval.seed=4", "--json")) == ["eval"]
    assert ran(run("eval.seed=4", "--json")) == []


def test_an_output_dir_that_cannot_be_made_is_told(fresh: Path, run: Callable[..., Any]) -> None:
    (fresh / "p.yaml").write_text(PIPELINE.replace("output_dir: out", "output_dir: rows.jsonl"))
    done = run()
    assert done.code == 5, done.err
    assert done.err == "error: p.yaml: the pipeline's output_dir `rows.jsonl` cannot be written to: Not a directory\n"


def test_a_pipeline_runs_once_at_a_time(project: Path, start: Callable[..., Any], run: Callable[..., Any]) -> None:
    (project / "wait").touch()
    (project / "asked").unlink()
    first = start("run", "p.yaml", "dpo.max_steps=2")
    first.wait_for(lambda: is_under_way(project, "eval"))
    second = run()
    assert second.code == 2, second.err
    assert f"another run is training in `out`: process {first.pid} on " in second.err
    (project / "wait").unlink()
    assert first.wait().code == 0


@pytest.mark.slow
def test_another_number_of_processes_is_another_outcome(fresh: Path) -> None:
    def run(*arguments: str) -> Outcome:
        command = [sys.executable, "-m", "rlhf_cli", "run", "p.yaml", "--json", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False, env=environment)
        return Outcome(done.returncode, done.stdout.splitlines()[-1], done.stderr, 0.0)

    assert ran(run("--num-processes", "2")) == list(STAGES)
    two = all_weights(fresh)
    assert ran(run("--num-processes", "2")) == []
    assert ran(run()) == list(STAGES)
    one = all_weights(fresh)
    assert all(two[stage] != one[stage] for stage in TRAINED)
    assert all((fresh / "out" / f"{stage}.old-1/rlhf/logs/rank-1.log").exists() for stage in TRAINED)

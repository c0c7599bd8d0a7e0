"""Two processes train what one trains, and survive what one survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.test_launch import is_alive
from tests.integration.test_resume import losses, weights

TWO = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_two(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlhf_cli", "sft", "recipe.yaml", "--num-processes", "2", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=TWO, start_new_session=True
    )


def test_two_processes_equal_one_with_twice_the_accumulation_or_the_batch(
    write_recipe: Callable[..., Path], rlhf: Callable[..., Any], tiny_base: Path, tmp_path: Path
) -> None:
    """On rows of unequal length: bit for bit, and up to rounding; under torchrun; one folder, one record, one voice."""
    # Adam divides rounding errors by gradients near zero; SGD shows them as they are.
    write_recipe(max_steps=3, save_steps=2, bf16=False, optim="sgd", learning_rate=0.3)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "rlhf_cli", "sft", "recipe.yaml", "--output_dir", "two", "--use_cpu", "true"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=TWO,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("all good") == 1
    one = rlhf("sft", "recipe.yaml", "--output_dir", "one", "--gradient_accumulation_steps", "2")
    assert one.code == 0, one.err
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    wide = rlhf("sft", "recipe.yaml", "--output_dir", "wide", "--per_device_train_batch_size", "4")
    assert wide.code == 0, wide.err
    two, other = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "wide"))
    start = load_file(tiny_base / "model.safetensors")
    assert max(float((two[name] - other[name]).abs().max()) for name in two) < 1e-6
    assert max(float((two[name] - start[name]).abs().max()) for name in two) > 1e-2

    record = json.loads((tmp_path / "two/rlhf/run.json").read_text())
    assert (record["status"], record["plan"]["batch"], record["plan"]["machine"]["processes"]) == ("done", 4, 2)
    assert "rng_state_1.pth" in (tmp_path / "two/checkpoint-2/manifest.json").read_text()
    alone = rlhf("sft", "recipe.yaml", "--output_dir", "two", "--use_cpu", "true", "--resume", "--max_steps", "4")
    assert alone.code == 2
    assert "began with 2 processes and 4 examples a step; with 1 process a step would take 2" in alone.err
    assert "`--num-processes 2` goes on as before" in alone.err


def stop_launcher(command: subprocess.Popen[str], _: Path) -> set[int]:
    command.send_signal(signal.SIGTERM)
    return {143}


def kill_launcher(command: subprocess.Popen[str], _: Path) -> set[int]:
    command.kill()
    return {-signal.SIGKILL}


def kill_second(command: subprocess.Popen[str], _: Path) -> set[int]:
    for child in children(command.pid):
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            os.kill(child, signal.SIGKILL)
            return {5}
    return {143, 5}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("kills", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_two_processes_that_were_killed_resume_to_the_same_bits(
    kills: int, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_recipe(max_steps=8, save_steps=1, save_total_limit=2, use_peft=True, lora_dropout=0.2, bf16=False)
    whole = run_two(tmp_path, "--output_dir", "whole")
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    assert (tmp_path / "whole/rlhf/logs/rank-1.log").exists()

    moments = random.Random(kills)
    for attempt in range(kills):
        run = tmp_path / f"killed-{attempt}"
        command = run_two(tmp_path, "--output_dir", run.name)
        step = moments.randint(1, 6)
        while not (run / f"checkpoint-{step}").exists():
            assert command.poll() is None, command.communicate()
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        processes = children(command.pid)
        codes = (kill_second, kill_launcher, stop_launcher)[attempt % 3](command, run)
        _, err = command.communicate(timeout=60)
        assert command.returncode in codes | {0}, err
        limit = time.monotonic() + 30
        while any(is_alive(pid) for pid in processes):
            assert time.monotonic() < limit
            time.sleep(0.05)
        resumed = run_two(tmp_path, "--output_dir", run.name, "--resume")
        _, err = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, err
        assert weights(run) == weights(tmp_path / "whole"), f"attempt {attempt}:\n{err}"
        assert losses(run) == losses(tmp_path / "whole")


def test_a_loss_that_is_no_number_stops_every_process(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe(learning_rate=1e20, save_steps=1, max_steps=6)
    command = run_two(tmp_path)
    pids: list[int] = []
    while command.poll() is None:
        pids = children(command.pid) or pids
        time.sleep(0.05)
    _, err = command.communicate()
    assert command.returncode == 6, err
    assert "stopped at step 2: " in err
    assert err.count("error: ") == 1
    assert "GuardStop" not in err
    assert json.loads((tmp_path / "run/rlhf/run.json").read_text())["exit_code"] == 6
    assert not any(is_alive(pid) for pid in pids)

"""The launcher, with small scripts as its processes: signals, exit codes, last lines, and no orphan ever."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import EnvironmentFault, RecipeError
from rlhf_cli.going_on import GOES_ON, command_to_go_on
from rlhf_cli.processes import NAMED_CONFIGS, accelerate_environment, plan_launch

LAUNCHER = """
import sys
from rlhf_cli.launch import launch
from rlhf_cli.processes import Launch
ended = launch([sys.executable, *sys.argv[2:]], Launch(int(sys.argv[1])))
open("signal", "w").write(str(ended.signum))
sys.exit(ended.code)
"""
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from rlhf_cli.launch import end_with_launcher
end_with_launcher()
rank = os.environ["RANK"]
def wait():
    Path(f"ready-{rank}").write_text(str(os.getpid()))
    time.sleep(60)
"""


class Launched:
    """A launcher with scripts as its processes, in a folder."""

    def __init__(self, folder: Path, script: str, processes: int = 2, **environment: str) -> None:
        self.folder = folder
        self.processes = processes
        (folder / "rank.py").write_text(PRELUDE + script)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(processes), "rank.py"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.getcwd(), "TMPDIR": str(folder), **environment},
        )  # fmt: skip

    def wait_until_ready(self) -> list[int]:
        files = [self.folder / f"ready-{rank}" for rank in range(self.processes)]
        limit = time.monotonic() + 20
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < limit, self.process.communicate(timeout=1)
            time.sleep(0.01)
        return [int(file.read_text()) for file in files]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=40)
        return self.process.returncode, out, err


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Launched]:
    return lambda script, *arguments, **environment: Launched(tmp_path, script, *arguments, **environment)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_process_knows_who_it_is(launch: Callable[..., Launched], tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    script = f"import json; Path(f'env-{{rank}}').write_text(json.dumps([os.environ.get(n) for n in {names}]))"
    launched = launch(script + "; print('out', rank)")
    code, out, _ = launched.end()
    assert (code, out) == (0, "out 0\n")
    found = [json.loads((tmp_path / f"env-{rank}").read_text()) for rank in range(2)]
    assert [each[:5] for each in found] == [[str(r), str(r), "2", "2", "127.0.0.1"] for r in range(2)]
    assert found[0][5] == found[1][5]
    assert not list(tmp_path.glob("rlhf-logs-*"))


def test_threads_are_shared_out(launch: Callable[..., Launched], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code, _, _ = launch("Path('threads').write_text(os.environ['OMP_NUM_THREADS'])").end()
    assert code == 0
    assert int((tmp_path / "threads").read_text()) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_the_first_failure_decides_and_ends_the_others(launch: Callable[..., Launched]) -> None:
    launched = launch("print('row 7 is \\x1b[2J bad', flush=True)\nif rank == '1': sys.exit(4)\nwait()")
    code, out, err = launched.end()
    assert code == 4
    assert "error: process 1 ended with exit code 4" in err
    assert "rank-1.log:\n  row 7 is \\x1b[2J bad" in err
    assert out == "row 7 is \x1b[2J bad\n"
    assert not is_alive(int((launched.folder / "ready-0").read_text()))
    # What was said stays where the message says it is.
    log = Path(err.split("the last lines of ")[1].split(":\n")[0])
    assert "row 7" in log.read_text()


def test_a_fault_that_all_share_is_told_once(launch: Callable[..., Launched]) -> None:
    code, _, err = launch("print(f'error of {rank}', file=sys.stderr); sys.exit(6)").end()
    assert code == 6
    assert err == "error of 0\n"


@pytest.mark.parametrize(("signum", "code", "words"), [
    (signal.SIGKILL, 5, "process 1 was ended by SIGKILL, most likely by the system for want of memory"),
    (signal.SIGSEGV, 1, "process 1 was ended by SIGSEGV"),
])  # fmt: skip
def test_a_killed_process_takes_the_others_with_it(
    signum: int, code: int, words: str, launch: Callable[..., Launched]
) -> None:
    launched = launch("wait()")
    first, second = launched.wait_until_ready()
    os.kill(second, signum)
    ended, _, err = launched.end()
    assert ended == code
    assert words in err
    assert not is_alive(first)


COUNTING = """
heard = []
def hear(signum, frame):
    heard.append(signum)
    Path(f"heard-{rank}").write_text(str(len(heard)))
for signum in (signal.SIGINT, signal.SIGTERM): signal.signal(signum, hear)
Path(f"ready-{rank}").write_text(str(os.getpid()))
while not heard: time.sleep(0.01)
time.sleep(0.3)  # a checkpoint is written
sys.exit(128 + heard[0])
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once_and_is_waited_for(
    signum: int, launch: Callable[..., Launched], tmp_path: Path
) -> None:
    """Sent to the launcher's whole group, as a terminal does with Ctrl-C."""
    launched = launch(COUNTING)
    pids = launched.wait_until_ready()
    os.killpg(launched.process.pid, signum)
    code, _, err = launched.end()
    assert (code, err) == (128 + signum, "")
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == ["1", "1"]
    assert not any(is_alive(pid) for pid in pids)


def test_a_signal_that_nobody_handles_has_its_own_code(launch: Callable[..., Launched]) -> None:
    launched = launch("wait()")
    pids = launched.wait_until_ready()
    launched.process.send_signal(signal.SIGTERM)
    assert launched.end()[0] == 143
    assert not any(is_alive(pid) for pid in pids)


def test_a_launcher_that_is_killed_leaves_no_orphan(launch: Callable[..., Launched], tmp_path: Path) -> None:
    launched = launch(COUNTING)
    pids = launched.wait_until_ready()
    launched.process.kill()
    launched.end()
    limit = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == ["1", "1"]


# --- configurations, environments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2"])
def test_named_configurations_become_variables(name: str) -> None:
    variables = accelerate_environment(name, 2)
    assert (variables.get("ACCELERATE_USE_FSDP") == "true") == (name == "fsdp2")
    assert not {"PYTHONPATH", "ACCELERATE_MIXED_PRECISION"} & variables.keys()


def test_configurations_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no accelerate configuration `zero9`") as error:
        accelerate_environment("zero9", 2)
    assert all(name in str(error.value.hint) for name in NAMED_CONFIGS)
    wrong = tmp_path / "a.yaml"
    wrong.write_text("learning_rate: 1\n")
    with pytest.raises(RecipeError, match="the key `distributed_type` is missing"):
        accelerate_environment(str(wrong), 2)
    wrong.write_text("a: [\n")
    with pytest.raises(RecipeError, match="not YAML"):
        accelerate_environment(str(wrong), 2)
    wrong.write_text("distributed_type: MULTI_GPU\nmixed_precision: bf17\n")
    with pytest.raises(RecipeError, match="accelerate refuses the configuration"):
        accelerate_environment(str(wrong), 2)
    with pytest.raises(RecipeError, match="must be at least 1, got 0"):
        plan_launch(0, None)


@pytest.mark.skipif("deepspeed" in sys.modules, reason="DeepSpeed is here")
def test_a_missing_part_comes_with_the_line_that_installs_it() -> None:
    with pytest.raises(EnvironmentFault, match="needs DeepSpeed") as error:
        accelerate_environment("zero2", 2)
    assert error.value.hint == "pip install 'rlhf-cli[deepspeed]'"


def test_a_configuration_may_say_how_many(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    planned = [plan_launch(None, str(path)), plan_launch(2, str(path))]
    assert [each and each.count for each in planned] == [3, 2]
    assert plan_launch(None, None) is None


@pytest.mark.parametrize(
    ("called", "goes_on"),
    [
        ("sft r.yaml --overwrite", "rlhf sft r.yaml --resume"),
        ("ppo r.yaml --resume --num-processes 2", "rlhf ppo r.yaml --num-processes 2 --resume"),
        ("sft r.yaml --hub_token hf_x --run_name 'a b'", "rlhf sft r.yaml --hub_token *** --run_name 'a b' --resume"),
        ("run p.yaml ppo.kl_coef=0.1", "rlhf run p.yaml ppo.kl_coef=0.1"),
        ("run p.yaml --redo ppo --keep sft --redo=dpo", "rlhf run p.yaml --keep sft"),
        ("demo", "rlhf demo"),
    ],
)
def test_what_was_stopped_says_how_it_goes_on(called: str, goes_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf", *shlex.split(called)])
    assert command_to_go_on(["hf_x"]) == goes_on
    # A launched process was called with less, and says what its launcher was called with.
    monkeypatch.setenv(GOES_ON, command_to_go_on())
    monkeypatch.setattr(sys, "argv", ["rlhf", "sft", "/tmp/rlhf-0/recipe.yaml"])
    assert command_to_go_on(["hf_x"]) == goes_on


SLURM = {"SLURM_JOB_ID": "70123", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
         "SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_NTASKS": "8"}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SLURM, ["5", "8", "1", "gpu003", "30123"]),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "3"}, ["5", "8", "0", "gpu003", "30123"]),
        ({**SLURM, "SLURM_STEP_NODELIST": "login", "MASTER_PORT": "1234"}, ["5", "8", "1", "login", "1234"]),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "2"}, ["0", "2", None, None, None]),
        ({key: value for key, value in SLURM.items() if "STEP" not in key}, [None] * 5),
        ({}, [None] * 5),
    ],
)  # fmt: skip
def test_the_tasks_of_srun_are_processes(given: dict[str, str], expected: list[str | None]) -> None:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    script = "import os, json; from rlhf_cli.processes import adopt_slurm; adopt_slurm(); "
    script += f"print(json.dumps([os.environ.get(name) for name in {names}]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=given)
    assert json.loads(done.stdout) == expected


def test_a_signal_that_comes_when_there_is_nothing_to_stop_is_told(launch: Callable[..., Launched]) -> None:
    launched = launch("signal.signal(signal.SIGINT, lambda *_: sys.exit(0))\nwait()")
    launched.wait_until_ready()
    launched.process.send_signal(signal.SIGINT)
    assert launched.end()[0] == 0
    assert (launched.folder / "signal").read_text() == str(int(signal.SIGINT))
    launched = launch("pass")
    assert launched.end()[0] == 0
    assert (launched.folder / "signal").read_text() == "None"


# --- with the real thing ----------------------------------------------------------------------------------------------


def test_what_cannot_be_launched_is_refused_at_once(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_recipe())
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    occupied = rlhf("sft", recipe, "--num-processes", "2")
    assert occupied.code == 2
    assert "is not empty" in occupied.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    unknown = rlhf("sft", recipe, "--output_dir", "other", "--accelerate-config", "zero4")
    assert (unknown.code, "there is no accelerate configuration `zero4`" in unknown.err) == (2, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    twice = rlhf("sft", recipe, "--output_dir", "other", "--num-processes", "4")
    assert (twice.code, "--num-processes 4 under a launcher that has started 2" in twice.err) == (2, True)
    assert not (tmp_path / "other").exists()


def test_more_processes_than_devices_are_refused(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4000")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4000")
    crowded = rlhf("sft", str(write_recipe()))
    assert crowded.code == 5
    assert "4000 processes are too many for the" in crowded.err


def test_sharding_on_a_cpu_is_refused(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would replicate the model without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    done = rlhf("sft", str(write_recipe(use_cpu=True)))
    assert done.code == 5
    assert "FSDP needs GPUs" in done.err


def test_a_dry_run_plans_for_the_processes_that_would_be_launched(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = str(write_recipe(use_cpu=True, max_steps=-1, num_train_epochs=2))
    alone, both = (
        json.loads(rlhf("sft", recipe, "--dry-run", "--json", "--num-processes", count).out) for count in "12"
    )
    assert [plan["machine"]["processes"] for plan in (alone, both)] == [1, 2]
    assert both["batch"] == 2 * alone["batch"]
    assert both["steps"] < alone["steps"]
    assert both["machine"]["memory_gib"] == pytest.approx(alone["machine"]["memory_gib"] / 2)
    crowded = rlhf("sft", recipe, "--dry-run", "--num-processes", "4000")
    assert (crowded.code, "4000 processes are too many for the" in crowded.err) == (5, True)
    sharded = rlhf("sft", recipe, "--dry-run", "--num-processes", "2", "--accelerate-config", "fsdp2")
    assert (sharded.code, "FSDP needs GPUs" in sharded.err) == (5, True)
    assert not (tmp_path / "run").exists()

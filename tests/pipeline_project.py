"""A project with a pipeline of every kind of stage: before it has run, and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlhf_cli.evaluate
import rlhf_cli.run_stage
import rlhf_cli.stand_ins
from rlhf_cli.basis import code_versions
from tests.conftest import Command, Outcome
from tests.integration.test_resume import weights

assert rlhf_cli.evaluate
assert rlhf_cli.run_stage
assert rlhf_cli.stand_ins
code_versions()

PIPELINE = """\
output_dir: out
defaults:
  {seed: 3, per_device_train_batch_size: 2, learning_rate: 1.0e-3, max_length: 64, max_steps: 16, logging_steps: 1,
   save_steps: 6, save_total_limit: 2, report: false}
stages:
  sft: {model_name_or_path: tiny, dataset_name: rows.jsonl}
  reward:
    method: train-reward
    model_name_or_path: ${sft}
    dataset_name: pairs.jsonl
    test_split_size: 0.2
  ppo:
    model_name_or_path: ${sft}
    reward_model_path: ${reward}
    dataset_name: prompts.jsonl
    response_length: 8
    total_episodes: 16
    max_length: 128
    max_steps: -1
  dpo: {model_name_or_path: "${sft}", dataset_name: preferences.jsonl}
  eval:
    models: {sft: "${sft}", ppo: "${ppo}", dpo: "${dpo}"}
    dataset_name: held_out.jsonl
    reward_funcs: rewards.py:share_of_e
    response_length: 8
"""
TRAINED = ("sft", "reward", "ppo", "dpo")
STAGES = (*TRAINED, "eval")
JUDGE = """
import pathlib, time

def share_of_e(completions, **columns):
    pathlib.Path("asked").touch()
    while pathlib.Path("wait").exists():
        time.sleep(0.01)
    return [str(each).count("e") / max(1, len(str(each))) for each in completions]
"""


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _pairs(rows: list[dict[str, str]], others: list[dict[str, str]]) -> list[dict[str, Any]]:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    return [
        {"prompt": turn("user", row["instruction"]), "chosen": turn("assistant", row["output"]),
         "rejected": turn("assistant", other["output"])}
        for row, other in zip(rows, others, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def unrun(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, instructions: list[dict[str, str]]) -> Path:
    """A project whose pipeline has not run; files are named as they stand in its folder."""
    folder = tmp_path_factory.mktemp("unrun")
    shutil.copytree(tiny_base, folder / "tiny")
    write_rows(folder / "rows.jsonl", list(instructions[:30]))
    write_rows(folder / "pairs.jsonl", _pairs(instructions[:30], instructions[30:60]))
    write_rows(folder / "preferences.jsonl", _pairs(instructions[60:90], instructions[90:120]))
    write_rows(folder / "prompts.jsonl", [{"prompt": row["instruction"]} for row in instructions[:10]])
    write_rows(folder / "held_out.jsonl", [{"prompt": row["instruction"]} for row in instructions[200:206]])
    (folder / "rewards.py").write_text(JUDGE)
    (folder / "p.yaml").write_text(PIPELINE)
    return folder


@pytest.fixture(scope="session")
def whole(unrun: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The project after its pipeline has run, and what that said."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(unrun, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        done = Command(("run", "p.yaml", "--json"), folder).wait()
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def fresh(unrun: Path, tmp_path: Path) -> Path:
    """A project of the test's own that has not run."""
    shutil.copytree(unrun, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def project(whole: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """One that has run, and was moved since."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def run(rlhf: Callable[..., Any]) -> Callable[..., Any]:
    """Run the pipeline of the test's project, to its end."""
    return lambda *arguments: rlhf("run", "p.yaml", *arguments)


def all_weights(folder: Path) -> dict[str, bytes]:
    return {stage: weights(folder / "out" / stage) for stage in TRAINED}


def files_of(project: Path) -> dict[str, bytes]:
    """All files but those that tell of the pipeline itself, and the mark that its judge leaves."""
    found = (path for path in project.rglob("*") if path.is_file() and not path.name.startswith((".", "asked")))
    return {
        str(path.relative_to(project)): path.read_bytes() for path in found if project / "out/rlhf" not in path.parents
    }


def stages_of(done: Outcome) -> dict[str, dict[str, Any]]:
    assert done.code == 0, done.err
    return {stage["stage"]: stage for stage in json.loads(done.out)["stages"]}


def ran(done: Outcome) -> list[str]:
    return [name for name, stage in stages_of(done).items() if stage["ran"]]


def why(done: Outcome) -> dict[str, str]:
    return {name: stage["why"] for name, stage in stages_of(done).items()}

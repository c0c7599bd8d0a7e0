"""What counts as another run when one is resumed, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def rates(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "rlhf/metrics.jsonl").read_text().splitlines()]
    return [record["learning_rate"] for record in records if "learning_rate" in record]


def interrupted(run: Path) -> None:
    """Make a finished run one that was killed after its second step."""
    record = json.loads((run / "rlhf/run.json").read_text())
    (run / "rlhf/run.json").write_text(json.dumps({**record, "status": "running", "steps_done": None}))
    for step in (3, 4):
        (run / f"checkpoint-{step}/manifest.json").unlink()


@pytest.fixture
def cut_run(rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    recipe = write_recipe(save_steps=1)
    assert rlhf("sft", str(recipe)).code == 0
    interrupted(tmp_path / "run")
    return recipe


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", "42"), ("method=sft",), ("--output_dir", "./run"), ("--weight_decay", "0"), ("--dtype", "float32"),
        ("--dataloader_pin_memory", "true"), ("--report_to", "none"), ("--activation_checkpointing", "true"),
    ],
)  # fmt: skip
def test_what_means_the_same_is_no_change(arguments: tuple[str, ...], cut_run: Path, rlhf: Callable[..., Any]) -> None:
    resumed = rlhf("sft", str(cut_run), "--resume", *arguments)
    assert resumed.code == 0, resumed.err
    assert "resuming from" in resumed.err


def test_a_moved_run_goes_on(cut_run: Path, rlhf: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    resumed = rlhf("sft", str(cut_run), "--resume", "--output_dir", str(tmp_path / "elsewhere"))
    assert resumed.code == 0, resumed.err


@pytest.mark.parametrize("written", [False, True])
def test_another_machine_is_blamed_for_what_it_decides(
    written: bool, cut_run: Path, rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    """As on a machine that decided otherwise: what is on disk is turned round."""
    file = tmp_path / "run/rlhf/resolved.json"
    before = json.loads(file.read_text())
    bf16 = before["bf16"]
    file.write_text(json.dumps({**before, "bf16": not bf16}))
    resumed = rlhf("sft", str(cut_run), "--resume", *(["--bf16", str(bf16).lower()] if written else []))
    if written:
        assert resumed.code == 2
        assert f"`bf16` was {json.dumps(not bf16)} and is now {json.dumps(bf16)}" in resumed.err
    else:
        assert resumed.code == 5
        assert f"write `bf16: {json.dumps(not bf16)}` into the recipe" in resumed.err
        assert "recipe has changed" not in resumed.err


@pytest.mark.parametrize(
    ("keys", "blamed"),
    [
        ({}, "`lr_scheduler_type: linear`"),
        ({"lr_scheduler_type": "cosine"}, "`lr_scheduler_type: cosine`"),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5}, "`warmup_steps: 0.5`"),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, None),
        ({"lr_scheduler_type": "constant"}, None),
    ],
)
def test_only_a_schedule_without_an_end_can_be_longer(
    keys: dict[str, Any],
    blamed: str | None,
    rlhf: Callable[..., Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    recipe = write_recipe(max_steps=3, save_steps=3, **keys)
    assert rlhf("sft", str(recipe)).code == 0
    longer = rlhf("sft", str(recipe), "--resume", "--max_steps", "5")
    if blamed is not None:
        assert longer.code == 2
        assert "command line: the run was to have 3 steps and is now to have 5" in longer.err
        assert blamed in longer.err
        assert "`model_name_or_path: run`" in longer.err
        return
    assert longer.code == 0, longer.err
    whole = rlhf("sft", str(recipe), "--max_steps", "5", "--output_dir", "whole", "--save_steps", "3")
    assert whole.code == 0
    assert rates(tmp_path / "run") == rates(tmp_path / "whole")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()

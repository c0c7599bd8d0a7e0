"""Two processes train what one trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_two_processes_equal_one_with_twice_the_accumulation(
    write_recipe: Callable[..., Path], rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    """Bit for bit, on rows of unequal length; and one folder, one record, one voice."""
    write_recipe(max_steps=3, save_steps=2)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "rlhf_cli", "sft", "recipe.yaml", "--output_dir", "two", "--use_cpu", "true"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("all good") == 1
    one = rlhf("sft", "recipe.yaml", "--output_dir", "one", "--gradient_accumulation_steps", "2")
    assert one.code == 0, one.err
    assert (tmp_path / "two/model.safetensors").read_bytes() == (tmp_path / "one/model.safetensors").read_bytes()
    record = json.loads((tmp_path / "two/rlhf/run.json").read_text())
    assert (record["status"], record["plan"]["batch"], record["plan"]["machine"]["processes"]) == ("done", 4, 2)
    assert (tmp_path / "two/checkpoint-2/rng_state_1.pth").exists()
    assert "rng_state_1.pth" in (tmp_path / "two/checkpoint-2/manifest.json").read_text()

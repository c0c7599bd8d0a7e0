"""Answers to the held-out prompts, written down at every evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_cli.run_dir import RunDir


class SampleWriter(TrainerCallback):
    """Writes `rlhf/samples/step-N.parquet`, on the first process only."""

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def on_answers(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        answers: Sequence[dict[str, Any]],
    ) -> None:
        """Write one row an answer; a conversation is written as JSON."""
        if not state.is_world_process_zero:
            return
        rows = [
            {**row, "prompt": row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])}
            for row in answers
        ]
        file = self._run.samples_file(state.global_step)
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(str(file))

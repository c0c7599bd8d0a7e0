"""Trainer events to the terminal and to metrics.jsonl."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_cli.run_dir import RunDir, finite
from rlhf_cli.terminal import is_terminal, say

PLAIN_EVERY_S = 10.0
WIDE = 90
"""Columns from which there is room for a bar."""
_SHOWN = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "accuracy": "accuracy",
    "eval_accuracy": "eval_accuracy",
    "rewards/accuracies": "accuracy",
    "eval_rewards/accuracies": "eval_accuracy",
    "rewards/chosen": "chosen",
    "tokens_per_s": "tok/s",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
}
"""Metrics for people, the most telling first, and what they are called in a line."""


class Watch(TrainerCallback):
    """One view of a run for people, and one file of its metrics for programs; on the first process only."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._bar: Progress | None = None
        self._task: Any = None
        self._last_line_s = 0.0
        self._step_started: tuple[float, float] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the view."""
        if not state.is_world_process_zero:
            return
        if is_terminal():
            console = Console(stderr=True)
            columns = (
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.description}", markup=False),
            )
            bar = (BarColumn(bar_width=24),) if console.width >= WIDE else ()
            self._bar = Progress(*bar, *columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append to metrics.jsonl, and show what matters."""
        if not state.is_world_process_zero or not logs:
            return
        record = {"step": state.global_step, **logs}
        speed = self._tokens_per_s(logs)
        if speed is not None:
            record["tokens_per_s"] = round(speed, 1)
        with self.run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")
        self._show(state, record)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the view."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training did not end well."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tokens_per_s(self, logs: dict[str, Any]) -> float | None:
        """Tokens a second since the log event before, where the trainer counts tokens."""
        tokens = logs.get("num_tokens")
        if tokens is None:
            return None
        now, before = (time.perf_counter(), float(tokens)), self._step_started
        self._step_started = now
        return (now[1] - before[1]) / (now[0] - before[0]) if before else None

    def _show(self, state: TrainerState, record: dict[str, Any]) -> None:
        shown = [f"{label} {_short(record[name])}" for name, label in _SHOWN.items() if name in record]
        if not shown:
            return
        text = "  ".join(shown)
        if self._bar is not None:
            room = self._bar.console.width - (50 if self._bar.console.width >= WIDE else 24)
            self._bar.update(self._task, description=_fit(shown, room), completed=state.global_step)
            if "eval_loss" in record:
                self._bar.console.print(f"step {state.global_step}  {text}", markup=False, highlight=False)
            return
        now = time.monotonic()
        if "eval_loss" in record or now - self._last_line_s >= PLAIN_EVERY_S or state.global_step >= state.max_steps:
            self._last_line_s = now
            say(f"step {state.global_step}/{state.max_steps}  {text}")


def _fit(parts: list[str], width: int) -> str:
    """As many parts as a line has room for, the first ones first."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > width:
            break
        text += f"  {part}"
    return text


def _short(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

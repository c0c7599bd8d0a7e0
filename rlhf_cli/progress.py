"""Trainer events to the terminal and to metrics.jsonl."""

from __future__ import annotations

import atexit
import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_cli.run_dir import RunDir
from rlhf_cli.terminal import is_terminal, mark, printable, show, sparkline, talks_apart
from rlhf_cli.writing import finite

PLAIN_EVERY_S = 10.0
WIDE = 90
"""Columns from which there is room for a bar."""
_SHOWN = {
    "objective/scores": "reward",
    "objective/kl": "kl",
    "eval_reward": "eval_reward",
    "eval_gain": "eval_gain",
    "completions/mean_length": "length",
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
_TRENDS = (
    "objective/scores", "objective/kl", "completions/mean_length", "val/explained_var", "loss", "accuracy",
    "rewards/accuracies",
)  # fmt: skip
"""Of these the whole course is drawn, where a terminal has room for it."""
_TALL = 20
"""Lines from which there is."""


class Watch(TrainerCallback):
    """One view of a run for people, and one file of its metrics for programs; on the first process only."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._courses: dict[str, list[float]] = {}
        self._sample: Text | None = None
        self._task: Any = None
        self._last_line_s = 0.0
        self._step_started: tuple[float, float] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the view."""
        if not state.is_world_process_zero:
            return
        if is_terminal() and not talks_apart():
            console = Console(stderr=True)
            columns = (
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.description}", markup=False),
            )
            bar = (BarColumn(bar_width=24),) if console.width >= WIDE else ()
            self._bar = Progress(*bar, *columns, console=console)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._live = Live(get_renderable=self._draw, console=console, transient=True, refresh_per_second=4)
            self._live.start()
            atexit.register(self.close)  # an error must not leave the cursor hidden

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
        for name in _TRENDS:
            if name in record:
                self._courses.setdefault(_SHOWN.get(name, "value fits"), []).append(float(record[name]))
        self._show(state, record)

    def on_rollout(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        sample: Mapping[str, Any],
        **_: Any,
    ) -> None:
        """Show an answer that is trained on."""
        asked, said = (printable(" ".join(str(sample[part]).split())) for part in ("prompt", "response"))
        self._sample = Text(f"{asked[-200:]} ", style="dim", overflow="ellipsis")
        self._sample.append(f"→ {said[:300]} ", style="not dim")
        self._sample.append(f"[{sample['reward']:+.2f}]", style="bold not dim")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the view."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training did not end well."""
        if self._live is not None:
            self._live.stop()
            self._live = self._bar = None

    def _draw(self) -> RenderableType:
        """The courses of the metrics that matter, one answer, and the bar."""
        assert self._bar is not None
        console = self._bar.console
        parts: list[RenderableType] = []
        if console.height >= _TALL and self._courses:
            grid = Table.grid(padding=(0, 2))
            for name, values in self._courses.items():
                grid.add_row(name, sparkline(values, min(48, console.width - 32)), _short(values[-1]))
            parts = [grid, *([self._sample] if self._sample else [])]
        return Group(*parts, self._bar.get_renderable())

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
        is_evaluation = "eval_runtime" in record
        if self._bar is not None:
            room = self._bar.console.width - (50 if self._bar.console.width >= WIDE else 24)
            self._bar.update(self._task, description=_fit(shown, room), completed=state.global_step)
            if is_evaluation:
                self._bar.console.print(f"step {state.global_step}  {text}", markup=False, highlight=False)
            return
        now, at = time.monotonic(), f"step {state.global_step}/{state.max_steps}"
        if is_terminal() and talks_apart():
            show(f"{at}  {self._trend()}{text}")
            return
        if is_evaluation or now - self._last_line_s >= PLAIN_EVERY_S or state.global_step >= state.max_steps:
            self._last_line_s = now
            mark(f"{at}  {text}")

    def _trend(self) -> str:
        """The course of the most telling metric, for a line."""
        values = next((values for values in self._courses.values() if len(values) > 1), None)
        return f"{sparkline(values, 12)}  " if values else ""


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

"""Stop a run that has gone wrong, or warn of what its loss does not show."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_cli.errors import GuardStop
from rlhf_cli.machine import any_process
from rlhf_cli.run_dir import RunDir
from rlhf_cli.terminal import say_error


class FiniteGuard(TrainerCallback):
    """Stops every process before an optimizer step whose loss or gradient is not a number.

    transformers hides such a loss in its logs (`logging_nan_inf_filter`) and trains on.
    In fp16 an infinite gradient is the loss scaler's business, so only the loss is looked at.
    """

    def __init__(self, trainer: Trainer, run: RunDir, *, stops: bool) -> None:
        self._trainer = trainer
        self._run = run
        self._stops = stops
        self._warned = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look at the loss and at what the step would add."""
        fault = self._find_fault(args)
        if not any_process(fault is not None, args.device):
            return
        step = state.global_step + 1
        what = f"step {step}: {fault or 'another process met a loss or gradient that is not finite'}"
        if self._stops:
            raise GuardStop(f"stopped at {what}; its weights are not changed any more", hint=self._advice(args, step))
        if not self._warned:
            self._warned = True
            say_error(f"warning: {what}; training on, since `guards` says so")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at the loss of an evaluation, which is the same in every process."""
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss) and self._stops:
            advice = self._advice(args, state.global_step)
            raise GuardStop(f"the evaluation after step {state.global_step} has the loss {loss}", hint=advice)

    def _find_fault(self, args: TrainingArguments) -> str | None:
        loss = float(self._trainer._tr_loss)
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if args.fp16:
            return None
        gradients = [parameter.grad for parameter in self._trainer.model.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        return None if math.isfinite(norm) else f"the gradient norm is {norm}, at a finite loss"

    def _advice(self, args: TrainingArguments, step: int) -> str:
        complete = self._run.complete_checkpoints()
        kept = f"{complete[0]} is the newest checkpoint; " if complete else ""
        warmup = "" if args.warmup_steps else ", or add `warmup_steps: 0.1`"
        return (
            f"{kept}lower `learning_rate` ({args.learning_rate:g}){warmup}; {self._run.metrics_file} has what led here"
        )


class ChosenGuard(TrainerCallback):
    """Warns when training on pairs makes the chosen answers less likely, which its loss and accuracy do not show.

    DPO only asks that the rejected answer falls more (likelihood displacement, Razin et al. 2024, arXiv:2410.08847).
    """

    WINDOW = 10
    """Log events that are looked at together."""

    def __init__(self, run: RunDir, beta: float) -> None:
        self._run = run
        self._beta = beta
        self._recent: deque[float] = deque(maxlen=self.WINDOW)
        self._warned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep how far the chosen answers' log-probability is from the reference's, in nats."""
        if not logs or "rewards/chosen" not in logs or not state.is_world_process_zero:
            return
        self._recent.append(logs["rewards/chosen"] / self._beta)
        if len(self._recent) < self.WINDOW or self._warned:
            return
        change = statistics.fmean(self._recent)
        error = statistics.stdev(self._recent) / math.sqrt(len(self._recent))
        if change + 2 * error < 0:
            self._warned = True
            say_error(
                f"warning: step {state.global_step}: the chosen answers have become less likely, by {-change:.2f} nats "
                f"against the reference (mean of {self.WINDOW} log events)\n"
                "hint: lower `learning_rate`, raise `beta`, or hold them with `loss_type: [sigmoid, sft]`"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the last of it in run.json."""
        if self._recent and self._run.run_file.exists() and state.is_world_process_zero:
            facts = {"nats": statistics.fmean(self._recent), "warned": self._warned}
            self._run.update_run(chosen_logp_change=facts)

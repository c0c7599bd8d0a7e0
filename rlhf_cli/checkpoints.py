"""Stop on a signal with a checkpoint, and declare checkpoints complete."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from rlhf_cli.errors import Interrupted
from rlhf_cli.machine import any_process, wait_for_all
from rlhf_cli.run_dir import MANIFEST, write_manifest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Ends training after the step in which a signal arrives, once a checkpoint is written.

    As a context manager it holds the handlers. Before training a signal ends the run at once, and after it the model is
    still saved; a second signal ends the run at once, whatever it does.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._begun = False
        self._what = "stopped before a step was trained"
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._previous = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum
        if not self._begun:
            raise Interrupted(signum, self._what)

    def wait_for_steps(self) -> None:
        """From here on a signal waits for the end of the step."""
        self._begun = True

    def act_at_once(self, what: str) -> None:
        """From here on a signal ends the run at once, saying this."""
        self._begun, self._what = False, what
        if self.signum is not None:
            raise Interrupted(self.signum, what)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Stop when any process got a signal: all of them must write the checkpoint together."""
        if any_process(self.signum is not None, args.device):
            self.signum = self.signum or signal.SIGTERM
            control.should_save = True
            control.should_training_stop = True
        return control


class CompleteCheckpoints(TrainerCallback):
    """Writes a checkpoint's manifest when every process has saved, and only then lets older ones go."""

    def __init__(self, keep: int | None) -> None:
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Declare the checkpoint of this step complete."""
        wait_for_all()
        if not state.is_world_process_zero:
            return
        folder = str(args.output_dir)
        checkpoint = Path(folder) / f"checkpoint-{state.global_step}"
        if not (checkpoint / MANIFEST).exists():
            write_manifest(checkpoint, resumable=not args.save_only_model)
        rotate_checkpoints(folder, save_total_limit=self.keep, best_model_checkpoint=state.best_model_checkpoint)

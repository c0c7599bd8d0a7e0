"""Two real steps at the longest batch, to hold the memory plan against."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback

from rlhf_cli.data import Encodings
from rlhf_cli.faults import explained_faults
from rlhf_cli.machine import quietly, settle_on_cpu
from rlhf_cli.memory import GIB
from rlhf_cli.methods.base import Method
from rlhf_cli.models import load_model, trained_in_fp32
from rlhf_cli.prepare import Prepared

STEPS = 2
_SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "gradient_accumulation_steps": 1, "save_strategy": "no", "eval_strategy": "no",
    "eval_on_start": False, "load_best_model_at_end": False, "report_to": "none", "push_to_hub": False,
}  # fmt: skip
"""What a probe changes: it trains two batches and leaves nothing."""


@dataclass(frozen=True)
class Probe:
    """What two steps took."""

    peak_gib: float
    """Above what the process held before the model was loaded."""
    step_s: float
    """Seconds of the second step."""


def probe(prepared: Prepared, method: Method) -> Probe:
    """Train two steps of the longest batch in a folder that goes away, and measure.

    Raises:
        UserError: when the model cannot be loaded, or memory runs out.
    """
    plan, material = prepared.plan, prepared.material
    with tempfile.TemporaryDirectory(prefix="rlhf-probe-") as folder:
        settings = {**plan.settings, **_SETTINGS, "output_dir": folder}
        short = replace(plan, settings=settings, output_dir=Path(folder))
        data = Encodings(_longest(prepared), None)
        if plan.machine.device == "cpu":
            settle_on_cpu()
        before = _start_measuring(plan.machine.device)
        with explained_faults(prepared.run, plan), quietly():
            loaded = load_model(prepared.recipe, short, material.source, material.tokenizer)
            with trained_in_fp32(loaded.model):
                trainer = method.build_trainer(method.build_config(short), loaded, data)
            for talks in (ProgressCallback, PrinterCallback):
                trainer.remove_callback(talks)
            started = time.perf_counter()
            trainer.train()
        return Probe(
            peak_gib=(_peak(plan.machine.device) - before) / GIB,
            step_s=(time.perf_counter() - started) / STEPS,
        )


def _longest(prepared: Prepared) -> Dataset:
    """Rows for two batches, the longest there are; where rows are packed, as many as fill two."""
    dataset, plan = prepared.material.train.dataset, prepared.plan
    lengths = prepared.material.train.lengths
    batch = plan.settings.get("per_device_train_batch_size") or prepared.recipe["per_device_train_batch_size"]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    wanted = STEPS * batch * plan.machine.processes
    if plan.train.examples != plan.train.used:
        return dataset
    return dataset.select((order * wanted)[:wanted] if len(order) < wanted else order[:wanted])


def _start_measuring(device: str) -> int:
    """Bytes held now; peaks count from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
    return _resident("VmRSS")


def _peak(device: str) -> int:
    return int(torch.cuda.max_memory_allocated()) if device == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    """Bytes by a line of /proc/self/status; elsewhere than on Linux the peak of the whole process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024

"""What became of a stage, in one line: told from the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.run_dir import EVALUATION_FILE, RunDir
from rlhf_cli.terminal import sparkline

_COURSES = {"objective/scores": "reward", "rewards/accuracies": "accuracy", "loss": "loss"}
"""Metrics whose course tells most of a run, and what people call them; the first that a run has is told."""
_SPARK_WIDTH = 10


def describe_stage(folder: Path) -> str:
    """What a run or an evaluation came to; empty where its folder does not say."""
    run = RunDir(folder)
    record = run.read_run()
    if record:
        return "  ".join(part for part in (_steps(record), _card(record) or _course(run)) if part)
    try:
        outcome = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
        return _verdicts(outcome)
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _steps(record: Mapping[str, Any]) -> str:
    return f"{record['steps_done']} steps" if record.get("steps_done") else ""


def _card(record: Mapping[str, Any]) -> str:
    """Of a reward model, how good it is."""
    number = ((record.get("report") or {}).get("numbers") or {}).get("accuracy")
    return f"held-out accuracy {estimate_text(number)}" if number else ""


def estimate_text(number: Mapping[str, Any]) -> str:
    """An estimate with its interval, as far as there are any; one pair or an answer without a score has none."""
    value, low, high = (number.get(key) for key in ("value", "ci_low", "ci_high"))
    if value is None:
        return "unknown"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _course(run: RunDir) -> str:
    try:
        lines = run.metrics_file.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return ""
    for metric, name in _COURSES.items():
        values = [record[metric] for record in records if isinstance(record.get(metric), (int, float))]
        if values:
            told = f"{name} {values[-1]:.2f}"
            if len(values) > 1:
                told = f"{name} {values[0]:.2f} → {values[-1]:.2f}  {sparkline(values, _SPARK_WIDTH)}"
            nats = [record["objective/kl"] for record in records if record.get("objective/kl") is not None]
            return f"{told}  KL {nats[-1]:.1f}" if nats else told
    return ""


def _verdicts(outcome: Mapping[str, Any]) -> str:
    told = [f"{verdict['model']} {verdict['outcome']}" for verdict in outcome.get("verdicts", [])]
    if told:
        return f"{outcome['prompts']} prompts  {', '.join(told)}"
    return f"accuracy {estimate_text(outcome['report']['numbers']['accuracy'])}"

"""Gates: the numbers that a model must reach, and the exit code where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_cli.errors import GateError, Problem

METRICS = {
    "accuracy": "share of held-out pairs whose chosen answer scores higher; ties count half",
    "accuracy_over_longer": "accuracy, less that of the rule that the longer answer wins",
    "accuracy_over_promptless": "accuracy, less that of the same model on answers without their prompt",
    "log_loss": "Bradley-Terry loss in nats; a coin has 0.693",
    "ece": "expected calibration error: how far the share that wins is from the probability that was given",
    "picks_longer": "share of held-out pairs whose longer answer scores higher",
    "said_twice": "share of answers that score higher when they are said twice",
    "junk_wins": "share of junk answers that score above the chosen one",
    "flips": "share of pairs whose order changes under edits that change no meaning",
}
"""What may be asked of a reward model, and what it means."""

BOUNDS = ("value", "ci_low", "ci_high")

GATES: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["metric"],
        "additionalProperties": False,
        "anyOf": [{"required": ["min"]}, {"required": ["max"]}],
        "x-fix": "a gate has `min`, `max` or both",
        "properties": {
            "metric": {"enum": list(METRICS)},
            "min": {"type": "number"},
            "max": {"type": "number"},
            "bound": {"enum": list(BOUNDS)},
        },
    },
    "default": [],
    "description": "Numbers of the report card that must be reached, such as `{metric: accuracy, min: 0.65, bound: "
    "ci_low}`; else the exit code is 3. `bound` is the `value` (the default) or an end of its 95 % interval. Metrics: "
    + "; ".join(f"{name}, {meaning}" for name, meaning in METRICS.items())
    + ".",
}
"""The recipe key, as JSON Schema."""


def failed_gates(gates: Sequence[Mapping[str, Any]], numbers: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Say of every gate that is not met what was asked and what came out.

    Args:
        gates: As a recipe has them.
        numbers: By metric: `value`, `ci_low`, `ci_high`; a metric that could not be measured is not there.
    """
    failed = []
    for gate in gates:
        bound = gate.get("bound", "value")
        number = numbers.get(gate["metric"])
        got = number and number.get(bound)
        asked = " and ".join(f"{name} {gate[name]:g}" for name in ("min", "max") if name in gate)
        met = got is not None and gate.get("min", got) <= got <= gate.get("max", got)
        if not met:
            measured = _describe(number) if number else "was not measured"
            failed.append(f"gate {gate['metric']} ({bound}) asks {asked}: it {measured}")
    return failed


def _describe(number: Mapping[str, float | None]) -> str:
    interval = "" if number.get("ci_low") is None else f" [{number['ci_low']:.3f}, {number['ci_high']:.3f}]"
    return f"is {number['value']:.3f}{interval}"


def gate_error(failed: Sequence[str], *, where: str, hint: str | None = None) -> GateError:
    """The error that ends a run whose gates are not met."""
    problems = [Problem(what, file=where) for what in failed]
    return GateError("; ".join(failed), problems=problems, hint=hint)

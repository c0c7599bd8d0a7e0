"""Gates: the numbers that a model must reach, and the exit code where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

POLICY_METRICS = {
    "win_rate": "share of prompts on which the judge likes the answer better than the baseline's; ties count half",
    "length_controlled_win_rate": "the same, if answers were as long as the baseline's",
    "reward_difference": "mean score, less that of the baseline",
    "kl": "nats a response from the reference",
    "kl_per_token": "the same a token",
    "length_ratio": "characters, as a share of the baseline's",
    "eos_rate": "share of answers that end by themselves",
    "distinct_2": "share of pairs of words that are different ones",
    "repetition": "share of an answer's runs of four tokens that were there before",
    "perplexity_ratio": "perplexity on `perplexity_file`, as a share of the baseline's",
    "over_optimised": "1 where the reward that was trained on is pleased and a held-out judge is not, else 0",
}
"""What may be asked of a policy, and what it means."""

BOUNDS = ("value", "ci_low", "ci_high")


def _gates_key(metrics: Mapping[str, str], more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["metric"],
            "additionalProperties": False,
            "anyOf": [{"required": ["min"]}, {"required": ["max"]}],
            "x-fix": "a gate has `min`, `max` or both",
            "properties": {
                "metric": {"enum": list(metrics)},
                "min": {"type": "number"},
                "max": {"type": "number"},
                "bound": {"enum": list(BOUNDS)},
                **more,
            },
        },
        "default": [],
        "description": "Numbers that must be reached, such as "
        f"`{{metric: {next(iter(metrics))}, min: 0.65, bound: ci_low}}`; else the exit code is 3. `bound` is the "
        "`value` (the default) or an end of its 95 % interval. Metrics: "
        + "; ".join(f"{name}, {meaning}" for name, meaning in metrics.items())
        + ".",
    }


GATES = _gates_key(METRICS, {})
"""The recipe key of a run that ends in a report card, as JSON Schema."""

EVALUATION_GATES = _gates_key({**POLICY_METRICS, **METRICS}, {"model": {"type": "string"}, "judge": {"type": "string"}})
"""The recipe key of an evaluation: of policies, where a gate may name a model and a judge, or of a reward model."""


@dataclass(frozen=True)
class GateOutcome:
    """A gate, and whether it is met."""

    metric: str
    bound: str
    text: str
    """What was asked and what came out."""
    met: bool
    model: str | None = None
    judge: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)


def check_gate(
    gate: Mapping[str, Any],
    number: Mapping[str, float | None] | None,
    *,
    model: str | None = None,
    judge: str | None = None,
) -> GateOutcome:
    """Hold a number against a gate.

    Args:
        gate: `metric`, `min`, `max`, `bound`.
        number: `value`, `ci_low` and `ci_high`; None where there is none.
        model: Whose number it is, where there are several.
        judge: Who gave it.

    Returns:
        The outcome; a bound that is not known is not met.
    """
    bound = gate.get("bound", "value")
    got = number and number.get(bound)
    asked = " and ".join(f"{name} {gate[name]:g}" for name in ("min", "max") if name in gate)
    met = got is not None and gate.get("min", got) <= got <= gate.get("max", got)
    measured = _describe(number) if number else "was not measured"
    if number and got is None:
        measured += f", and its {bound} is not known"
    whose = (f" of {model}" if model else "") + (f" by `{judge}`" if judge else "")
    text = f"gate {gate['metric']} ({bound}){whose} asks {asked}: it {measured}"
    return GateOutcome(gate["metric"], bound, text, met, model, judge)


def failed_gates(gates: Sequence[Mapping[str, Any]], numbers: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Say of every gate that is not met what was asked and what came out.

    Args:
        gates: Of the recipe.
        numbers: By metric, `value`, `ci_low` and `ci_high`.
    """
    outcomes = [check_gate(gate, numbers.get(gate["metric"])) for gate in gates]
    return [outcome.text for outcome in outcomes if not outcome.met]


def _describe(number: Mapping[str, float | None]) -> str:
    interval = "" if number.get("ci_low") is None else f" [{number['ci_low']:.3f}, {number['ci_high']:.3f}]"
    return f"is {number['value']:.3f}{interval}"


def gate_error(failed: Sequence[str], *, where: str, hint: str | None = None) -> GateError:
    """The error that ends a run whose gates are not met."""
    file, _, line = where.rpartition(":")
    place = (file, int(line)) if line.isdigit() else (where, None)
    problems = [Problem(what, *place) for what in failed]
    return GateError("; ".join(failed), problems=problems, hint=hint)

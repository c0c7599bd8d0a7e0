"""The pictures of a training run: which metrics belong together, and what to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.report.charts import SERIES, CurveChart, Marks, curve_spec
from rlhf_cli.report.curves import Curve, constant
from rlhf_cli.report.page import Group, Key, Picture
from rlhf_cli.report.wording import is_number, number

Curves = Mapping[str, Curve]


@dataclass(frozen=True)
class _Panel:
    """One picture, where a run has its metrics."""

    title: str
    lines: dict[str, str]
    """Metrics of training, and what each is called."""
    marks: dict[str, str] = field(default_factory=dict)
    """Metrics of evaluations, and what each is called."""
    note: str = ""
    share: bool = False
    less: bool = False
    """Whether what is shown is 1 less the metric."""
    levels: dict[str, float] = field(default_factory=dict)
    setting: str = ""
    """A setting whose value is a level to compare with."""
    tiny: bool = False
    if_it_changes: bool = False


_FAMILIES: dict[str, list[_Panel]] = {
    "Rewards": [
        _Panel("Reward", {"objective/scores": "sampled answers"},
               {"eval_reward": "held-out prompts", "eval_reward_reference": "the reference on them"},
               "Training answers are sampled, held-out ones the likeliest; compare each with itself."),
        _Panel("KL from the reference", {"objective/kl": "nats a response (k1)", "objective/kl_k3": "k3"},
               {"eval_kl": "held-out prompts"}, setting="stop_at_kl"),
        _Panel("KL coefficient", {"objective/kl_coef": "adapted"}, if_it_changes=True),
    ],
    "Answers": [
        _Panel("Length", {"completions/mean_length": "tokens"}, {"eval_length": "held-out prompts"},
               setting="response_length"),
        _Panel("Answers that end by themselves", {"completions/clipped_ratio": "share"},
               {"eval_eos_rate": "held-out prompts"}, "The rest is cut off at the longest response.", True, True),
        _Panel("Repetition", {"completions/repetition": "share of an answer that repeats itself"},
               {"eval_repetition": "held-out prompts"}, share=True),
        _Panel("Entropy", {"objective/entropy_per_token": "nats a token"},
               note="A fall towards nothing means that one answer is left."),
    ],
    "The update": [
        _Panel("Clipped tokens", {"policy/clipfrac_avg": "policy", "val/clipfrac_avg": "value"}, share=True),
        _Panel("Ratio to the policy that sampled", {"val/ratio": "mean"}, levels={"unchanged": 1.0}),
        _Panel("What the value foretells", {"val/explained_var": "share of the returns' variance"},
               note="Below 0 it is worse than none.", levels={"nothing": 0.0}),
        _Panel("Parts of the loss", {"loss/policy_avg": "policy", "loss/value_avg": "value"}),
    ],
    "Preferences": [
        _Panel("Rewards of both answers", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
               {"eval_rewards/chosen": "chosen, held out", "eval_rewards/rejected": "rejected, held out"},
               "Both are 0 at the reference. A falling chosen reward is likelihood displacement.",
               levels={"reference": 0.0}),
        _Panel("Margin", {"rewards/margins": "chosen less rejected"}, {"eval_rewards/margins": "held-out pairs"},
               levels={"none": 0.0}),
        _Panel("Accuracy", {"rewards/accuracies": "training pairs"}, {"eval_rewards/accuracies": "held-out pairs"},
               share=True, levels={"a coin": 0.5}),
        _Panel("Log-probability of the answers", {"logps/chosen": "chosen", "logps/rejected": "rejected"},
               {"eval_logps/chosen": "chosen, held out", "eval_logps/rejected": "rejected, held out"}),
        _Panel("Accuracy", {"accuracy": "training pairs"}, {"eval_accuracy": "held-out pairs"}, share=True,
               levels={"a coin": 0.5}),
        _Panel("Margin", {"margin": "chosen less rejected"}, {"eval_margin": "held-out pairs"}, levels={"none": 0.0}),
        _Panel("Rewards", {"max_reward": "highest", "mean_reward": "mean", "min_reward": "lowest"}),
    ],
    "Optimisation": [
        _Panel("Loss", {"loss": "training"}, {"eval_loss": "held out"}),
        _Panel("Token accuracy", {"mean_token_accuracy": "training"}, {"eval_mean_token_accuracy": "held out"},
               share=True),
        _Panel("Entropy", {"entropy": "nats a token"}, {"eval_entropy": "held out"}),
        _Panel("Gradient norm", {"grad_norm": "before clipping"}),
        _Panel("Learning rate", {"learning_rate": "learning rate"}, tiny=True),
        _Panel("Speed", {"tokens_per_s": "tokens a second"}),
    ],
}  # fmt: skip
_SHOWN = {name for panels in _FAMILIES.values() for panel in panels for name in (*panel.lines, *panel.marks)}
_NEAR = 2.5
"""A level farther off than so many times the highest value is told and not drawn: it would flatten the curve."""


def is_shown(metric: str) -> bool:
    """Whether a page shows a metric, or says something of it."""
    return metric in _SHOWN or metric.startswith(("eval_", "rewards/"))


def training_groups(
    curves: Curves, setting: Callable[[str], Any], checkpoints: Sequence[int], *, last_step: float
) -> list[Group]:
    """The pictures that a run has data for, by family.

    Args:
        curves: Of its metrics.
        setting: The value of a setting, by name.
        checkpoints: Steps of those that are kept.
        last_step: Where the horizontal axis of each ends.
    """
    groups = [
        Group(name, [
            _picture(panel, curves, setting, checkpoints, last_step)
            for panel in (*_gain(name, curves), *panels, *_reward_parts(name, curves))
            if _has_data(panel, curves)
        ])
        for name, panels in _FAMILIES.items()
    ]  # fmt: skip
    return [group for group in groups if group.pictures]


def _gain(family: str, curves: Curves) -> list[_Panel]:
    found = family == "Rewards" and "eval_gain" in curves and len(curves["eval_gain"]) > 1
    what = "On the same prompts, with 95 % intervals. Above 0 throughout, the gain is not chance."
    return (
        [_Panel("Gain over the reference", {}, {"eval_gain": "held-out prompts"}, what, levels={"none": 0.0})]
        if found
        else []
    )


def _reward_parts(family: str, curves: Curves) -> list[_Panel]:
    """One picture for the rewards that the sum is made of, where there are several."""
    names = [name for name in curves if name.startswith("rewards/") and name.endswith("/mean")]
    if family != "Rewards" or len(names) < 2:
        return []
    return [_Panel("What the reward is made of", {name: name.split("/", 1)[1].removesuffix("/mean") for name in names})]


def _has_data(panel: _Panel, curves: Curves) -> bool:
    lines = [curves[name] for name in panel.lines if name in curves]
    if panel.if_it_changes:
        return bool(lines) and not constant(lines)
    return bool(lines) or any(name in curves for name in panel.marks)


def _picture(
    panel: _Panel, curves: Curves, setting: Callable[[str], Any], checkpoints: Sequence[int], last_step: float
) -> Picture:
    lines = {label: _shown(panel, curves[name]) for name, label in panel.lines.items() if name in curves}
    lines = dict(list(lines.items())[: len(SERIES)])
    marks = [_marks(label, curves, name) for name, label in panel.marks.items() if name in curves]
    levels, beyond = _levels(panel, setting, [*lines.values()], marks)
    lost = sum(curve.lost for curve in lines.values())
    notes = [panel.note, *beyond, f"{lost} values were not finite and are left out." if lost else ""]
    keys = [
        *(Key(label, colour, dash) for (colour, dash), label in zip(SERIES, lines, strict=False)),
        *_mark_keys(marks),
        *(Key(f"{label} {number(level)}", "soft", (3, 3), "rule") for label, level in levels.items()),
    ]
    chart = CurveChart(panel.title, lines, marks, panel.share, levels, panel.tiny)
    spec = curve_spec(chart, last_step=last_step, checkpoints=checkpoints)
    return Picture(panel.title, spec, keys, " ".join(note for note in notes if note))


def _mark_keys(marks: Sequence[Marks]) -> list[Key]:
    shapes = ("dot", "diamond", "square", "cross")
    if len(marks) == 1:
        return [Key(marks[0].label, "ink", (), "dot")]
    return [Key(each.label, colour, (), shape) for each, (colour, _), shape in zip(marks, SERIES, shapes, strict=False)]


def _shown(panel: _Panel, curve: Curve) -> Curve:
    return Curve(curve.steps, 1 - curve.values, curve.lost) if panel.less else curve


def _marks(label: str, curves: Curves, name: str) -> Marks:
    curve, low, high = curves[name], curves.get(f"{name}_low"), curves.get(f"{name}_high")

    def ends(side: Curve | None) -> list[float | None]:
        known = dict(zip(side.steps.tolist(), side.values.tolist(), strict=True)) if side is not None else {}
        return [known.get(step) for step in curve.steps.tolist()]

    return Marks(label, curve.steps.tolist(), curve.values.tolist(), ends(low), ends(high))


def _levels(
    panel: _Panel, setting: Callable[[str], Any], lines: Sequence[Curve], marks: Sequence[Marks]
) -> tuple[dict[str, float], list[str]]:
    """Levels to draw, and sentences about those that are too far off."""
    levels = dict(panel.levels)
    beyond = []
    highest = max([float(curve.values.max()) for curve in lines] + [max(each.values) for each in marks], default=0.0)
    value = setting(panel.setting) if panel.setting else None
    if is_number(value):
        if value <= _NEAR * highest:
            levels[panel.setting] = float(value)
        else:
            beyond.append(f"{panel.setting} is {number(value)}, beyond this picture.")
    return levels, beyond

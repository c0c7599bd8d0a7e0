"""What came of a comparison: the numbers of each model, who beats whom, and whether gates are met (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.contest import OVER_OPTIMISED, Contest, Verdict, compare, give_verdict
from rlhf_cli.frontier import Frontier
from rlhf_cli.gates import GateOutcome, check_gate
from rlhf_cli.scores import Estimate, Floats, mean_by_group, ratio, sum_by_group
from rlhf_cli.terminal import printable
from rlhf_cli.text_measures import distinct, openings

_OF_A_JUDGE = {
    "win_rate": "win_rate", "length_controlled_win_rate": "length_controlled", "reward_difference": "difference",
}  # fmt: skip
"""Metrics of a gate that a judge gives, and where a contest has them."""


@dataclass
class Performance:
    """What a model answered to each prompt, and what is known of the answers; arrays have the shape (prompts,)."""

    name: str
    path: str
    texts: list[str]
    tokens: Floats
    characters: Floats
    finished: Floats
    """1 where an answer ends by itself."""
    repetition: Floats
    kl: Floats | None = None
    """Sum of log p − log p of the reference over an answer's tokens; None where it has no reference."""
    kl_k3: Floats | None = None
    """The same by an estimator that is never negative (Schulman 2020, http://joschu.net/blog/kl-approx.html)."""
    scores: dict[str, Floats] = field(default_factory=dict)
    """By judge."""
    several: dict[str, Floats] = field(default_factory=dict)
    """By judge, scores of several answers to each prompt, this one the first, shape (prompts, answers)."""
    spread: dict[str, float] = field(default_factory=dict)
    """By judge that is an ensemble, the mean standard deviation of its members on an answer."""
    nats: Floats | None = None
    """Of each piece of the text that perplexity is measured on, shape (pieces,)."""
    text_tokens: Floats | None = None
    trained_prompts: int | None = None
    """Prompts that it, or what it comes from, was trained on; None where that is not known."""


@dataclass(frozen=True)
class Standings:
    """What came of a comparison."""

    baseline: str
    reference: str | None
    prompts: int
    """Different ones."""
    answers: int
    """Of each model; more than prompts where some are asked several times."""
    numbers: dict[str, dict[str, Estimate]]
    """By model and metric."""
    rewards: dict[str, dict[str, Estimate]]
    """By model and judge."""
    performances: Mapping[str, Performance]
    trained: Mapping[str, frozenset[str]]
    """By judge, the models that were trained against it."""
    contests: list[Contest]
    verdicts: list[Verdict]
    gates: list[GateOutcome]
    frontier: Frontier | None
    warnings: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The standings as a JSON object."""
        models = {
            name: {
                "path": each.path,
                "numbers": {metric: number.as_json() for metric, number in self.numbers[name].items()},
                "rewards": {judge: number.as_json() for judge, number in self.rewards[name].items()},
                "spread": each.spread,
                "openings": openings(each.texts),
                "trained_prompts": each.trained_prompts,
            }
            for name, each in self.performances.items()
        }
        return {
            "kind": "policies",
            "baseline": self.baseline,
            "reference": self.reference,
            "prompts": self.prompts,
            "answers": self.answers,
            "models": models,
            "contests": [contest.as_json() for contest in self.contests],
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
            "frontier": self.frontier.as_json() if self.frontier else None,
            "warnings": list(self.warnings),
        }

    # --- for people ---

    def as_text(self) -> str:
        """The standings as they are shown to a person."""
        several = f", {self.answers:,} answers of each model" if self.answers > self.prompts else ""
        lines = [f"{self.prompts:,} prompts{several}; baseline {self.baseline}", *self._table()]
        for judge in dict.fromkeys(contest.judge for contest in self.contests):
            lines += self._judged(judge)
        if self.frontier:
            lines += _frontier_lines(self.frontier)
        lines += ["", *(printable(verdict.sentence) for verdict in self.verdicts)]
        lines += [f"{gate.text}: {'met' if gate.met else 'NOT met'}" for gate in self.gates]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _table(self) -> list[str]:
        columns = {
            "tokens": "tokens", "eos_rate": "ends", "distinct_2": "distinct-2", "repetition": "repeats", "kl": "KL",
            "perplexity": "perplexity",
        }  # fmt: skip
        shown = {key: title for key, title in columns.items() if any(key in each for each in self.numbers.values())}
        width = max(map(len, self.numbers))
        lines = [f"  {'':<{width}}" + "".join(f"{title:>12}" for title in shown.values())]
        for name, numbers in self.numbers.items():
            cells = [_cell(key, numbers[key].value) if key in numbers else "–" for key in shown]
            lines.append(f"  {printable(name):<{width}}" + "".join(f"{cell:>12}" for cell in cells))
        return lines

    def _judged(self, judge: str) -> list[str]:
        """What a judge says, a line a model."""
        contests = [contest for contest in self.contests if contest.judge == judge]
        width = max(map(len, self.numbers))
        pupils = ", ".join(sorted(self.trained[judge]))
        lines = [f"by `{printable(judge)}`" + (f", which {printable(pupils)} was trained against" if pupils else "")]
        for contest in contests:
            controlled = contest.length_controlled
            parts = [f"wins {contest.win_rate.as_text(2)}"]
            parts += [f"at equal length {controlled.as_text(2)}"] if controlled else []
            parts += [f"score {contest.difference.value:+.2f}"] if contest.difference else []
            lines.append(f"  {printable(contest.model):<{width}}  " + "  ".join(parts))
        return lines


def _cell(key: str, value: float) -> str:
    return f"{value:.0%}" if key in ("eos_rate", "repetition") else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _frontier_lines(frontier: Frontier) -> list[str]:
    lines = ["", f"checkpoints of {printable(frontier.run)}"]
    for point in frontier.points:
        scores = "  ".join(f"{printable(judge)} {score.value:+.3f}" for judge, score in point.scores.items())
        mark = "  ← best" if point.name == frontier.best else ""
        lines.append(f"  {point.name:<18} KL {point.kl.value:6.2f}  {scores}{mark}")
    for best in frontier.best_of_n:
        scores = "  ".join(f"{printable(judge)} {score:+.3f}" for judge, score in best.scores.items())
        lines.append(f"  {f'best of {best.n}':<18} KL {best.kl:6.2f}  {scores}")
    if frontier.best is None and frontier.judges["held_out"]:
        lines.append(f"  no checkpoint is better than the baseline by `{printable(str(frontier.judges['held_out']))}`")
    if frontier.over_optimised_after:
        lines.append(
            f"  over-optimised after {frontier.over_optimised_after}: from there on "
            f"`{frontier.judges['held_out']}` falls, and the reward that is trained on does not"
        )
    return lines


# --- working it out -----------------------------------------------------------------------------------------------


def measure(
    each: Performance, baseline: Performance, prompts: Sequence[str], *, text_bytes: Floats | None, seed: int
) -> dict[str, Estimate]:
    """The numbers of one model's answers, whatever judges say of them.

    Args:
        each: The model.
        baseline: The model it is held against.
        prompts: Which prompt each answer is to; those to one prompt are resampled together.
        text_bytes: Of each piece of the text that perplexity is measured on.
        seed: Of the resampling.
    """

    def mean(values: Floats, *, is_share: bool = False) -> Estimate:
        return mean_by_group(values, prompts, seed=seed, is_share=is_share)

    def by_prompt(sums: Floats, counts: Floats) -> Estimate:
        return ratio(sum_by_group(sums, prompts), sum_by_group(counts, prompts), seed=seed)

    found = {
        "tokens": mean(each.tokens),
        "eos_rate": mean(each.finished, is_share=True),
        "repetition": mean(each.repetition),
        "length_ratio": by_prompt(each.characters, np.maximum(1, baseline.characters)),
        **{f"distinct_{n}": Estimate(distinct(each.texts, n), None, None, len(prompts), 1) for n in (1, 2)},
    }
    if each.kl is not None and each.kl_k3 is not None:
        found |= {
            "kl": mean(each.kl),
            "kl_k3": mean(each.kl_k3),
            "kl_per_token": by_prompt(each.kl, each.tokens),
        }
    if each.nats is not None and each.text_tokens is not None and text_bytes is not None:
        found["perplexity"] = _exp(ratio(each.nats, each.text_tokens, seed=seed))
        bits = each.nats / np.log(2)
        found["bits_per_byte"] = ratio(bits, text_bytes, seed=seed)
        if baseline.nats is not None and baseline.text_tokens is not None:
            found["perplexity_ratio"] = _exp(ratio(each.nats - baseline.nats, baseline.text_tokens, seed=seed))
    return found


def _exp(number: Estimate) -> Estimate:
    low, high = (None if end is None else float(np.exp(end)) for end in (number.ci_low, number.ci_high))
    return Estimate(float(np.exp(number.value)), low, high, number.n, number.groups)


def hold_contests(
    performances: Mapping[str, Performance], baseline: str, prompts: Sequence[str], *, seed: int
) -> list[Contest]:
    """Every model against the baseline, by every judge that gives scores."""
    theirs = performances[baseline]
    found = []
    for judge in theirs.scores:
        for name, each in performances.items():
            if name != baseline:
                margins = each.scores[judge] - theirs.scores[judge]
                known = np.isfinite(margins)
                asked = [prompt for prompt, is_known in zip(prompts, known, strict=True) if is_known]
                lengths = (each.characters - theirs.characters)[known]
                names = (name, baseline, judge)
                found.append(compare(margins[known], asked, names=names, lengths=lengths, scored=True, seed=seed))
    return found


def reach_verdicts(contests: Sequence[Contest], trained: Mapping[str, frozenset[str]]) -> list[Verdict]:
    """One verdict a model.

    Args:
        contests: All of them.
        trained: By judge, the models that were trained against it.
    """
    verdicts = []
    for model in dict.fromkeys(contest.model for contest in contests):
        own = [contest for contest in contests if contest.model == model]
        held_out = [contest for contest in own if is_held_out(contest, trained)]
        verdicts.append(give_verdict(held_out, [contest for contest in own if contest not in held_out]))
    return verdicts


def is_held_out(contest: Contest, trained: Mapping[str, frozenset[str]]) -> bool:
    """Whether neither side was trained against the judge, as far as their runs tell."""
    return not {contest.model, contest.baseline} & trained[contest.judge]


def over_optimisation(
    verdicts: Sequence[Verdict],
    contests: Sequence[Contest],
    trained: Mapping[str, frozenset[str]],
    rewarded: Set[str],
) -> dict[str, dict[str, Estimate]]:
    """Of each model, as a metric, whether it only pleases what it was trained against; nothing where nobody could tell.

    Args:
        verdicts: On the models.
        contests: That these come from.
        trained: By judge, the models that were trained against it.
        rewarded: Models that were trained against rewards, asked here or not: of these both sides must have been asked.
    """
    found = {}
    for verdict in verdicts:
        asked = {is_held_out(contest, trained) for contest in contests if contest.model == verdict.model}
        if asked >= ({True, False} if verdict.model in rewarded else {True}):
            over = float(verdict.outcome == OVER_OPTIMISED)
            found[verdict.model] = {"over_optimised": Estimate(over, None, None, 1, 1)}
    return found


def check_gates(
    gates: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Mapping[str, Estimate]],
    contests: Sequence[Contest],
    trained: Mapping[str, frozenset[str]],
    *,
    baseline: str,
) -> list[GateOutcome]:
    """Hold the numbers of the models against the gates: of all models but the baseline, unless a gate names one.

    A judge that a gate does not name is the first that the model was not trained against. What nobody has measured is
    not met.
    """
    outcomes = []
    for gate in gates:
        others = [name for name in numbers if name != baseline] or [baseline]
        for model in [gate["model"]] if "model" in gate else others:
            number, judge = None, gate.get("judge")
            if gate["metric"] in _OF_A_JUDGE:
                contest = _contest_of(gate, model, contests, trained)
                number = getattr(contest, _OF_A_JUDGE[gate["metric"]]) if contest else None
                judge = contest.judge if contest else judge
            else:
                number = numbers[model].get(gate["metric"])
            outcomes.append(check_gate(gate, number.as_json() if number else None, model=model, judge=judge))
    return outcomes


def _contest_of(
    gate: Mapping[str, Any], model: str, contests: Sequence[Contest], trained: Mapping[str, frozenset[str]]
) -> Contest | None:
    own = [contest for contest in contests if contest.model == model]
    if "judge" in gate:
        return next((contest for contest in own if contest.judge == gate["judge"]), None)
    return next((contest for contest in own if is_held_out(contest, trained)), None)

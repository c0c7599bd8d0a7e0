"""Policies beside their baseline: win rates, frontier, scores before and after, numbers, answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_cli.report.curves import Floats
from rlhf_cli.report.evaluation_charts import before_after_spec, differences_spec, frontier_spec, length_spec, win_spec
from rlhf_cli.report.page import BAD, GOOD, UNSURE, Cell, Group, Key, Number, Picture, Section, Table
from rlhf_cli.report.samples import Answer, Sample, choose, compare, plain, selection_note, turns, within_budget
from rlhf_cli.report.wording import cut, ends, is_number, number, p_value, percent, signed
from rlhf_cli.scores import rank_correlation

_MOST_PICTURES = 6
_OPENINGS = 5
_OUTCOMES = {"better": GOOD, "worse": BAD}
_METRICS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "tokens": ("tokens", number), "length_ratio": ("length against the baseline", number),
    "eos_rate": ("end by themselves", percent), "repetition": ("repetition", percent),
    "distinct_1": ("distinct words", percent), "distinct_2": ("distinct pairs of words", percent),
    "kl": ("KL, nats", number), "kl_k3": ("KL, k3", number), "kl_per_token": ("KL a token", number),
    "perplexity": ("perplexity", number), "perplexity_ratio": ("perplexity against the baseline", number),
    "bits_per_byte": ("bits a byte", number),
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What was found, and the answers it was found on."""

    found: Mapping[str, Any]
    answers: list[dict[str, Any]]

    @property
    def baseline(self) -> str:
        """The model that all are compared with."""
        return str(self.found.get("baseline", ""))

    @property
    def others(self) -> list[str]:
        """All models but the baseline."""
        return [name for name in self.found.get("models") or {} if name != self.baseline]

    @property
    def judges(self) -> list[str]:
        """Judges that give scores, those that no model was trained against first."""
        known = [each for each in self.found.get("judges") or [] if each.get("kind") != "verdicts"]
        return [str(each["name"]) for each in sorted(known, key=lambda each: bool(each.get("trained")))]

    def is_trained_against(self, model: str, judge: str) -> bool:
        """Whether pleasing a judge is what a model was trained for, so that it proves nothing."""
        return any(model in each.get("trained", ()) for each in self.found.get("judges") or [] if each["name"] == judge)

    def score(self, row: Mapping[str, Any], model: str, judge: str) -> float | None:
        """What a judge gives to a model's answer."""
        value = ((row["answers"].get(model) or {}).get("scores") or {}).get(judge)
        return float(value) if is_number(value) else None

    def pairs(self, model: str, judge: str) -> Floats:
        """Scores of the baseline and of a model on the prompts that both answered, shape (prompts, 2)."""
        both = [(self.score(row, self.baseline, judge), self.score(row, model, judge)) for row in self.answers]
        return np.array([pair for pair in both if None not in pair], dtype=np.float64).reshape(-1, 2)


def policy_numbers(comparison: Comparison) -> list[Number]:
    """Win rates first, then what they cost."""
    found = comparison.found
    numbers = []
    order = comparison.judges
    contests = sorted(
        found.get("contests") or [], key=lambda each: order.index(each["judge"]) if each["judge"] in order else 0
    )
    for contest in contests[:3]:
        rate = contest["win_rate"]
        note = f"{contest['model']} against {contest['baseline']}, {contest['prompts']:,} prompts"
        note += f"; p {p_value(contest.get('p_adjusted', contest.get('p')))}"
        mood = _OUTCOMES.get(str(contest.get("outcome")), UNSURE)
        if comparison.is_trained_against(contest["model"], contest["judge"]):
            note, mood = f"{note}; it was trained against this judge", ""
        numbers.append(
            Number(f"Win rate by {contest['judge']}", percent(rate["value"]), ends(rate, percent), note, mood)
        )
    model = comparison.others[0] if comparison.others else comparison.baseline
    known = ((found.get("models") or {}).get(model) or {}).get("numbers") or {}
    for key, label, write in (
        ("kl", "KL from the reference", number),
        ("length_ratio", "Length against the baseline", number),
        ("eos_rate", "End by themselves", percent),
    ):
        each = known.get(key)
        if each and is_number(each.get("value")) and len(numbers) < 5:
            numbers.append(
                Number(
                    label,
                    write(each["value"]),
                    ends(each, write),
                    f"{model}, {each.get('groups') or each.get('n'):,} prompts",
                )
            )
    return numbers


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Everything between the verdict and the recipe."""
    return [
        _outcome(comparison),
        _distributions(comparison),
        _samples(comparison),
        _numbers(comparison),
    ]


# --- the outcome ----------------------------------------------------------------------------------------------------


def _outcome(comparison: Comparison) -> Section:
    found = comparison.found
    contests = [
        {**each, "label": cut(f"{each['model']}, by {each['judge']}", 34)} for each in found.get("contests") or []
    ]
    pictures = []
    if contests:
        keys = [Key("wins", "blue", (), "bar"), Key("ties", "soft", (), "bar"), Key("losses", "line", (), "bar"),
                Key("win rate, ties as half, with 95 % interval", "ink", (), "dot"),
                Key("even", "ink", (3, 3), "rule")]  # fmt: skip
        pictures.append(Picture(f"Win rate against {comparison.baseline}", win_spec(contests), keys))
    frontier = _frontier(comparison)
    gates = [
        [Cell("✓ met" if gate.get("met") else "✗ not met", strong=not gate.get("met")), Cell(str(gate.get("text", "")))]
        for gate in found.get("gates") or []
    ]
    tables = [_contests(contests)] if contests else []
    tables += [Table(gates, title="Gates")] if gates else []
    return Section("outcome", "Who wins", groups=[Group("", [*frontier, *pictures])], tables=tables)


def _contests(contests: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            Cell(f"{each['model']} by {each['judge']}"),
            _estimate(each["win_rate"], percent),
            _estimate(each.get("length_controlled"), percent),
            _estimate(each.get("difference"), signed),
            Cell(p_value(each.get("p_adjusted", each.get("p"))).removeprefix("= ")),
            Cell(str(each.get("outcome", ""))),
        ]
        for each in contests
    ]
    head = ["", "win rate", "of equal length", "score, more", "p, adjusted", "outcome"]
    return Table(
        rows, head, "Contests", "Intervals are of 95 %. “Of equal length” is the win rate were both answers as long."
    )


def _frontier(comparison: Comparison) -> list[Picture]:
    found = comparison.found.get("frontier")
    if not found:
        return []
    scale = {judge: _spread(comparison, judge) for judge in found["judges"].values()}
    in_sigmas = all(scale.values())
    lines = []
    for look in ("training", "held_out"):
        judge = found["judges"].get(look)
        if judge is None:
            continue
        divisor = scale[judge] if in_sigmas else 1.0
        points = [_frontier_point(point, judge, divisor or 1.0) for point in found.get("points") or []]
        lines.append((look, [{"kl": 0.0, "gain": 0.0, "name": ""}, *(point for point in points if point)]))
        lines.append((f"{look} best of n", _best_of_n(found.get("best_of_n") or [], judge, divisor or 1.0)))
    lines = [(look, points) for look, points in lines if len(points) > 1 or not look.endswith("n")]
    unit = "gain, in standard deviations of the baseline" if in_sigmas else "gain in score"
    judges = found["judges"]
    looks = {"training": ("training reward", "orange", (6.0, 3.0)), "held_out": ("held-out judge", "blue", ())}
    keys = [
        Key(f"{name} ({judges[look]})", colour, dash)
        for look, (name, colour, dash) in looks.items()
        if judges.get(look) is not None
    ]
    if any(look.endswith("best of n") for look, _ in lines):
        keys.append(Key("hollow: best of n, without training", "soft", (1.5, 3)))
    if found.get("best"):
        keys.append(Key(f"best by the held-out judge: {found['best']}", "ink", (), "ring"))
    note = (
        "Where the dashed line goes on rising and the solid one does not, the policy learns what the reward model gets "
        "wrong (Gao et al. 2023)."
    )
    if found.get("over_optimised_after"):
        note += f" Here it does from {found['over_optimised_after']} on."
    title = f"What {found.get('run', 'the run')} gains, and how far it goes for it"
    return [Picture(title, frontier_spec(lines, best=found.get("best"), unit=unit), keys, note, wide=True)]


def _spread(comparison: Comparison, judge: str) -> float:
    scores = [comparison.score(row, comparison.baseline, judge) for row in comparison.answers]
    known = [score for score in scores if score is not None]
    return float(np.std(known)) if len(known) > 1 else 0.0


def _frontier_point(point: Mapping[str, Any], judge: str, divisor: float) -> dict[str, Any] | None:
    difference, kl = (point.get("difference") or {}).get(judge), (point.get("kl") or {}).get("value")
    if not difference or not is_number(difference.get("value")) or not is_number(kl):
        return None
    sides = {side: difference.get(f"ci_{side}") for side in ("low", "high")}
    return {
        "kl": kl, "gain": difference["value"] / divisor, "name": str(point.get("name", "")),
        **{side: end / divisor if is_number(end) else None for side, end in sides.items()},
    }  # fmt: skip


def _best_of_n(points: Sequence[Mapping[str, Any]], judge: str, divisor: float) -> list[dict[str, Any]]:
    known = [(each["kl"], each["scores"][judge]) for each in points if is_number((each.get("scores") or {}).get(judge))]
    first = min(known, default=(0.0, 0.0))[1]
    return [{"kl": kl, "gain": (score - first) / divisor, "name": ""} for kl, score in sorted(known)]


# --- before and after -----------------------------------------------------------------------------------------------


def _distributions(comparison: Comparison) -> Section:
    before: list[Picture] = []
    differences: list[Picture] = []
    lengths: list[Picture | None] = []
    for model in comparison.others:
        for judge in comparison.judges:
            pairs = comparison.pairs(model, judge)
            if len(pairs) < 2 or len(before) >= _MOST_PICTURES:
                continue
            name = f"{model}, by {judge}"
            before.append(_before_after(comparison, name, pairs, model))
            differences.append(_differences(comparison, name, pairs))
            lengths.append(_lengths(comparison, name, model, judge))
    groups = [
        Group("Scores on the same prompts", before),
        Group("Paired differences", differences),
        Group("Length and score", [picture for picture in lengths if picture is not None]),
    ]
    return Section("scores", "Before and after", groups=groups)


def _before_after(comparison: Comparison, name: str, pairs: Floats, model: str) -> Picture:
    keys = [Key(comparison.baseline, "soft", (4, 3)), Key(model, "blue")]
    means = f"Means {number(float(pairs[:, 0].mean()))} and {number(float(pairs[:, 1].mean()))}, ticked below; "
    return Picture(name, before_after_spec(pairs[:, 0], pairs[:, 1]), keys, f"{means}{len(pairs):,} answers.")


def _differences(comparison: Comparison, name: str, pairs: Floats) -> Picture:
    gains = pairs[:, 1] - pairs[:, 0]
    estimate: Mapping[str, Any] = {}
    for contest in comparison.found.get("contests") or []:
        if name == f"{contest['model']}, by {contest['judge']}":
            estimate = contest.get("difference") or {}
    mean, better = signed(float(gains.mean())), percent(float((gains > 0).mean()))
    note = f"Mean {mean} {ends(estimate, signed)}, the solid line; better on {better} of {len(gains):,} answers."
    return Picture(
        name, differences_spec(gains), [Key("better", "blue", (), "bar"), Key("worse", "orange", (), "bar")], note
    )


def _lengths(comparison: Comparison, name: str, model: str, judge: str) -> Picture | None:
    dots = {}
    for each in (comparison.baseline, model):
        known = [
            (row["answers"].get(each, {}).get("tokens"), comparison.score(row, each, judge))
            for row in comparison.answers
        ]
        dots[each] = [(float(tokens), score) for tokens, score in known if is_number(tokens) and score is not None]
    if (
        min(len(each) for each in dots.values()) < 3
        or len({tokens for each in dots.values() for tokens, _ in each}) < 2
    ):
        return None
    rho = {each: rank_correlation(*np.array(known).T) for each, known in dots.items()}
    note = (
        "Spearman's ρ of both: " + ", ".join(f"{each} {signed(round(value, 2))}" for each, value in rho.items()) + "."
    )
    keys = [Key(comparison.baseline, "soft", (), "square"), Key(model, "blue", (), "dot")]
    return Picture(name, length_spec(dots[comparison.baseline], dots[model]), keys, note)


# --- numbers and answers --------------------------------------------------------------------------------------------


def _numbers(comparison: Comparison) -> Section:
    models: Mapping[str, Mapping[str, Any]] = comparison.found.get("models") or {}
    rows = [
        [Cell(label), *(_estimate((model.get("numbers") or {}).get(key), write) for model in models.values())]
        for key, (label, write) in _METRICS.items()
        if any(key in (model.get("numbers") or {}) for model in models.values())
    ]
    judges = list(dict.fromkeys(judge for model in models.values() for judge in model.get("rewards") or {}))
    rows += [
        [Cell(f"mean score by {judge}"), *(_reward(model, judge) for model in models.values())] for judge in judges
    ]
    tables = [Table(rows, ["", *models], "", "With 95 % intervals.")] if rows else []
    return Section("numbers", "Numbers", tables=[*tables, *_openings(models)])


def _reward(model: Mapping[str, Any], judge: str) -> Cell:
    cell = _estimate((model.get("rewards") or {}).get(judge), number)
    spread = (model.get("spread") or {}).get(judge)
    return Cell(cell.text, f"{cell.more} members differ by {number(spread)}".strip()) if is_number(spread) else cell


def _openings(models: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """How answers begin: one opening for all prompts is a policy that has collapsed."""
    columns = {name: list(model.get("openings") or [])[:_OPENINGS] for name, model in models.items()}
    longest = max((len(each) for each in columns.values()), default=0)
    rows = [
        [_opening(each[place]) if place < len(each) else Cell("") for each in columns.values()]
        for place in range(longest)
    ]
    return [Table(rows, list(columns), "How answers begin", "Share of the answers.")] if rows else []


def _opening(opening: Sequence[Any]) -> Cell:
    text, share = opening
    return Cell(f"“{cut(str(text), 60)}”", percent(share), share=share if is_number(share) else None)


def _samples(comparison: Comparison) -> Section:
    if not comparison.answers:
        return Section("samples", "Samples")
    judge = comparison.judges[0] if comparison.judges else ""
    model = comparison.others[0] if comparison.others else comparison.baseline

    def gain(row: Mapping[str, Any]) -> float | None:
        after, before = comparison.score(row, model, judge), comparison.score(row, comparison.baseline, judge)
        return after - before if after is not None and before is not None and comparison.others else None

    shown = within_budget([_sample(comparison, row, gain(row), why) for row, why in choose(comparison.answers, gain)])
    by = f" Gains are those of {model}, by {judge}." if judge and comparison.others else ""
    return Section("samples", "Samples", selection_note(len(comparison.answers), len(shown)) + by, samples=shown)


def _sample(comparison: Comparison, row: Mapping[str, Any], gain: float | None, why: str) -> Sample:
    baseline = (row["answers"].get(comparison.baseline) or {}).get("response", "")
    answers = []
    for name in [comparison.baseline, *comparison.others]:
        each = row["answers"].get(name)
        if not each:
            continue
        text = each.get("response", "")
        left, right = compare(baseline, text)
        pieces = (
            right if name != comparison.baseline else left if len(comparison.others) != 1 else _left(comparison, row)
        )
        scores = [(judge, number(value)) for judge, value in (each.get("scores") or {}).items()]
        facts = [
            *scores,
            *([("KL", number(each["kl"]))] if is_number(each.get("kl")) else []),
            ("tokens", number(each.get("tokens"))),
        ]
        answers.append(Answer(name, pieces, facts, cut_off=each.get("finished") is False))
    last = answers[-1] if answers else None
    tokens = (row["answers"].get(last.name) or {}).get("tokens") if last else None
    kl = (row["answers"].get(last.name) or {}).get("kl") if last else None
    order = {"gain": gain, "kl": kl, "length": tokens}
    kept = {name: float(value) for name, value in order.items() if is_number(value)}
    return Sample(turns(row.get("prompt", "")), answers, gain, why, kept)


def _left(comparison: Comparison, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The baseline's answer, with what the only other model left out of it."""
    other = row["answers"].get(comparison.others[0]) or {}
    baseline = (row["answers"].get(comparison.baseline) or {}).get("response", "")
    return compare(baseline, other["response"])[0] if "response" in other else plain(baseline)


# --- words ----------------------------------------------------------------------------------------------------------


def _estimate(estimate: Any, write: Callable[[Any], str]) -> Cell:
    if not isinstance(estimate, Mapping) or not is_number(estimate.get("value")):
        return Cell("–")
    return Cell(write(estimate["value"]), ends(estimate, write))

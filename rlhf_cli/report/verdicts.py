"""What came of a training run: the few numbers that matter, and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_cli.plan import REWARD_MODEL
from rlhf_cli.report.curves import Curve, Trend, tail, trend
from rlhf_cli.report.page import BAD, GOOD, UNSURE, Number
from rlhf_cli.report.wording import ends, interval, is_number, number, p_value, percent, points, signed

FEW_END = 0.5


@dataclass(frozen=True)
class Facts:
    """What is known of a run."""

    trains: str
    """`POLICY` or `REWARD_MODEL`, as in a plan."""
    results: Mapping[str, Any]
    """Of its last evaluation."""
    curves: Mapping[str, Curve]
    card: Mapping[str, Any]
    """The report card of a reward model."""
    held_out: int | None
    """Rows or prompts that were held out."""
    setting: Callable[[str], Any]

    def last(self, name: str) -> float | None:
        """What a metric of the last evaluation came to."""
        value = self.results.get(name)
        return float(value) if is_number(value) else None


def verdict_of(facts: Facts) -> tuple[list[Number], str]:
    """The numbers and the sentence of a run, by what it trained and what it measured."""
    measured = {*facts.curves, *facts.results}
    if facts.trains == REWARD_MODEL:
        numbers, sentences = _reward_model(facts)
    elif measured & {"objective/scores", "eval_reward", "eval_gain"}:
        numbers, sentences = _rewarded(facts)
    elif measured & {"rewards/margins", "eval_rewards/margins"}:
        numbers, sentences = _preferring(facts)
    else:
        numbers, sentences = _taught(facts)
    return numbers, " ".join(sentences)


# --- policies that learn from rewards --------------------------------------------------------------------------------


def _rewarded(facts: Facts) -> tuple[list[Number], list[str]]:
    gain = facts.last("eval_gain")
    numbers, sentences = _gain(facts, gain) if gain is not None else _reward(facts)
    kl = facts.last("eval_kl")
    if kl is not None:
        budget = facts.setting("stop_at_kl")
        note = "nats a response" + (f", of {number(budget)} allowed" if is_number(budget) else "")
        numbers.append(Number("KL from the reference", number(kl), note=note))
    numbers += _lengths(facts)
    if kl is not None:
        sentences.append(f"It is {number(kl)} nats a response away from the reference.")
    return numbers, [*sentences, *_endings(facts)]


def _gain(facts: Facts, gain: float) -> tuple[list[Number], list[str]]:
    low, high = facts.last("eval_gain_low"), facts.last("eval_gain_high")
    after, before = facts.last("eval_reward"), facts.last("eval_reward_reference")
    mood = GOOD if low is not None and low > 0 else BAD if high is not None and high < 0 else UNSURE
    meaning = {GOOD: "a significant gain", BAD: "a significant loss", UNSURE: "no significant change"}[mood]
    prompts = _count(facts.held_out, "held-out prompt")
    note = f"{number(after)} after, {number(before)} before, on {prompts}"
    first = Number("Reward over the reference", signed(gain), interval(low, high, signed), note, mood)
    more = "more" if gain >= 0 else "less"
    extent = f" {interval(low, high, signed)}" if low is not None else ""
    sentence = (
        f"On {prompts} the policy's answers score {number(abs(gain))} {more} than the reference's{extent}: {meaning}."
    )
    return [first], [sentence]


def _reward(facts: Facts) -> tuple[list[Number], list[str]]:
    """Without a comparison, what there is: the reward of held-out answers, or that of training."""
    held_out, sampled = facts.last("eval_reward"), facts.curves.get("objective/scores")
    numbers, sentences = [], []
    if held_out is not None:
        note = f"on {_count(facts.held_out, 'held-out prompt')}; not compared with a reference"
        numbers.append(Number("Held-out reward", number(held_out), note=note))
    if sampled is not None:
        course = trend(sampled)
        mood = GOOD if course.rises else BAD if course.falls else UNSURE
        note = f"from {number(course.first)}: {_describe_trend(course)}"
        numbers.append(Number("Training reward", number(course.last), note=note, mood=mood))
        sentences.append(f"The reward of sampled answers {_went(course)}.")
    if held_out is None:
        sentences.append("No prompts are held out, so nothing is known of prompts it was not trained on.")
    return numbers, sentences


def _lengths(facts: Facts) -> list[Number]:
    numbers = []
    length, ended = facts.last("eval_length"), facts.last("eval_eos_rate")
    sampled = facts.curves.get("completions/mean_length")
    if length is None and sampled is not None:
        length = tail(sampled)
    if length is not None:
        before = f"; sampled ones had {number(float(sampled.values[0]))} at first" if sampled is not None else ""
        numbers.append(Number("Length", number(length), note=f"tokens an answer{before}"))
    if ended is not None:
        note = f"answers that end within {number(facts.setting('response_length'))} tokens"
        numbers.append(Number("End by themselves", percent(ended), note=note, mood=BAD if ended < FEW_END else ""))
    return numbers


def _endings(facts: Facts) -> list[str]:
    ended = facts.last("eval_eos_rate")
    if ended is None or ended >= FEW_END:
        return []
    if ended <= 0:
        return ["None of its answers ends by itself: the reward is that of answers cut off."]
    return [f"Only {percent(ended)} of its answers end by themselves: the reward is mostly that of answers cut off."]


# --- policies that learn from preferences ----------------------------------------------------------------------------


def _preferring(facts: Facts) -> tuple[list[Number], list[str]]:
    accuracy = facts.last("eval_rewards/accuracies")
    if accuracy is None:
        return _preferring_in_training(facts)
    low, high = _wilson(accuracy, facts.held_out)
    mood = GOOD if low is not None and low > 0.5 else BAD if high is not None and high < 0.5 else UNSURE
    pairs = _count(facts.held_out, "held-out pair")
    margin = facts.last("eval_rewards/margins")
    numbers = [
        Number(
            "Held-out accuracy", percent(accuracy), interval(low, high, percent), f"of {pairs}; a coin has 50 %", mood
        ),
        Number("Margin", signed(margin), note="chosen less rejected reward; its interval is not known"),
    ]
    chosen, rejected = facts.last("eval_rewards/chosen"), facts.last("eval_rewards/rejected")
    meaning = {GOOD: "better than a coin", BAD: "worse than a coin", UNSURE: "not shown to differ from a coin"}[mood]
    sentences = [
        f"Of {pairs}, the policy raises the chosen answer above the rejected one in {percent(accuracy)} "
        f"{interval(low, high, percent)}: {meaning}."
    ]
    return [*numbers, *_both_rewards(chosen, rejected, "held-out pairs")], [
        *sentences,
        *_displacement(chosen, rejected),
    ]


def _preferring_in_training(facts: Facts) -> tuple[list[Number], list[str]]:
    numbers, sentences = [], []
    accuracy, margins = facts.curves.get("rewards/accuracies"), facts.curves.get("rewards/margins")
    if accuracy is not None:
        numbers.append(Number("Training accuracy", percent(tail(accuracy)), note="of pairs it is trained on"))
    if margins is not None:
        course = trend(margins)
        numbers.append(Number("Margin", signed(course.last), note=_describe_trend(course)))
        sentences.append(f"The margin between chosen and rejected {_went(course)}.")
    chosen, rejected = (
        tail(facts.curves[name]) if name in facts.curves else None for name in ("rewards/chosen", "rewards/rejected")
    )
    sentences.append("No pairs are held out, so nothing is known of pairs it was not trained on.")
    return [*numbers, *_both_rewards(chosen, rejected, "training pairs")], [
        *sentences,
        *_displacement(chosen, rejected),
    ]


def _both_rewards(chosen: float | None, rejected: float | None, where: str) -> list[Number]:
    if chosen is None or rejected is None:
        return []
    note = f"on {where}; 0 is the reference"
    return [
        Number("Chosen reward", signed(chosen), note=note, mood=BAD if chosen < 0 else ""),
        Number("Rejected reward", signed(rejected), note=note),
    ]


def _displacement(chosen: float | None, rejected: float | None) -> list[str]:
    if chosen is None or rejected is None or chosen >= 0:
        return []
    why = ""
    if rejected < chosen:
        why = " The margin comes from the rejected ones, which fall faster."
    return [
        f"The chosen answers have become less likely than under the reference (reward {signed(chosen)}): likelihood "
        f"displacement.{why}"
    ]


def _wilson(share: float, count: int | None) -> tuple[float | None, float | None]:
    """The interval of a share of independent pairs (Wilson 1927)."""
    if not count or not 0 <= share <= 1:
        return None, None
    from scipy import stats

    found = stats.binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


# --- policies that learn from examples -------------------------------------------------------------------------------


def _taught(facts: Facts) -> tuple[list[Number], list[str]]:
    held_out, training = facts.curves.get("eval_loss"), facts.curves.get("loss")
    numbers, sentences = _held_out_loss(facts, held_out) if held_out is not None else ([], [])
    accuracy = facts.last("eval_mean_token_accuracy")
    if accuracy is not None:
        numbers.append(Number("Held-out tokens right", percent(accuracy), note="the likeliest token is the one there"))
    if training is not None:
        course = trend(training)
        mood = "" if held_out is not None else GOOD if course.falls else BAD if course.rises else UNSURE
        note = f"from {number(course.first)}: {_describe_trend(course)}"
        numbers.append(Number("Training loss", number(course.last), note=note, mood=mood))
        sentences.append(f"The training loss {_went(course)}.")
    if held_out is None:
        sentences.append("Nothing is held out, so nothing is known of rows it was not trained on.")
    return numbers, sentences


def _held_out_loss(facts: Facts, curve: Curve) -> tuple[list[Number], list[str]]:
    last, rows = float(curve.values[-1]), _count(facts.held_out, "held-out row")
    if len(curve) == 1:
        note = f"nats a token, on {rows}; only evaluated once, so there is no before"
        return [Number("Held-out loss", number(last), note=note)], [
            f"On {rows} the loss is {number(last)} nats a token."
        ]
    first, start = float(curve.values[0]), curve.steps[0]
    before = "before training" if start == 0 else f"at step {number(int(start))}"
    best = int(curve.values.argmin())
    past_it = best < len(curve) - 1 and last > 1.01 * float(curve.values[best])
    mood = BAD if last > first else UNSURE if past_it else GOOD
    note = f"nats a token, on {rows}; {number(first)} {before}; no interval is known"
    number_of_loss = Number("Held-out loss", number(last), note=note, mood=mood)
    sentences = [f"On {rows} the loss goes from {number(first)} {before} to {number(last)} at the end."]
    if past_it:
        where = f"step {number(int(curve.steps[best]))}"
        sentences.append(f"It was lowest, {number(float(curve.values[best]))}, at {where}, and has risen since.")
    return [number_of_loss], sentences


# --- reward models --------------------------------------------------------------------------------------------------


def _reward_model(facts: Facts) -> tuple[list[Number], list[str]]:
    if facts.card:
        return card_verdict(facts.card)
    accuracy = facts.curves.get("accuracy")
    numbers = []
    if accuracy is not None:
        note = "of pairs it is trained on"
        numbers.append(Number("Training accuracy", percent(tail(accuracy)), note=note, mood=UNSURE))
    return numbers, ["No pairs are held out, so nothing is known of this reward model."]


def card_verdict(card: Mapping[str, Any]) -> tuple[list[Number], list[str]]:
    """The numbers and the sentences of a reward model's report card."""
    known = card.get("numbers", {})
    accuracy, longer = known.get("accuracy", {}), known.get("longer_wins", {})
    over, good = known.get("accuracy_over_longer", {}), bool(card.get("good_enough_for_ppo"))
    low, high = over.get("ci_low"), over.get("ci_high")
    mood = GOOD if is_number(low) and low > 0 else BAD if is_number(high) and high < 0 else UNSURE
    pairs = f"{_count(card.get('pairs'), 'held-out pair')} of {_count(card.get('prompts'), 'prompt')}"
    calibration = card.get("calibration", {})
    above = GOOD if is_number(accuracy.get("ci_low")) and accuracy["ci_low"] > 0.5 else UNSURE
    numbers = [
        Number("Accuracy", percent(accuracy.get("value")), ends(accuracy, percent), f"on {pairs}", above),
        Number("“The longer answer wins”", percent(longer.get("value")), ends(longer, percent),
               "accuracy of that rule"),
        Number("Accuracy over that rule", points(over.get("value")).removesuffix(" points"), ends(over, points),
               "percentage points", mood),
        Number("Calibration error", percent(calibration.get("ece")),
               note=f"temperature {number(calibration.get('temperature'))}; above 1 it is too sure of itself"),
        Number("Good enough for PPO?", "yes" if good else "no", mood=GOOD if good else BAD,
               note="no objection" if good else _count(len(card.get("objections", [])), "objection") + ", below"),
    ]  # fmt: skip
    meaning = {
        GOOD: "better than choosing the longer answer", BAD: "worse than choosing the longer answer",
        UNSURE: "not shown to be better than choosing the longer answer",
    }[mood]  # fmt: skip
    share = f"{percent(accuracy.get('value'))} {ends(accuracy, percent)}"
    sentence = f"It prefers the chosen answer in {share} of {pairs}: {meaning}."
    fit = "It is good enough to be optimised against." if good else "It is not good enough to be optimised against."
    return numbers, [sentence, fit]


# --- words ----------------------------------------------------------------------------------------------------------


def _count(count: Any, what: str) -> str:
    if not is_number(count):
        return f"{what}s"
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _describe_trend(course: Trend) -> str:
    if not (course.rises or course.falls):
        return f"no significant trend (p {p_value(course.p)})" if course.p < 1 else "too few points for a trend"
    return f"a significant {'rise' if course.rises else 'fall'} (p {p_value(course.p)})"


def _went(course: Trend) -> str:
    where = f"from {number(course.first)} to {number(course.last)}"
    if course.rises or course.falls:
        return f"{'rises' if course.rises else 'falls'} {where}"
    return f"goes {where}, which is no significant trend"

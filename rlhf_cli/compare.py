"""The story of one comparison: models answer the same held-out prompts, and judges say whose answers are better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_cli.answers import Asking, Respondent, same_tokens
from rlhf_cli.contest import Contest, adjust, compare
from rlhf_cli.entrants import Entrant, Ground, survey_ground
from rlhf_cli.errors import DataError, UserError
from rlhf_cli.frontier import Frontier, Point, best_of_n, find_best, find_fall
from rlhf_cli.judging import PEOPLE, Judge, PairJudge, Verdicts, is_same, judge_answers, open_reward
from rlhf_cli.machine import free_memory
from rlhf_cli.models import QUANTISATION
from rlhf_cli.ppo import math
from rlhf_cli.ppo.rewards import Answer, Judged
from rlhf_cli.ppo.rollout import Episode
from rlhf_cli.recipe import Recipe, as_list
from rlhf_cli.rows import KEPT_BESIDE, Row
from rlhf_cli.scores import mean_by_group, mean_of_known
from rlhf_cli.standings import (
    Performance,
    Standings,
    check_gates,
    hold_contests,
    is_held_out,
    measure,
    over_optimisation,
    reach_verdicts,
)
from rlhf_cli.terminal import say, say_error
from rlhf_cli.text_measures import repetition


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison, and the answers."""

    standings: Standings
    facts: dict[str, Any]
    """What was compared, how, and on what."""
    answers: list[dict[str, Any]]
    """One object a prompt: what each model answered, and what every judge says of it."""

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON object, without the answers."""
        return {**self.standings.as_json(), **self.facts}


def compare_policies(recipe: Recipe) -> Comparison:
    """Have all models of a recipe answer the same prompts, and say which is better, and how sure that is.

    Raises:
        UserError: when models, prompts or judges cannot be used.
    """
    people = Verdicts(recipe["verdicts_file"]) if recipe["verdicts_file"] else None
    if people is not None:
        people.refuse_strangers(recipe)
    ground = survey_ground(recipe)
    for warning in ground.warnings:
        say_error(f"warning: {warning}")
    _ask_all(ground)
    performances = _judge_all(ground)
    standings = _stand(ground, performances, people)
    facts = {
        "left_out": ground.left_out,
        "sampling": {key: recipe[key] for key in ("response_length", "temperature", "seed")},
        "judges": [judge.as_json() for judge in ground.judges],
        "data": ground.sources,
    }
    return Comparison(standings, facts, _list_answers(ground, performances))


# --- answers --------------------------------------------------------------------------------------------------------


def _ask_all(ground: Ground) -> None:
    """Load one model after the other and ask it; the reference last, since it is also asked of the others' answers."""
    last = ground.entrants[ground.reference]
    for entrant in [*(each for each in ground.entrants.values() if each is not last), last]:
        _ask(ground, entrant)
        free_memory()


def _ask(ground: Ground, entrant: Entrant) -> None:
    recipe = ground.recipe
    say(f"{entrant.name}: answering {len(entrant.prompts):,} prompts")
    respondent = Respondent(
        entrant.path,
        ground.machine,
        quantisation={key: recipe[key] for key in QUANTISATION if key in recipe} or None,
        trust_remote_code=bool(recipe["trust_remote_code"]),
    )
    asking = Asking(
        recipe["response_length"],
        recipe["temperature"],
        recipe["seed"],
        recipe["per_device_eval_batch_size"],
        as_list(recipe["stop_token_id"]),
    )
    count = len(entrant.prompts)
    entrant.episodes = respondent.answer(entrant.prompts, range(count), asking)
    if entrant.name == ground.baseline and recipe["best_of_n"]:
        for turn in range(1, recipe["best_of_n"]):
            numbers = range(turn * count, (turn + 1) * count)
            entrant.more.append(respondent.answer(entrant.prompts, numbers, asking, scored=False))
    if ground.pieces and entrant.step is None:
        entrant.nats, entrant.text_tokens = (each.astype(np.float64) for each in respondent.surprise(ground.pieces))
    if entrant.name == ground.reference and asking.temperature:
        _measure_distance(ground, respondent, asking)


def _measure_distance(ground: Ground, reference: Respondent, asking: Asking) -> None:
    """How likely the reference finds what every model said, where a token means the same to both."""
    for entrant in ground.entrants.values():
        if entrant.tokenizer is not None and same_tokens(entrant.tokenizer, reference.tokenizer):
            reference.judge_likely(entrant.episodes, asking)
            entrant.has_reference = True
        else:
            ground.warnings.append(f"the KL of {entrant.name} is not known: its tokens are not those of the reference")


# --- judges ---------------------------------------------------------------------------------------------------------


def _judge_all(ground: Ground) -> dict[str, Performance]:
    """What each model did, and what every judge that gives scores says of it."""
    performances = {name: _perform(ground, entrant) for name, entrant in ground.entrants.items()}
    baseline = ground.entrants[ground.baseline]
    every = [entrant.episodes for entrant in ground.entrants.values()] + baseline.more
    answers = [[_as_answer(*pair) for pair in zip(each, ground.rows, strict=True)] for each in every]
    ground.judges[:] = [judge for judge in ground.judges if _judge(ground, judge, answers, performances)]
    return performances


def _judge(
    ground: Ground, judge: Judge, answers: list[list[Answer]], performances: Mapping[str, Performance]
) -> bool:  # fmt: skip
    """Ask one judge; False where it is a reward of old that cannot be had any more."""
    if judge.kind == PEOPLE:
        return True
    asked_for = [*as_list(ground.recipe["reward_model_path"]), *as_list(ground.recipe["reward_funcs"])]
    say(f"`{judge.name}` judges {sum(map(len, answers)):,} answers")
    try:
        reward = open_reward(judge, ground.recipe, ground.machine)
        judged = judge_answers(reward, answers)
    except UserError as error:
        if any(is_same(judge.reference, name) for name in asked_for):
            raise
        whose = ", ".join(sorted(judge.trained))
        ground.warnings.append(f"`{judge.reference}`, which {whose} was trained against, cannot judge: {error}")
        say_error(f"warning: {ground.warnings[-1]}")
        return False
    unknown = _without_opinion(ground, judge, judged)
    for performance, found in zip(performances.values(), judged, strict=False):
        performance.scores[judge.name] = np.where(unknown, np.nan, found.rewards)
        if found.spread is not None:
            performance.spread[judge.name] = float(found.spread.mean())
    drawn = [performances[ground.baseline].scores[judge.name], *(each.rewards for each in judged[len(performances) :])]
    performances[ground.baseline].several[judge.name] = np.stack(drawn, axis=1)
    free_memory()
    return True


def _without_opinion(ground: Ground, judge: Judge, judged: Sequence[Judged]) -> NDArray[np.bool_]:
    """The prompts that a judge has not scored every answer to; by its scores they decide nothing, for any model.

    Raises:
        DataError: when these are all.
    """
    unknown: NDArray[np.bool_] = np.any([np.isnan(each.rewards) for each in judged], axis=0)
    if unknown.all():
        raise DataError(f"`{judge.name}` has no opinion of the answers to any prompt")
    if unknown.any():
        what = f"`{judge.name}` has no opinion of answers to {unknown.sum():,} prompts, which count for nothing by it"
        ground.warnings.append(what)
    return unknown


def _as_answer(episode: Episode, row: Row) -> Answer:
    columns = {**(row.get("columns") or {}), **{key: row[key] for key in KEPT_BESIDE if key in row}}
    return Answer(row["prompt"], episode.text, episode.response_ids, episode.finished, columns)


def _perform(ground: Ground, entrant: Entrant) -> Performance:
    episodes = entrant.episodes
    found = Performance(
        entrant.name,
        entrant.path,
        texts=[episode.text for episode in episodes],
        tokens=np.array([len(episode.response_ids) for episode in episodes], dtype=np.float64),
        characters=np.array([len(episode.text) for episode in episodes], dtype=np.float64),
        finished=np.array([episode.finished for episode in episodes], dtype=np.float64),
        repetition=np.array([repetition(episode.response_ids) for episode in episodes]),
        nats=entrant.nats,
        text_tokens=entrant.text_tokens,
        trained_prompts=ground.trained_on.get(entrant.name),
    )
    if not entrant.has_reference:
        return found
    pairs = [(torch.from_numpy(each.log_probs), torch.from_numpy(each.ref_log_probs)) for each in episodes]
    found.kl = np.array([float(math.k1(*pair).sum()) for pair in pairs])
    found.kl_k3 = np.array([float(math.k3(*pair).sum()) for pair in pairs])
    return found


# --- what came of it ------------------------------------------------------------------------------------------------


def _stand(ground: Ground, performances: Mapping[str, Performance], people: PairJudge | None) -> Standings:
    """Numbers, contests, verdicts, the frontier, and whether the gates are met."""
    recipe, seed, prompts = ground.recipe, ground.recipe["seed"], ground.prompts
    models = {name: performances[name] for name in ground.models}
    contests = hold_contests(models, ground.baseline, prompts, seed=seed)
    if people is not None:
        contests = [*_read_verdicts(ground, people), *contests]
    # What no model was trained against is asked first, so that all are told of by one judge.
    order = [judge.name for judge in sorted(ground.judges, key=lambda judge: bool(judge.trained))]
    trained = {judge.name: judge.trained for judge in ground.judges}
    held_out = adjust([contest for contest in contests if is_held_out(contest, trained)])
    # What pleases the reward that was trained on is no claim of its own: it only makes one of a judge's displeasure.
    pleased = adjust([contest for contest in contests if not is_held_out(contest, trained)])
    contests = sorted([*held_out, *pleased], key=lambda contest: order.index(contest.judge))
    verdicts = reach_verdicts(contests, trained)
    bytes_of = np.array([len(piece.encode()) for piece in ground.pieces], dtype=np.float64) if ground.pieces else None
    numbers = {
        name: measure(each, models[ground.baseline], prompts, text_bytes=bytes_of, seed=seed)
        for name, each in models.items()
    }
    over = over_optimisation(verdicts, contests, trained, ground.rewarded)
    measured = {name: {**own, **over.get(name, {})} for name, own in numbers.items()}
    rewards = {
        name: {judge: mean_of_known(scores, prompts, seed=seed) for judge, scores in each.scores.items()}
        for name, each in models.items()
    }
    return Standings(
        baseline=ground.baseline,
        reference=ground.reference,
        prompts=len(set(prompts)),
        answers=len(prompts),
        numbers=numbers,
        rewards=rewards,
        performances=models,
        trained=trained,
        contests=contests,
        verdicts=verdicts,
        gates=check_gates(recipe["gates"], measured, contests, trained, baseline=ground.baseline),
        frontier=_draw_frontier(ground, performances) if recipe["frontier"] else None,
        warnings=ground.warnings,
    )


def _read_verdicts(ground: Ground, people: PairJudge) -> list[Contest]:
    """What people said of every model and the baseline, where they said anything."""
    judge = next(judge.name for judge in ground.judges if judge.kind == PEOPLE)
    found = []
    for model in ground.models:
        margins, prompts = people.compare(model, ground.baseline)
        if len(margins) and model != ground.baseline:
            names, seed = (model, ground.baseline, judge), ground.recipe["seed"]
            found.append(compare(margins, prompts, names=names, lengths=None, scored=False, seed=seed))
    return found


def _draw_frontier(ground: Ground, performances: Mapping[str, Performance]) -> Frontier | None:
    """Reward against KL over the checkpoints, and best-of-n from the baseline beside them."""
    run, seed, prompts = ground.recipe["frontier"], ground.recipe["seed"], ground.prompts
    baseline = performances[ground.baseline]
    # Best of n and a fall over steps are of all prompts; who has no opinion of some cannot tell them.
    judges = [judge for judge in ground.judges if np.isfinite(baseline.scores.get(judge.name, np.nan)).all()]
    several = {judge.name: baseline.several[judge.name] for judge in judges}
    training = next((judge.name for judge in judges if run in judge.trained), None)
    held_out = next((judge.name for judge in judges if run not in judge.trained), None)
    chooser = held_out or training
    steps = {name: entrant.step for name, entrant in ground.entrants.items() if entrant.step is not None}
    if chooser is None or any(performances[name].kl is None for name in steps):
        ground.warnings.append("there is no frontier: it needs a judge that gives scores, and KL from the reference")
        return None
    points = [_make_point(name, step, performances[name], baseline, prompts, seed) for name, step in steps.items()]
    fall = None
    if held_out and training and len(points) > 1:
        judged, pleased = ([performances[name].scores[judge] for name in steps] for judge in (held_out, training))
        fall = find_fall(judged, pleased, prompts, seed=seed)
    return Frontier(
        run=run,
        judges={"training": training, "held_out": held_out},
        points=points,
        best_of_n=best_of_n(several[training or chooser], several),
        best=find_best(points, held_out) if held_out else None,
        over_optimised_after=None if fall is None else points[fall].name,
    )


def _make_point(
    name: str, step: int, own: Performance, baseline: Performance, prompts: Sequence[str], seed: int
) -> Point:
    gains = {judge: scores - baseline.scores[judge] for judge, scores in own.scores.items()}
    return Point(
        name.rpartition("/")[2],
        step,
        mean_by_group(np.asarray(own.kl), prompts, seed=seed),
        {judge: mean_of_known(scores, prompts, seed=seed) for judge, scores in own.scores.items()},
        {judge: mean_of_known(gain, prompts, seed=seed) for judge, gain in gains.items()},
    )


def _list_answers(ground: Ground, performances: Mapping[str, Performance]) -> list[dict[str, Any]]:
    listed = []
    for index, row in enumerate(ground.rows):
        answers = {}
        for name, entrant in ground.models.items():
            own, episode = performances[name], entrant.episodes[index]
            answer = {"response": episode.text, "tokens": len(episode.response_ids), "finished": episode.finished}
            distance = {} if own.kl is None else {"kl": float(own.kl[index])}
            scores = {judge: float(scores[index]) for judge, scores in own.scores.items()}
            answers[name] = {**answer, **distance, "scores": scores}
        listed.append({"prompt": row["prompt"], "answers": answers})
    return listed

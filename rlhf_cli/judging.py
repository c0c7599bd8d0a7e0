"""Who judges answers: reward models, Python functions, and people whose verdicts are in a file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlhf_cli.errors import DataError, UserError
from rlhf_cli.eval_recipe import models_of
from rlhf_cli.files import READABLE, BadLine, is_data_file, read_rows
from rlhf_cli.inputs import source_files
from rlhf_cli.lineage import run_of
from rlhf_cli.machine import gather_parts, own_part, quietly
from rlhf_cli.models import QUANTISATION
from rlhf_cli.plan import Machine
from rlhf_cli.ppo.rewards import Answer, Judged, ModelReward, Reward, load_function
from rlhf_cli.recipe import Recipe, as_list
from rlhf_cli.reward_model import load_reward_model, read_stamp
from rlhf_cli.scores import Floats
from rlhf_cli.sources import Tally

REWARD_MODEL_JUDGE, FUNCTION_JUDGE, PEOPLE = "reward model", "function", "verdicts"
_TIES = ("tie", "tie (bothbad)")


@dataclass(frozen=True)
class Judge:
    """Somebody who judges, and the models that were trained to please them."""

    name: str
    kind: str
    reference: str
    """The reward model's folder, `file.py:function`, or the file of verdicts."""
    trained: frozenset[str] = field(default_factory=frozenset)
    """Models that were trained against it; of those it is no evidence."""

    def as_json(self) -> dict[str, Any]:
        """The judge as a JSON object."""
        return {"name": self.name, "kind": self.kind, "trained": sorted(self.trained)}


def find_judges(recipe: Recipe, trained_against: Mapping[str, Sequence[str]]) -> list[Judge]:
    """The judges that a recipe names, and behind them the reward models that its models were trained against.

    Args:
        recipe: Of the evaluation.
        trained_against: By model, reward models and functions.
    """
    references: list[str] = []
    for reference in [*as_list(recipe["reward_model_path"]), *as_list(recipe["reward_funcs"])]:
        if not any(is_same(reference, other) for other in references):
            references.append(reference)
    kinds = [FUNCTION_JUDGE if is_function(reference) else REWARD_MODEL_JUDGE for reference in references]
    if recipe["verdicts_file"]:
        references.append(recipe["verdicts_file"])
        kinds.append(PEOPLE)
    for reward in (reward for rewards in trained_against.values() for reward in rewards):
        if not is_function(reward) and not any(is_same(reward, other) for other in references):
            references.append(reward)
            kinds.append(REWARD_MODEL_JUDGE)
    return [
        Judge(name, kind, reference, _trained_against(reference, trained_against) if kind != PEOPLE else frozenset())
        for name, kind, reference in zip(_told_apart(references), kinds, references, strict=True)
    ]


def unasked_functions(judges: Sequence[Judge], trained_against: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Functions that models were trained against and that the recipe does not name, and the models.

    A run folder may come from anywhere, and a function is code: only what the recipe names is run.
    """
    found: dict[str, set[str]] = {}
    for model, rewards in trained_against.items():
        for reward in rewards:
            if is_function(reward) and not any(is_same(reward, judge.reference) for judge in judges):
                found.setdefault(reward, set()).add(model)
    return found


def _trained_against(reference: str, trained_against: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The models that were trained against a reward."""
    return frozenset(
        model for model, rewards in trained_against.items() if any(is_same(reference, reward) for reward in rewards)
    )


def is_function(reference: str) -> bool:
    """Whether a reward is named as a function is, and not as a model."""
    place, _, name = reference.rpartition(":")
    return bool(place) and name.isidentifier() and "/" not in name


def is_same(one: str, other: str) -> bool:
    """Whether two names are of the same reward."""
    if is_function(one) != is_function(other):
        return False
    if is_function(one):
        return _function(one) == _function(other)
    here, there = (_run_or_folder(each) for each in (one, other))
    same_place = here.samefile(there) if here.exists() and there.exists() else here == there
    return same_place or _have_same_weights(str(here), str(there))


def _function(reference: str) -> tuple[str, str]:
    """The file that a function stands in, however that is named, and its name."""
    place, _, name = reference.rpartition(":")
    files = source_files(place)
    return str(files[0].resolve()) if files else place, name


def _run_or_folder(name: str) -> Path:
    """The run that a model is of, be it one of its checkpoints or members; else its folder."""
    run = run_of(name)
    return run.path if run else Path(os.path.expanduser(name))


def _have_same_weights(one: str, other: str) -> bool:
    """Whether the stamps of two reward models say that one is a copy of the other, or of one of its members."""
    weights = [{str(each) for each in read_stamp(name).get("weights") or []} for name in (one, other)]
    return bool(weights[0] & weights[1])


def _told_apart(references: Sequence[str]) -> list[str]:
    """Short names, or whole ones where two are called alike."""
    short = [each.rpartition(":")[2] if is_function(each) else Path(each).stem for each in references]
    return [name if short.count(name) == 1 else whole for name, whole in zip(short, references, strict=True)]


def open_reward(judge: Judge, recipe: Recipe, machine: Machine) -> Reward:
    """Load what gives scores.

    Raises:
        UserError: when it cannot be had.
    """
    if judge.kind == FUNCTION_JUDGE:
        function = load_function(judge.reference)
        function.without_opinion = math.nan
        return function
    quantisation = {key: recipe[key] for key in QUANTISATION if key in recipe}
    with quietly():
        model = load_reward_model(
            judge.reference,
            machine,
            quantisation=quantisation or None,
            trust_remote_code=bool(recipe["trust_remote_code"]),
        )
        return ModelReward(model, name=judge.name)


def judge_answers(reward: Reward, answers: Sequence[Sequence[Answer]]) -> list[Judged]:
    """Have several models' answers judged at once, each once: padded otherwise, the same text would score otherwise.

    Args:
        reward: The judge.
        answers: Of each model.
    """
    every = {repr(answer): answer for each in answers for answer in each}
    places = {text: place for place, text in enumerate(every)}
    alone = _judge_together(reward, list(every.values()))
    order = [places[repr(answer)] for each in answers for answer in each]
    spread = None if alone.spread is None else alone.spread[order]
    judged = Judged(alone.raw[order], alone.rewards[order], spread)
    bounds = np.cumsum([len(each) for each in answers])[:-1]
    spreads = np.split(judged.spread, bounds) if judged.spread is not None else [None] * len(answers)
    parts = zip(np.split(judged.raw, bounds), np.split(judged.rewards, bounds), spreads, strict=True)
    return [Judged(raw, rewards, spread) for raw, rewards, spread in parts]


def _judge_together(reward: Reward, answers: Sequence[Answer]) -> Judged:
    """Have the processes of a launch judge a part each; a fault in one is told in all, else they would wait for it."""
    mine = own_part(range(len(answers)))
    part, fault = Judged(np.empty(0), np.empty(0)), None
    try:
        if mine:
            part = reward.judge([answers[index] for index in mine])
    except UserError as error:
        fault = error
    parts = gather_parts([(fault, mine, part)])
    for failed, _, _ in parts:
        if failed is not None:
            raise failed
    order = np.argsort(np.concatenate([indices for _, indices, _ in parts]))
    spreads = [each.spread for _, indices, each in parts if len(indices)]
    return Judged(
        np.concatenate([each.raw for *_, each in parts])[order],
        np.concatenate([each.rewards for *_, each in parts])[order],
        np.concatenate([spread for spread in spreads if spread is not None])[order] if spreads[0] is not None else None,
    )


# --- whose verdict is not a score -----------------------------------------------------------------------------------


class PairJudge(Protocol):
    """Compares two answers without giving scores: people, or a language model that is asked."""

    def compare(self, model: str, baseline: str) -> tuple[Floats, list[str]]:
        """How much better the model's answer was found, 1, 0 or −1, and to which prompt."""
        ...


class Verdicts:
    """What people said of answers to prompts, of any two models.

    Rows have the columns of public arenas: `prompt`, `model_a`, `model_b`, and as `winner` model_a, model_b or tie.

    Raises:
        DataError: when there is no such file, or a row is no verdict.
    """

    def __init__(self, file: str) -> None:
        path = Path(os.path.expanduser(file))
        if not path.is_file() or not is_data_file(path):
            raise DataError("no such file of verdicts", where=file, hint=f"one of {', '.join(READABLE)}")
        tally = Tally()
        self._rows: list[tuple[str, str, str, float]] = []
        for where, raw in read_rows(path):
            fault = str(raw) if isinstance(raw, BadLine) else _fault_of(raw)
            if fault or isinstance(raw, BadLine):
                tally.add_bad(where, fault)
            else:
                self._rows.append((str(raw["prompt"]), raw["model_a"], raw["model_b"], _margin_of(raw)))
        if tally.bad:
            raise tally.error()
        self.file = file

    def compare(self, model: str, baseline: str) -> tuple[Floats, list[str]]:
        """The verdicts on these two, whichever was shown first."""
        found = [
            (margin if (one, other) == (model, baseline) else -margin, prompt)
            for prompt, one, other, margin in self._rows
            if {one, other} == {model, baseline}
        ]
        return np.array([margin for margin, _ in found]), [prompt for _, prompt in found]

    def refuse_strangers(self, recipe: Recipe) -> None:
        """Refuse a file that says nothing of the models that are compared."""
        models = models_of(recipe)
        if not any({one, other} <= models.keys() for _, one, other, _ in self._rows):
            there = sorted({name for _, one, other, _ in self._rows for name in (one, other)})
            raise DataError(
                f"no verdict is on two of the models {', '.join(models)}",
                where=self.file,
                hint=f"it has {', '.join(there) or 'no rows'}; `models` names a model as the file does",
            )


def _fault_of(row: Mapping[str, Any]) -> str:
    lacking = [column for column in ("prompt", "model_a", "model_b", "winner") if row.get(column) in (None, "")]
    if lacking:
        return f"a verdict has `{lacking[0]}`"
    if not all(isinstance(row[column], str) for column in ("model_a", "model_b", "winner")):
        return "`model_a`, `model_b` and `winner` are texts"
    if row["model_a"] == row["model_b"]:
        return f"`{row['model_a']}` is compared with itself"
    if row["winner"] not in ("model_a", "model_b", *_TIES, row["model_a"], row["model_b"]):
        return f"`winner` is model_a, model_b or tie, not `{row['winner']}`"
    return ""


def _margin_of(row: Mapping[str, Any]) -> float:
    """1 where the first of the two won, −1 where the second did, 0 for a tie."""
    if row["winner"] in _TIES:
        return 0.0
    return 1.0 if row["winner"] in ("model_a", row["model_a"]) else -1.0

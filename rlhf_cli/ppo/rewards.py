"""What a response is worth: reward models and Python functions, weighted, normalised and clipped."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.inputs import source_files
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.reward_model import RewardModel, Scores, score_stored_answers
from rlhf_cli.rows import BadRow, kind_of
from rlhf_cli.writing import file_hash

_TAKEN = {"prompt", "prompts", "completion", "completions", "completion_ids", "trainer_state"}
RewardFunction = Callable[..., Sequence[float | None]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A response as rewards see it."""

    prompt: Any
    """Text, or messages."""
    text: str
    response_ids: list[int]
    finished: bool
    columns: Mapping[str, Any]
    """What else stands in the row of its prompt."""


@dataclass(frozen=True)
class Judged:
    """What one reward says of some answers."""

    raw: Floats
    """As it came, shape (answers,)."""
    rewards: Floats
    """On the scale that training uses, shape (answers,)."""
    spread: Floats | None = None
    """Standard deviation of an ensemble's members, shape (answers,)."""


class Reward(Protocol):
    """One source of rewards."""

    name: str

    def judge(self, answers: Sequence[Answer]) -> Judged:
        """What each answer is worth; those of this process alone."""
        ...


class FunctionReward:
    """A Python function, called as TRL's GRPO calls its reward functions (trl/trainer/grpo_trainer.py).

    That is `f(prompts=, completions=, completion_ids=, trainer_state=, **columns)`; it may be asynchronous.
    """

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        self._function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.state: Callable[[], Any] | None = None
        """Gives the trainer's state."""
        self.without_opinion = 0.0
        """What None counts as: nothing in a sum of rewards; nan where it must not be taken for a score."""

    def judge(self, answers: Sequence[Answer]) -> Judged:
        """Ask the function; None for an answer means that it has no opinion.

        Raises:
            RecipeError: when it raises, or gives anything but a number or None for each answer.
        """
        columns = {column for answer in answers for column in answer.columns} - _TAKEN
        arguments: dict[str, Any] = {
            "prompts": [answer.prompt for answer in answers],
            "completions": [_as_completion(answer) for answer in answers],
            "completion_ids": [answer.response_ids for answer in answers],
            "trainer_state": self.state() if self.state else None,
            **{column: [answer.columns.get(column) for answer in answers] for column in sorted(columns)},
        }
        try:
            values = self._function(**arguments)
            if inspect.iscoroutine(values):
                values = asyncio.run(values)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise RecipeError(
                f"the reward function `{self.name}` raised {type(error).__name__}: {error}",
                where=f"{frame.filename}:{frame.lineno}",
            ) from error
        raw = np.array([self._number(value) for value in self._checked(values, len(answers))])
        return Judged(raw, raw)

    def _checked(self, values: Any, wanted: int) -> Sequence[Any]:
        if hasattr(values, "tolist"):
            values = values.tolist()
        if not isinstance(values, (list, tuple)):
            raise RecipeError(f"the reward function `{self.name}` must return a list of numbers, got {kind_of(values)}")
        if len(values) != wanted:
            raise RecipeError(
                f"the reward function `{self.name}` returned {len(values)} values for {wanted} completions"
            )
        return values

    def _number(self, value: Any) -> float:
        if value is None:
            return self.without_opinion
        if hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RecipeError(f"the reward function `{self.name}` must return finite numbers, got {kind_of(value)}")
        return float(value)


def _as_completion(answer: Answer) -> str | list[dict[str, str]]:
    """As TRL gives it: text behind a text, an assistant's turn behind a conversation."""
    return answer.text if isinstance(answer.prompt, str) else [{"role": "assistant", "content": answer.text}]


@dataclass(frozen=True)
class Scale:
    """What becomes of the scores of a reward model."""

    normalize: bool = True
    """To mean 0 and standard deviation 1 on the answers stored with it."""
    ensemble: str = "mean"
    """How the scores of its members become one: mean, min or mean_minus_std."""
    std_coef: float = 1.0
    """What a standard deviation of the members costs with mean_minus_std."""


class ModelReward:
    """A reward model, or an ensemble of them, on the scale that its stamp says."""

    def __init__(self, model: RewardModel, scale: Scale = Scale(), *, name: str | None = None) -> None:
        self.model = model
        self.name = name or Path(model.name).name
        self._scale = scale
        self.stored = score_stored_answers(model) if scale.normalize else None
        """Scores of the answers stored with it, as it is loaded now."""
        self.mean, self.std = _scale_of(model, self.stored) if scale.normalize else (np.zeros(1), np.ones(1))
        """Of each member's scores on the stored answers; 0 and 1 where none are known, or asked for."""

    def judge(self, answers: Sequence[Answer]) -> Judged:
        """Render every answer with the reward model's own tokenizer and template, and read its score.

        Raises:
            DataError: when it cannot read an answer.
        """
        try:
            texts = [
                self.model.render(
                    answer.prompt, answer.text, beside=answer.columns, finished=answer.finished, cuts=True
                )
                for answer in answers
            ]
        except BadRow as error:
            raise DataError(f"the reward model `{self.name}` cannot read a response: {error}") from None
        scores = self.model.score(texts, shared=False).astype(np.float64)
        if not np.isfinite(scores).all():
            raise DataError(f"the reward model `{self.name}` gives a score that is no number")
        normal = (scores - self.mean) / self.std
        spread = normal.std(axis=1) if self.model.members > 1 else None
        return Judged(scores.mean(axis=1), self._combined(normal), spread)

    def _combined(self, scores: Floats) -> Floats:
        """Of an ensemble's scores one, shape (answers,) (Coste et al. 2024, arXiv:2310.02743)."""
        kind = self._scale.ensemble
        if kind == "min":
            return np.asarray(scores.min(axis=1))
        penalty = self._scale.std_coef * scores.std(axis=1) if kind == "mean_minus_std" else 0.0
        return np.asarray(scores.mean(axis=1) - penalty)


def _scale_of(model: RewardModel, scores: Scores | None) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each member's scores on the stored answers, as the model is loaded now.

    Each has its own, since a reward is learnt from comparisons, and so up to a constant.
    """
    if scores is None or len(scores) < 2:
        stamped = model.stamp.get("scores", {"mean": 0.0, "std": 1.0})
        return np.array([stamped["mean"]]), np.array([stamped["std"] or 1.0])
    std = scores.std(axis=0).astype(np.float64)
    return scores.mean(axis=0).astype(np.float64), np.where(std > 0, std, 1.0)


class Rewards:
    """All rewards of a run, added up."""

    def __init__(self, rewards: Sequence[Reward], config: PPOConfig) -> None:
        if not rewards:
            raise RecipeError("there is no reward to learn from", hint="set `reward_model_path` or `reward_funcs`")
        weights = config.reward_weights or [1.0] * len(rewards)
        if len(weights) != len(rewards):
            raise RecipeError(
                f"`reward_weights` has {len(weights)} numbers, and there are {len(rewards)} rewards",
                hint="one for each: models first, then functions",
            )
        self.rewards = list(rewards)
        self._weights = weights
        self._clip = config.reward_clip_range

    def judge(self, answers: Sequence[Answer]) -> tuple[Floats, list[dict[str, float]]]:
        """What each answer is worth, and what each reward said of it.

        Returns:
            Scores of shape (answers,), and of each answer the parts by name.
        """
        if not answers:
            return np.empty(0), []
        scores = np.zeros(len(answers))
        parts: list[dict[str, float]] = [{} for _ in answers]
        for reward, weight in zip(self.rewards, self._weights, strict=True):
            judged = reward.judge(answers)
            scores += weight * judged.rewards
            for index, part in enumerate(parts):
                part[reward.name] = float(judged.raw[index])
                if judged.spread is not None:
                    part[f"{reward.name}/spread"] = float(judged.spread[index])
        return (scores if self._clip is None else scores.clip(-self._clip, self._clip)), parts


def load_function(reference: str) -> FunctionReward:
    """A reward function by `file.py:function` or `package.module:function`.

    Raises:
        RecipeError: when there is no such file, module or function.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise RecipeError(
            f"`reward_funcs` names `{reference}`, which is no function", hint="write `file.py:function`"
        )  # fmt: skip
    module = _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        there = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise RecipeError(
            f"`{place}` has no function `{name}`", hint=f"it has {', '.join(there)}" if there else "it has none"
        )
    return FunctionReward(function, name)


_loaded: dict[str, tuple[dict[str, str], ModuleType]] = {}
"""Modules by their place, each with the hashes of the files that it came from."""
_read: dict[str, str] = {}
"""Of all of these files, as they were when they were imported last."""


def _load_module(place: str) -> ModuleType:
    """A module as its source is now: it may have been edited since it was imported, hours ago."""
    source = {str(file): file_hash(file) for file in source_files(place)}
    before = _loaded.get(place)
    if before is not None and before[0] == source:
        return before[1]
    # What it imports may have been imported for another function, as it was then.
    stale = set(before[0]) if before else {file for file in source if _read.get(file, source[file]) != source[file]}
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in stale:
            del sys.modules[name]
    importlib.invalidate_caches()
    module = _import(place)
    _loaded[place] = (source, module)
    _read.update(source)
    return module


def _import(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(os.path.expanduser(place))
        if not path.is_file():
            raise RecipeError(f"there is no file `{place}` of reward functions", hint="paths are relative to here")
        name = f"rlhf_rewards_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise RecipeError(f"`{place}` is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left beside the user's file
        try:
            spec.loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = writes
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"`{place}` cannot be imported: {type(error).__name__}: {error}") from error
    return module

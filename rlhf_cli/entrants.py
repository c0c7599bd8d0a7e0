"""Who takes part in a comparison, and on what: models, checkpoints, prompts, judges, and what each was trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_cli.answers import open_tokenizer
from rlhf_cli.data import load_held_out
from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.eval_recipe import models_of
from rlhf_cli.judging import Judge, find_judges, unasked_functions
from rlhf_cli.lineage import read_record, run_of, settings_of, trained_prompts, training_rewards
from rlhf_cli.machine import detect_machine
from rlhf_cli.model_source import look_into
from rlhf_cli.models import QUANTISATION
from rlhf_cli.plan import REWARD_MODEL, Machine
from rlhf_cli.ppo.rollout import Episode
from rlhf_cli.recipe import Recipe, as_list
from rlhf_cli.render import render_prompt
from rlhf_cli.rows import PROMPT, BadRow, Row, prompt_text
from rlhf_cli.run_dir import RunDir, step_of
from rlhf_cli.scores import Floats

_PIECE = 2000
"""Characters of a piece of the text that perplexity is measured on."""


@dataclass
class Entrant:
    """A model that takes part: one that is compared, or a checkpoint of the frontier; and what it answers."""

    name: str
    path: str
    step: int | None = None
    """Of a checkpoint."""
    tokenizer: PreTrainedTokenizerBase | None = None
    prompts: list[list[int]] = field(default_factory=list)
    """In its own tokens."""
    episodes: list[Episode] = field(default_factory=list)
    """Its answer to each prompt."""
    more: list[list[Episode]] = field(default_factory=list)
    """Further answers to every prompt, for best-of-n."""
    nats: Floats | None = None
    """Of each piece of the text that perplexity is measured on."""
    text_tokens: Floats | None = None
    has_reference: bool = False
    """Whether the reference has said how likely its answers are."""


@dataclass(frozen=True)
class Ground:
    """What is compared, and on what."""

    recipe: Recipe
    machine: Machine
    entrants: dict[str, Entrant]
    """By name, the checkpoints of the frontier behind the models."""
    baseline: str
    reference: str
    rows: list[Row]
    """A prompt each."""
    left_out: int
    judges: list[Judge]
    pieces: list[str]
    """Of the text that perplexity is measured on."""
    rewarded: frozenset[str]
    """Models that were trained against rewards, whether those are asked here or not."""
    trained_on: dict[str, int | None]
    """By model, how many of the prompts it was trained on; None where that is not known."""
    sources: list[dict[str, Any]]
    warnings: list[str]

    @property
    def models(self) -> dict[str, Entrant]:
        """Those that are compared, without the checkpoints of the frontier."""
        return {name: entrant for name, entrant in self.entrants.items() if entrant.step is None}

    @property
    def prompts(self) -> list[str]:
        """The text of each prompt."""
        return [prompt_text(row) for row in self.rows]


def survey_ground(recipe: Recipe) -> Ground:
    """Look into every model, choose the prompts that all can read, and look back at what each was trained on.

    Raises:
        UserError: when models or prompts cannot be used.
    """
    entrants = _find_entrants(recipe)
    read = load_held_out(recipe, PROMPT)
    rows = _choose(recipe, [example["row"] for example in read.train])
    kept = _encode_all(entrants, rows, recipe)
    models = {name: entrant.path for name, entrant in entrants.items() if entrant.step is None}
    baseline = recipe["baseline"] or next(iter(models))
    against = {name: _rewards_of(recipe, path) for name, path in models.items()}
    judges = find_judges(recipe, against)
    _refuse_unknown_judges(recipe, judges)
    trained_on, warnings = _look_back(models, kept)
    warnings += [*_doubt_judges(judges, against, compares=len(models) > 1), *_doubt_quantisation(recipe, models)]
    if len(kept) < len(rows):
        warnings.append(f"{len(rows) - len(kept)} prompts are left out: they are too long for a model")
    return Ground(
        recipe=recipe,
        machine=detect_machine(),
        entrants=entrants,
        baseline=baseline,
        reference=recipe["reference"] or baseline,
        rows=kept,
        left_out=len(rows) - len(kept),
        judges=judges,
        pieces=_read_pieces(recipe),
        rewarded=frozenset(name for name, rewards in against.items() if rewards),
        trained_on=trained_on,
        sources=read.sources,
        warnings=warnings,
    )


def _find_entrants(recipe: Recipe) -> dict[str, Entrant]:
    """The models, and the checkpoints of the frontier, each looked into before anything is loaded."""
    models = models_of(recipe)
    entrants = {name: Entrant(name, path) for name, path in models.items()}
    if recipe["frontier"] is not None:
        path = models[recipe["frontier"]]
        checkpoints = RunDir(Path(path)).complete_checkpoints()[::-1]
        if not checkpoints:
            raise RecipeError(
                f"`{path}` has no checkpoints to compare",
                where=recipe.where("frontier"),
                hint="train it with `save_steps`, and a `save_total_limit` that keeps them",
            )
        for checkpoint in checkpoints:
            name = f"{recipe['frontier']}/{checkpoint.name}"
            entrants[name] = Entrant(name, str(checkpoint), step_of(checkpoint))
    for entrant in entrants.values():
        if look_into(entrant.path, where=recipe.where("models")).holds == REWARD_MODEL:
            raise RecipeError(
                f"`{entrant.path}` is a reward model, which answers nothing",
                where=recipe.where("models"),
                hint="name it as `reward_model_path`, to judge",
            )
    return entrants


def _rewards_of(recipe: Recipe, path: str) -> list[str]:
    """What a model was trained against, as the recipe says or its run does."""
    if recipe["training_rewards"] is not None:
        return as_list(recipe["training_rewards"])
    return training_rewards(path)


def _refuse_unknown_judges(recipe: Recipe, judges: Sequence[Judge]) -> None:
    names = [judge.name for judge in judges]
    for gate in recipe["gates"]:
        if gate.get("judge", names[0] if names else None) not in (*names, None):
            raise RecipeError(
                f"a gate asks for the judge `{gate['judge']}`, and there is none of that name",
                where=recipe.where("gates"),
                hint=f"there are {', '.join(names) or 'none'}",
            )


def _doubt_judges(
    judges: Sequence[Judge], against: Mapping[str, Sequence[str]], *, compares: bool
) -> list[str]:  # fmt: skip
    warnings = [
        f"{', '.join(sorted(models))} was trained against `{function}`, which is not asked: it is code, and only what "
        "the recipe names is run; add it to `reward_funcs`"
        for function, models in unasked_functions(judges, against).items()
    ]
    if compares and judges and all(judge.trained for judge in judges):
        warnings.append("every judge was trained against: none is left that no model has learnt to please")
    return warnings


def _doubt_quantisation(recipe: Recipe, models: Mapping[str, str]) -> list[str]:
    """Say where some models are loaded in fewer bits than others, which is no difference of training."""
    if any(key in recipe for key in QUANTISATION):
        return []
    runs = {name: run_of(path) for name, path in models.items()}
    settings = {name: settings_of(run, read_record(run)) if run else {} for name, run in runs.items()}
    fewer = [name for name in models if any(settings[name].get(key) for key in ("load_in_4bit", "load_in_8bit"))]
    if not fewer or len(fewer) == len(models):
        return []
    return [
        f"{', '.join(fewer)} is quantised as in training and the others are not, which alone makes a difference: "
        "`load_in_4bit: true` loads all of them alike"
    ]


def _choose(recipe: Recipe, rows: list[Row]) -> list[Row]:
    most = recipe["max_prompts"]
    if most is None or most >= len(rows):
        return rows
    return [rows[index] for index in sorted(np.random.default_rng(recipe["seed"]).permutation(len(rows))[:most])]


def _encode_all(entrants: Mapping[str, Entrant], rows: list[Row], recipe: Recipe) -> list[Row]:
    """Put the prompts into every model's tokens, and give those that all of them have room for."""
    for entrant in entrants.values():
        _encode(entrant, rows, recipe)
    fits = [index for index in range(len(rows)) if all(entrant.prompts[index] for entrant in entrants.values())]
    if not fits:
        raise DataError(
            f"no prompt leaves room for {recipe['response_length']} tokens of response in every model",
            where=recipe.where("response_length"),
            hint="lower `response_length`",
        )
    for entrant in entrants.values():
        entrant.prompts = [entrant.prompts[index] for index in fits]
    return [rows[index] for index in fits]


def _encode(entrant: Entrant, rows: Sequence[Row], recipe: Recipe) -> None:
    """Prompts in a model's tokens; nothing for one that leaves no room for a response."""
    entrant.tokenizer, longest = open_tokenizer(entrant.path, trust_remote_code=bool(recipe["trust_remote_code"]))
    for row in rows:
        try:
            ids = render_prompt(entrant.tokenizer, row["prompt"], beside=row)
        except BadRow as error:
            raise DataError(f"`{entrant.name}` cannot read a prompt: {error}") from None
        entrant.prompts.append(ids if len(ids) + recipe["response_length"] <= longest else [])


def _look_back(models: Mapping[str, str], rows: Sequence[Row]) -> tuple[dict[str, int | None], list[str]]:
    """How many of the prompts each model was trained on, and what to say of it."""
    counts: dict[str, int | None] = {}
    warnings = []
    for name, path in models.items():
        known = trained_prompts(path)
        count = known.count(rows)
        is_told = run_of(path) is not None and not known.unknown
        counts[name] = count if count or is_told else None
        if count:
            warnings.append(
                f"{name}, or what it was made from or with, was trained on {count:,} of these {len(rows):,} prompts: "
                "what it answers to them is no evidence of what it answers to others"
            )
        elif known.unknown:
            warnings.append(f"whether {name} was trained on these prompts is not known of {', '.join(known.unknown)}")
    return counts, warnings


def _read_pieces(recipe: Recipe) -> list[str]:
    """The text that perplexity is measured on, cut at line ends into pieces of some 2,000 characters."""
    name = recipe["perplexity_file"]
    if name is None:
        return []
    try:
        text = Path(os.path.expanduser(name)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the text for perplexity cannot be read: {error}", where=name) from None
    pieces, held = [], ""
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), _PIECE):
            part = line[start : start + _PIECE]
            if held and len(held) + len(part) > _PIECE:
                pieces.append(held)
                held = ""
            held += part
    pieces = [piece for piece in [*pieces, held] if piece.strip()]
    if not pieces:
        raise DataError("the text for perplexity is empty", where=name)
    return pieces

"""A reward model on held-out pairs: its report card, and the stamp it gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from rlhf_cli.data import load_held_out
from rlhf_cli.errors import DataError
from rlhf_cli.lineage import own_prompts
from rlhf_cli.machine import (
    describe_environment,
    detect_machine,
    free_memory,
    is_first_process,
    quietly,
    wait_for_all,
)
from rlhf_cli.models import QUANTISATION, as_mapping
from rlhf_cli.prepare import Prepared
from rlhf_cli.probes import EDITS, JUNK, replace_text, say_twice, text_of_answer, without_prompt
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import hide_in, is_secret
from rlhf_cli.report_card import ReportCard, Scored, make_report_card
from rlhf_cli.reward_model import RewardModel, identify, load_reward_model, measure_scale, what_is_read
from rlhf_cli.rows import PREFERENCE, BadRow, Row, kept_beside, prompt_text
from rlhf_cli.scores import Floats
from rlhf_cli.terminal import say, say_error
from rlhf_cli.writing import write_json, write_text

PROBED = 100
"""Pairs that junk and edits are tried on."""
STORED = 128
"""Answers that are kept, so that the scale of the scores can be measured again elsewhere."""

Tokens = tuple[int, ...]


def judge_reward_model(recipe: Recipe) -> tuple[ReportCard, dict[str, Any]]:
    """Judge the reward model of an evaluation's recipe.

    Returns:
        Its report card, and what was judged, on what, as JSON.

    Raises:
        UserError: when model or data cannot be used.
    """
    machine = detect_machine()
    rows = load_held_out(recipe, PREFERENCE)
    for source in rows.sources:
        say(f"{source['name']}: {source['rows']:,} rows as {source['layout']}")
    quantisation = {key: recipe[key] for key in QUANTISATION if key in recipe}
    say(f"loading {recipe['reward_model_path']}")
    with quietly():
        model = load_reward_model(
            str(recipe["reward_model_path"]), machine, quantisation=quantisation or None,
            trust_remote_code=bool(recipe["trust_remote_code"]),
        )  # fmt: skip
        known = _count_known(model.name, rows.train)
        card = judge(model, rows.train, recipe["gates"], seed=recipe["seed"])
        scale = measure_scale(model) if quantisation else None
    if scale is not None:
        say(scale.as_text())
    told = {"reward_model": model.name, "data": rows.sources, "trained_prompts": known, "report": card.as_json()}
    return card, told


def _count_known(name: str, rows: Dataset) -> int | None:
    """How many of these pairs have a prompt that the model was trained on, which is said; None where nobody knows."""
    known = own_prompts(name)
    if known is None:
        return None
    count = known.count(example["row"] for example in rows)
    if count:
        say_error(
            f"warning: {count:,} of these {len(rows):,} pairs have a prompt that `{name}` was trained on: how it "
            "judges them is no evidence of how it judges others\n"
            "hint: `test_split_size`, `split_by` and `seed` as in its training leave it the pairs that it has not seen"
        )
    return count


def grade(prepared: Prepared) -> ReportCard | None:
    """Load the reward model that a run has saved as anybody would, judge it on what was held out, and stamp it.

    Returns:
        Its report card; None where nothing was held out, so that nothing is known.
    """
    free_memory()  # what trained is not needed any more, and may fill the device
    recipe, material = prepared.recipe, prepared.material
    wait_for_all()
    trusts = bool(recipe["trust_remote_code"])
    making = _making(prepared)
    model = load_reward_model(str(prepared.run.path), prepared.plan.machine, making=making, trust_remote_code=trusts)
    card = None
    if material.test is not None and material.rows.test is not None:
        rows = material.rows.test.select(material.test.kept)
        card = judge(model, rows, recipe["gates"], seed=recipe["seed"])
    else:
        rows = material.rows.train.select(material.train.kept)
    stored = _some(rows, STORED // 2, seed=recipe["seed"])
    readable, _ = _rendered(model, stored)
    answers = [
        ({"prompt": row["prompt"], "response": row[side], **kept_beside(row)}, tokens)
        for row, _, *sides in readable
        for side, tokens in zip(("chosen", "rejected"), sides, strict=True)
    ]
    scores = model.score([tokens for _, tokens in answers]).mean(axis=1)
    if is_first_process():
        lines = [
            json.dumps({**answer, "score": float(score)}, ensure_ascii=False)
            for (answer, _), score in zip(answers, scores, strict=True)
        ]
        write_text(prepared.run.stored_answers, "\n".join(lines) + "\n")
        _write_stamp(prepared, model, card, scores)
    wait_for_all()
    return card


def _making(prepared: Prepared) -> dict[str, Any]:
    """The part of the stamp that says how to load and to read."""
    settings = prepared.plan.setting
    quantisation = {key: settings(key) for key in QUANTISATION if settings(key) is not None}
    return {
        "format": 1,
        "reads": what_is_read(prepared.material.rows.train),
        "read_at": "the last token that is not padding",
        "dtype": str(settings("dtype")),
        "compute": "bfloat16" if settings("bf16") else "float16" if settings("fp16") else "float32",
        "quantisation": quantisation
        if any(quantisation.get(key) for key in ("load_in_4bit", "load_in_8bit"))
        else None,
        "revision": prepared.recipe["model_revision"],
        "model_init_kwargs": {
            key: value for key, value in as_mapping(prepared.recipe["model_init_kwargs"]).items() if not is_secret(key)
        },
        "max_length": prepared.recipe["max_length"],
    }


def _write_stamp(prepared: Prepared, model: RewardModel, card: ReportCard | None, scores: Floats) -> None:
    source = prepared.material.source
    stamp = {
        **model.stamp,
        **identify(model.name, model.tokenizer, revision=str(model.stamp["revision"])),
        "trained_from": source.name,
        "members": model.members,
        "versions": describe_environment(),
        "scores": {
            "mean": float(scores.mean()),
            "std": float(scores.std()),
            "n": len(scores),
            "of": "held-out answers" if card else "answers it was trained on",
            "file": str(prepared.run.stored_answers.relative_to(prepared.run.path)),
        },
        "accuracy": card.numbers["accuracy"].as_json() if card else None,
        "report": card.as_json() if card else None,
    }
    write_json(prepared.run.reward_card, hide_in(stamp, prepared.run.secrets))


# --- judging --------------------------------------------------------------------------------------------------------


def judge(model: RewardModel, rows: Dataset, gates: Sequence[Mapping[str, Any]], *, seed: int) -> ReportCard:
    """Score held-out pairs, and what a reward model should and should not fall for, and make the report card.

    Args:
        model: The reward model.
        rows: Preference rows, with the columns `row` and `where`.
        gates: Of the recipe.
        seed: Of the pairs that are probed, and of the resampling.

    Raises:
        DataError: when no pair can be judged.
    """
    pairs, left_out = _rendered(model, rows)
    if not pairs:
        raise DataError("no pair can be judged: every one is too long for the model, or its template refuses it")
    probed = sorted(np.random.default_rng(seed).permutation(len(pairs))[:PROBED].tolist())
    tried = [pairs[index][0] for index in probed]
    wanted: dict[str, list[Tokens | None]] = {
        "chosen": [chosen for _, _, chosen, _ in pairs],
        "rejected": [rejected for _, _, _, rejected in pairs],
        **_probe_texts(model, tried),
    }
    scores = _score_all(model, wanted)
    means = {name: values.mean(axis=1) for name, values in scores.items()}
    characters = [[len(text_of_answer(row[side])) for side in ("chosen", "rejected")] for row, *_ in pairs]
    return make_report_card(
        Scored(
            chosen=scores["chosen"],
            rejected=scores["rejected"],
            characters=np.array(characters, dtype=np.float64),
            prompts=[prompt_text(row) for row, *_ in pairs],
            sources=_short_names([where.rpartition(":")[0] for _, where, *_ in pairs]),
            probed=probed,
            promptless=np.stack([means["promptless chosen"], means["promptless rejected"]], axis=1),
            twice=means["twice"],
            junk={kind: means[f"junk {kind}"] for kind in JUNK},
            edited={name: np.stack([means[f"{name} chosen"], means[f"{name} rejected"]], axis=1) for name in EDITS},
            left_out=left_out,
        ),
        gates,
        seed=seed,
    )


def _rendered(model: RewardModel, rows: Dataset) -> tuple[list[tuple[Row, str, Tokens, Tokens]], int]:
    """Each pair with the tokens of both sides, and how many cannot be read."""
    pairs: list[tuple[Row, str, Tokens, Tokens]] = []
    for example in rows:
        row = example["row"]
        try:
            chosen, rejected = (
                tuple(model.render(row["prompt"], row[side], beside=row)) for side in ("chosen", "rejected")
            )
        except BadRow:
            continue
        pairs.append((row, example["where"], chosen, rejected))
    return pairs, len(rows) - len(pairs)


def _probe_texts(model: RewardModel, rows: Sequence[Row]) -> dict[str, list[Tokens | None]]:
    """By name, the tokens of every probe of each row; None where it cannot be read."""

    def render(row: Row, answer: Any, *, prompt: Any = None) -> Tokens | None:
        try:
            return tuple(model.render(row["prompt"] if prompt is None else prompt, answer, beside=row))
        except BadRow:
            return None

    texts = {"twice": [render(row, say_twice(row["chosen"])) for row in rows]}
    for side in ("chosen", "rejected"):
        texts[f"promptless {side}"] = [render(row, row[side], prompt=without_prompt(row["prompt"])) for row in rows]
        for name, edit in EDITS.items():
            texts[f"{name} {side}"] = [
                render(row, replace_text(row[side], edit(text_of_answer(row[side])))) for row in rows
            ]
    for kind, make in JUNK.items():
        made = [(row, make(row, text_of_answer(row["chosen"]))) for row in rows]
        texts[f"junk {kind}"] = [
            render(row, replace_text(row["chosen"], text)) if text != text_of_answer(row["chosen"]) else None
            for row, text in made
        ]
    return texts


def _score_all(model: RewardModel, wanted: Mapping[str, Sequence[Tokens | None]]) -> dict[str, Floats]:
    """Score every text once, however often it is wanted; what cannot be read scores nan."""
    texts = sorted({text for each in wanted.values() for text in each if text is not None})
    say(f"scoring {len(texts):,} texts for the report card")
    number = {text: index for index, text in enumerate(texts)}
    scores = np.concatenate([model.score(texts), np.full((1, model.members), np.nan)]).astype(np.float64)
    return {name: scores[[number[text] if text is not None else -1 for text in each]] for name, each in wanted.items()}


def _short_names(files: list[str]) -> list[str]:
    """File names, with their folders where names alone do not tell them apart."""
    alone = {file: Path(file).name for file in set(files)}
    return [alone[file] for file in files] if len(set(alone.values())) == len(alone) else files


def _some(rows: Dataset, count: int, *, seed: int) -> Dataset:
    return rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:count].tolist()))

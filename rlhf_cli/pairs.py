"""Preference rows into pairs of token sequences."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from datasets import Dataset, Features, List, Value

from rlhf_cli.data import Encoded, refuse_faults
from rlhf_cli.errors import DataError
from rlhf_cli.plan import Counts
from rlhf_cli.recipe import Recipe
from rlhf_cli.rows import BadRow, Row

Pair = dict[str, Any]
"""Tokens of one pair: `chosen_ids` and `rejected_ids`, and either may follow `prompt_ids`."""
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_FEATURES = Features({
    **{column: List(Value("int32")) for column in _IDS}, "margin": Value("float64"), "fault": Value("string"),
    "where": Value("string"),
})  # fmt: skip


def encode_pairs(rows: Dataset, encode: Callable[[Row], Pair], recipe: Recipe, *, cuts: bool) -> Encoded:
    """Turn preference rows into tokens, without those that cannot be compared within `max_length`.

    Args:
        rows: With the columns `row` and `where`.
        encode: Gives the tokens of one row.
        recipe: For `max_length`, `truncation_mode` where it has one, `dataset_num_proc` and `skip_bad_rows`.
        cuts: Whether what is longer is truncated; where not, the pair is left out, as TRL's RewardTrainer does.

    Raises:
        DataError: when the chat template refuses rows, or no pair can be compared.
    """

    def encode_one(example: dict[str, Any]) -> dict[str, Any]:
        row = example["row"]
        try:
            return {"prompt_ids": [], "margin": row.get("margin"), "fault": "", **encode(row)}
        except BadRow as error:
            return {**{column: [] for column in _IDS}, "margin": None, "fault": str(error)}

    mapped = rows.map(
        encode_one,
        remove_columns=["row"],
        num_proc=recipe["dataset_num_proc"],
        new_fingerprint=secrets.token_hex(8),  # else the whole tokenizer is pickled for one
        features=_FEATURES,
    )
    bad = refuse_faults(mapped, recipe)
    sizes = [_sizes(example) for example in mapped.select_columns(list(_IDS))]
    kept = [index for index, size in enumerate(sizes) if _is_comparable(size, recipe, cuts=cuts)]
    if not kept:
        raise DataError(
            f"no pair can be compared within max_length {recipe['max_length']}",
            where=recipe.where("max_length"),
            hint="raise `max_length`",
        )
    used = mapped.select(kept) if len(kept) < len(mapped) else mapped
    if all(chosen == rejected for chosen, rejected in zip(used["chosen_ids"], used["rejected_ids"], strict=True)):
        raise DataError(
            "the two answers are the same in every pair, so there is nothing to learn", where=_named(recipe)
        )
    sizes = [sizes[index] for index in kept]
    counts = _count(sizes, recipe, read=len(rows), bad=bad, cuts=cuts)
    return Encoded(_columns(used, has_prompts=cuts), counts, [prompt + max(sides) for prompt, *sides in sizes], kept)


def _sizes(example: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens of the prompt, where it stands apart, and of either side."""
    return len(example["prompt_ids"]), len(example["chosen_ids"]), len(example["rejected_ids"])


def _is_comparable(size: tuple[int, int, int], recipe: Recipe, *, cuts: bool) -> bool:
    prompt, chosen, rejected = size
    if not chosen or not rejected:
        return False
    limit = recipe["max_length"]
    if limit is None:
        return True
    if not cuts:
        return max(chosen, rejected) <= int(limit)
    return bool(recipe["truncation_mode"] == "keep_end" or prompt < limit)


def _columns(used: Dataset, *, has_prompts: bool) -> Dataset:
    """What the trainer reads: prompts where they stand apart, margins where a row has one."""
    margins = used["margin"]
    if any(margin is not None for margin in margins):
        filled = [0.0 if margin is None else margin for margin in margins]
        used = used.remove_columns("margin").add_column("margin", filled, new_fingerprint=secrets.token_hex(8))
    else:
        used = used.remove_columns("margin")
    return used.remove_columns(["fault", "where", *([] if has_prompts else ["prompt_ids"])])


def _count(sizes: list[tuple[int, int, int]], recipe: Recipe, *, read: int, bad: int, cuts: bool) -> Counts:
    lengths = [prompt + side for prompt, *sides in sizes for side in sides]
    limit = recipe["max_length"] or max(lengths)
    answers = sum(chosen + rejected for _, chosen, rejected in sizes)
    if cuts and recipe["truncation_mode"] == "keep_start":
        answers -= sum(max(0, length - limit) for length in lengths)
    return Counts(
        read=read,
        bad=bad,
        masked=read - bad - len(sizes),
        used=len(sizes),
        truncated=sum(prompt + max(sides) > limit for prompt, *sides in sizes),
        examples=len(sizes),
        tokens=sum(min(length, limit) for length in lengths),
        loss_tokens=answers if cuts else None,
        longest=min(max(lengths), limit),
        sequences=2,
    )


def _named(recipe: Recipe) -> str:
    return recipe.where("datasets" if recipe["datasets"] else "dataset_name")

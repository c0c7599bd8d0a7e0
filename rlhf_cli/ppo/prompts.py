"""Rows into prompts, as the policy reads them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Json, List, Value
from transformers import AutoConfig, PreTrainedTokenizerBase

from rlhf_cli.data import Encoded, refuse_faults
from rlhf_cli.errors import DataError
from rlhf_cli.model_source import look_into
from rlhf_cli.models import explained_model
from rlhf_cli.plan import Counts
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.model import PolicyWithValue
from rlhf_cli.recipe import Recipe, as_list
from rlhf_cli.render import ensure_chat_template, render_prompt
from rlhf_cli.reward_model import TEXTS, read_stamp
from rlhf_cli.rows import KEPT_BESIDE, BadRow, kept_beside

PROMPT_FEATURES = Features({"prompt_ids": List(Value("int32")), "prompt": Json(), "columns": Json()})


def encode_prompts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: PPOConfig, model: PolicyWithValue
) -> Dataset:  # fmt: skip
    """Turn a dataset with a column `prompt` into tokens; one that has `prompt_ids` is taken as it is.

    Raises:
        DataError: when there is no such column, a prompt is refused, or none leaves room for a response.
    """
    if "prompt_ids" in rows.column_names:
        return rows
    if "prompt" not in rows.column_names:
        raise DataError("the dataset has no column `prompt`", hint=f"it has {', '.join(rows.column_names)}")
    ensure_chat_template(tokenizer)

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            ids = render_prompt(tokenizer, row["prompt"], beside=row)
        except BadRow as error:
            raise DataError(f"a prompt cannot be used: {error}") from None
        columns = {**{name: value for name, value in row.items() if name != "prompt"}, **kept_beside(row)}
        return {"prompt_ids": ids, "prompt": row["prompt"], "columns": columns}

    encoded = rows.map(
        encode, remove_columns=rows.column_names, new_fingerprint=secrets.token_hex(8), features=PROMPT_FEATURES
    )
    limit = room_for_prompt(config.max_length, config.response_length, model.config)
    fits = [index for index, ids in enumerate(encoded["prompt_ids"]) if 0 < len(ids) <= limit]
    if not fits:
        raise DataError(f"no prompt leaves room for {config.response_length} tokens of response")
    return encoded.select(fits)


def encode_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encoded:
    """Turn checked rows into prompts, without those that leave no room for a response.

    Args:
        rows: With the columns `row` and `where`.
        tokenizer: Of the policy.
        recipe: For `max_length`, `response_length` and `skip_bad_rows`.

    Raises:
        DataError: when the chat template refuses rows, none leaves room, or a reward model cannot read them.
    """
    _refuse_unread(rows, recipe)

    def encode(example: dict[str, Any]) -> dict[str, Any]:
        row = example["row"]
        columns = {**(row.get("columns") or {}), **{key: row[key] for key in KEPT_BESIDE if key in row}}
        found = {"prompt": row["prompt"], "columns": columns, "prompt_ids": [], "fault": ""}
        try:
            return {**found, "prompt_ids": render_prompt(tokenizer, row["prompt"], beside=row)}
        except BadRow as error:
            return {**found, "fault": str(error)}

    mapped = rows.map(
        encode,
        remove_columns=["row"],
        num_proc=recipe["dataset_num_proc"],
        new_fingerprint=secrets.token_hex(8),  # else the whole tokenizer is pickled for one
        features=Features({**PROMPT_FEATURES, "fault": Value("string"), "where": Value("string")}),
    )
    bad = refuse_faults(mapped, recipe)
    response = recipe["response_length"]
    room = room_for_prompt(recipe["max_length"], response, _config_of(recipe))
    lengths = [len(ids) for ids in mapped["prompt_ids"]]
    kept = [index for index, length in enumerate(lengths) if 0 < length <= room]
    if not kept:
        raise DataError(
            f"no prompt leaves room for {response} tokens of response: {max(room, 0)} are left for the prompt",
            where=recipe.where("response_length"),
            hint="lower `response_length`, or shorten the prompts",
        )
    lengths = [lengths[index] for index in kept]
    counts = Counts(
        read=len(rows),
        bad=bad,
        masked=len(rows) - bad - len(kept),
        used=len(kept),
        truncated=0,
        examples=len(kept),
        tokens=sum(lengths),
        loss_tokens=0,
        longest=max(lengths) + response,
    )
    return Encoded(mapped.select(kept).select_columns(list(PROMPT_FEATURES)), counts, lengths, kept)


def _refuse_unread(rows: Dataset, recipe: Recipe) -> None:
    """A reward model of plain texts cannot read what is said in turns."""
    for name in as_list(recipe["reward_model_path"]):
        if read_stamp(name).get("reads") != TEXTS:
            continue
        for example in rows:
            if not isinstance(example["row"]["prompt"], str):
                raise DataError(
                    f"the reward model `{name}` was trained on plain texts, and this prompt is a conversation",
                    where=example["where"],
                    hint="lay the prompts out as `text`, or train the reward model on conversations",
                )


def _config_of(recipe: Recipe) -> Any:
    source = look_into(str(recipe["model_name_or_path"]))
    with explained_model(recipe, f"the configuration of `{source.name}`", source.base):
        return AutoConfig.from_pretrained(
            source.base, revision=recipe["model_revision"], trust_remote_code=recipe["trust_remote_code"]
        )


def room_for_prompt(max_length: int | None, response_length: int, config: Any) -> int:
    """Tokens a prompt may have, by the recipe and by what the model can read."""
    reads = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (max_length, reads) if limit is not None]
    return min(limits, default=2**31) - response_length

"""Answers from a model, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.files import BadLine, is_data_file, read_rows
from rlhf_cli.machine import detect_machine, quietly
from rlhf_cli.models import load_for_generation
from rlhf_cli.run_dir import RunDir

Prompt = str | list[dict[str, Any]]


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts from a text file, one a line, or from the rows of a data file.

    Raises:
        DataError: when a row has no prompt.
    """
    if not path.is_file():
        raise DataError("no such file of prompts", where=str(path))
    if not is_data_file(path):
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = []
    for where, row in read_rows(path):
        if isinstance(row, BadLine):
            raise DataError(str(row), where=where)
        prompts.append(_prompt_of(row, where))
    return prompts


def _prompt_of(row: Any, where: str) -> Prompt:
    if "prompt" in row:
        return row["prompt"]  # type: ignore[no-any-return]
    if "instruction" in row:
        return "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    if row.get("messages"):
        messages = list(row["messages"])
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return messages
    raise DataError("the row has no prompt, instruction or messages", where=where)


@dataclass(frozen=True)
class Sampling:
    """How to answer."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token."""
    batch_size: int
    """Prompts at a time."""
    seed: int


def answer_prompts(
    name: str, prompts: Sequence[Prompt], sampling: Sampling, *, baseline: bool
) -> Iterator[dict[str, str]]:
    """Ask a run, and with `baseline` the model it was trained from.

    Args:
        name: A run folder, a model folder or a Hub id.
        prompts: Texts, which become user turns, or conversations.
        sampling: How to answer.
        baseline: Ask the model the run started from as well.

    Yields:
        `prompt`, `baseline` if asked for, and `answer`.

    Raises:
        UserError: when there is no model to ask.
    """
    names = {"answer": name}
    if baseline:
        start = RunDir(Path(name)).read_run().get("model", {}).get("name")
        if start is None:
            raise RecipeError(f"`{name}` does not say what it was trained from", hint="--baseline needs a run folder")
        names = {"baseline": start, **names}
    machine = detect_machine()
    dtype = "bfloat16" if machine.bf16 and machine.device != "cpu" else "float32"
    columns = {}
    for column, model_name in names.items():
        with quietly():
            model, tokenizer = load_for_generation(model_name, dtype=dtype, device=machine.device)
            set_seed(sampling.seed)
            columns[column] = _answer(model, tokenizer, prompts, sampling)
        del model
    for index, prompt in enumerate(prompts):
        shown = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        yield {"prompt": shown, **{column: answers[index] for column, answers in columns.items()}}


def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], sampling: Sampling
) -> list[str]:
    tokenizer.padding_side = "left"
    settings = {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}
    if sampling.temperature > 0:
        settings |= {"do_sample": True, "temperature": sampling.temperature}
    answers: list[str] = []
    for start in range(0, len(prompts), sampling.batch_size):
        batch = prompts[start : start + sampling.batch_size]
        chats = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in batch]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.no_grad():
            output = model.generate(**inputs, **settings)
        prompt_tokens = inputs["input_ids"].shape[1]
        answers += tokenizer.batch_decode(output[:, prompt_tokens:], skip_special_tokens=True)
    return answers

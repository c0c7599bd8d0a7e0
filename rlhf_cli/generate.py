"""Answers from a model, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.files import is_data_file, read_rows
from rlhf_cli.machine import detect_machine, quietly
from rlhf_cli.models import load_for_generation
from rlhf_cli.render import render_prompt
from rlhf_cli.rows import PROMPT, as_user
from rlhf_cli.run_dir import RunDir
from rlhf_cli.sources import Tally, read_raws

Prompt = str | list[dict[str, Any]]
"""Plain text, which is continued, or a conversation, which is answered."""


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts from a text file, one a line, or from the rows of a data file, whatever their layout.

    Raises:
        DataError: when a row has no prompt; it names every one.
    """
    if not path.is_file():
        raise DataError("no such file of prompts", where=str(path))
    if not is_data_file(path):
        return [[as_user(line)] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    tally = Tally()
    checked = list(read_raws(str(path), read_rows(path), tally, kind=PROMPT))
    if tally.bad:
        raise tally.error()
    return [each.row["prompt"] for each in checked]


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
        prompts: Texts to continue, or conversations to answer.
        sampling: How to answer.
        baseline: Ask the model the run started from as well.

    Yields:
        `prompt`, `baseline` if asked for, and `answer`.

    Raises:
        UserError: when there is no model to ask.
    """
    record = RunDir(Path(name)).read_run()
    names = {"answer": name}
    if baseline:
        start = record.get("model", {}).get("name")
        if start is None:
            raise RecipeError(f"`{name}` does not say what it was trained from", hint="--baseline needs a run folder")
        names = {"baseline": start, **names}
    settings = record.get("plan", {}).get("settings", {})
    trusted = {key: settings[key] for key in ("model_revision", "trust_remote_code") if settings.get(key)}
    machine = detect_machine()
    dtype = "bfloat16" if machine.bf16 and machine.device != "cpu" else "float32"
    columns = {}
    for column, model_name in names.items():
        with quietly():
            model, tokenizer = load_for_generation(model_name, dtype=dtype, device=machine.device, **trusted)
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
        ids = {"input_ids": [render_prompt(tokenizer, prompt) for prompt in batch]}
        inputs = tokenizer.pad(ids, return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model.generate(**inputs, **settings)
        prompt_tokens = inputs["input_ids"].shape[1]
        answers += tokenizer.batch_decode(output[:, prompt_tokens:], skip_special_tokens=True)
    return answers

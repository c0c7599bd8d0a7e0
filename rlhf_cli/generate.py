"""Answers from a model, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.answers import Asking, Respondent
from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.faults import explained_exhaustion
from rlhf_cli.files import is_data_file, read_rows
from rlhf_cli.lineage import read_record, run_of, settings_of
from rlhf_cli.machine import detect_machine
from rlhf_cli.render import render_prompt
from rlhf_cli.rows import PROMPT, BadRow, as_user
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
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"the file is not UTF-8: {error}", where=str(path)) from None
        return [[as_user(line)] for line in lines if line.strip()]
    tally = Tally()
    checked = list(read_raws(str(path), read_rows(path), tally, kind=PROMPT))
    if tally.bad:
        raise tally.error()
    return [each.row["prompt"] for each in checked]


def answer_prompts(name: str, prompts: Sequence[Prompt], asking: Asking, *, baseline: bool) -> Iterator[dict[str, str]]:
    """Ask a run, and with `baseline` the model it was trained from.

    Args:
        name: A run folder, a model folder or a Hub id.
        prompts: Texts to continue, or conversations to answer.
        asking: How to answer.
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
    run = run_of(name)
    trusts = bool(run and settings_of(run, read_record(run)).get("trust_remote_code"))
    columns = {}
    for column, model in names.items():
        columns[column] = _answer(Respondent(model, machine, trust_remote_code=trusts), prompts, asking)
    for index, prompt in enumerate(prompts):
        shown = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        yield {"prompt": shown, **{column: answers[index] for column, answers in columns.items()}}


@explained_exhaustion("`--batch-size 1` answers one prompt at a time")
def _answer(respondent: Respondent, prompts: Sequence[Prompt], asking: Asking) -> list[str]:
    try:
        ids = [render_prompt(respondent.tokenizer, prompt) for prompt in prompts]
    except BadRow as error:
        raise DataError(f"a prompt cannot be asked: {error}") from None
    episodes = respondent.answer(ids, range(len(ids)), asking, scored=False)
    return [episode.text for episode in episodes]

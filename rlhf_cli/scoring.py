"""Scores for the prompts and responses of a file, row by row as they come."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.errors import DataError, EnvironmentFault
from rlhf_cli.faults import explained_exhaustion
from rlhf_cli.files import BadLine, Raw, read_lines, read_rows
from rlhf_cli.layouts import PROMPT_RESPONSE, Layout, find_layout, read_row
from rlhf_cli.machine import detect_machine, quietly
from rlhf_cli.reward_model import RewardModel, Scores, load_reward_model
from rlhf_cli.rows import DEMONSTRATION, PREFERENCE, BadRow, Row
from rlhf_cli.sources import SAMPLE, Tally
from rlhf_cli.terminal import say_error

WINDOW = 256
"""Rows that are read, sorted by length, and scored at a time."""


@explained_exhaustion("`rlhf doctor` shows what is free here")
def score_rows(name: str, file: str, out: Path | None, *, skip_bad_rows: bool, trust_remote_code: bool = False) -> None:
    """Load a reward model, and write every row of a file with its score, as JSON lines.

    Args:
        name: Of the reward model.
        file: A data file; `-` is stdin.
        out: Where to; stdout by default.
        skip_bad_rows: Whether rows that cannot be scored are no error.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        DataError: at the end, when rows could not be scored.
        UserError: when model or file cannot be used.
    """
    tally = Tally()
    with quietly():
        model = load_reward_model(name, detect_machine(), trust_remote_code=trust_remote_code)
        if not model.stamp:
            say_error(
                f"warning: `{name}` has no reward_card.json: nothing says on what, and how, it was trained to read"
            )
        try:
            with out.open("w", encoding="utf-8") if out else contextlib.nullcontext(sys.stdout) as sink:
                for row in score_file(model, file, tally):
                    sink.write(_as_line(row))
                    sink.flush()
        except OSError as error:
            raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(out or "stdout")) from None
    if tally.bad and not skip_bad_rows:
        raise _unscored(tally)


def _as_line(row: Mapping[str, Any]) -> str:
    """JSON, whatever a row holds: half a character as its escape, and what JSON has no word for as text."""
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode() + "\n"


def score_file(model: RewardModel, name: str, tally: Tally) -> Iterator[dict[str, Any]]:
    """Score every row of a file, in its order.

    Args:
        model: The reward model.
        name: A data file of any layout with prompts and responses, or with chosen and rejected answers; `-` is stdin.
        tally: Gets the rows that cannot be scored.

    Yields:
        Each row as it was read, with `score`, or `chosen_score` and `rejected_score`; of an ensemble, each with its
        `_std` over the members. A row that cannot be scored has `score` null and an `error`.

    Raises:
        DataError: when the file cannot be read, or no layout fits.
    """
    raws = _open(name)
    sample = list(islice(raws, SAMPLE))
    rows = [raw for _, raw in sample if not isinstance(raw, BadLine)]
    layout, kind = _tell(rows, name) if rows else (None, DEMONSTRATION)
    if layout is not None and layout.gather is not None:
        raise DataError(f"rows of {layout.name} are spread over several lines, and are not scored singly", where=name)
    waiting = chain(sample, raws)
    while window := list(islice(waiting, WINDOW)):
        yield from _score_window(model, window, layout, kind, tally)


def _open(name: str) -> Iterator[Raw]:
    if name == "-":
        return read_lines(Path("stdin"), b"", sys.stdin.buffer)
    path = Path(name)
    if not path.is_file():
        raise DataError("no such file", where=name)
    return read_rows(path)


def _tell(rows: list[Mapping[str, Any]], name: str) -> tuple[Layout, str]:
    """The layout, and whether rows hold two answers or one."""
    try:
        return find_layout(rows, PREFERENCE, where=name), PREFERENCE
    except DataError:
        return find_layout(rows, DEMONSTRATION, where=name), DEMONSTRATION


def _score_window(
    model: RewardModel, window: list[Raw], layout: Layout | None, kind: str, tally: Tally
) -> Iterator[dict[str, Any]]:
    texts: list[list[int]] = []
    shown: list[tuple[Mapping[str, Any], dict[str, int], str | None]] = []
    for where, raw in window:
        wanted: dict[str, int] = {}
        fault = None
        try:
            for column, tokens in _texts_of(model, raw, layout, kind).items():
                wanted[column] = len(texts)
                texts.append(tokens)
        except BadRow as error:
            fault = str(error)
            tally.add_bad(where, fault)
        shown.append(({} if isinstance(raw, BadLine) else raw, {} if fault else wanted, fault))
    scores = model.score(texts)
    for raw, wanted, fault in shown:
        if fault is not None:
            yield {**raw, "score": None, "error": fault}
        elif not np.isfinite(scores[list(wanted.values())]).all():
            tally.add_bad("score", "the score is not a number")
            yield {**raw, "score": None, "error": "the score is not a number"}
        else:
            yield {**raw, **_columns(scores, wanted)}


def _texts_of(
    model: RewardModel, raw: Mapping[str, Any] | BadLine, layout: Layout | None, kind: str
) -> dict[str, list[int]]:
    """The tokens to score, by the column that their score goes to."""
    if isinstance(raw, BadLine) or layout is None:
        raise BadRow(str(raw))
    rows = read_row(layout, raw, kind)
    if len(rows) != 1:
        raise BadRow(f"it holds {len(rows)} rows; one prompt with its response or its two answers can be scored")
    row, finished = rows[0], bool(raw.get("finished", True))
    if kind == PREFERENCE:
        return {
            f"{side}_score": model.render(row["prompt"], row[side], beside=row, finished=finished)
            for side in ("chosen", "rejected")
        }
    prompt, response = _apart(row)
    if layout.name == PROMPT_RESPONSE and isinstance(raw["prompt"], str) and len(prompt) == 1:
        prompt, response = raw["prompt"], raw["response"]  # plain texts; a model of conversations takes turns of them
    return {"score": model.render(prompt, response, beside=row, finished=finished)}


def _apart(row: Row) -> tuple[Any, Any]:
    """A demonstration as what is asked and what is answered last."""
    if "text" in row:
        return "", row["text"]
    if "messages" not in row:
        return row["prompt"], row["completion"]
    if row["messages"][-1]["role"] != "assistant":
        raise BadRow("the last turn is not the assistant's, so there is no response to score")
    return row["messages"][:-1], row["messages"][-1:]


def _columns(scores: Scores, wanted: Mapping[str, int]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for column, index in wanted.items():
        columns[column] = float(scores[index].mean())
        if scores.shape[1] > 1:
            columns[f"{column}_std"] = float(scores[index].std(ddof=1))
    return columns


def _unscored(tally: Tally) -> DataError:
    """The error for rows that have no score."""
    rows = "row" if tally.bad == 1 else "rows"
    what = f"{tally.bad} {rows} without a score"
    return DataError(what, problems=tally.problems, hint=f"{what}: theirs is null, with the `error` beside it")

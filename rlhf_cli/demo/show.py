"""What an evaluation in the toy world came to, for a newcomer: answers before and after, scores, verdicts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.run_dir import ANSWERS_FILE, EVALUATION_FILE
from rlhf_cli.stage_line import estimate_text
from rlhf_cli.terminal import printable

GOLD = "gold"
"""The judge that is the true preference."""
_SHOWN = 3
"""How many are shown, evenly from the first to the last, so that nobody has picked them."""


def show_evaluation(folder: Path, width: int | None) -> str:
    """Answers of every model to some of the questions, what judges make of them, and the verdicts.

    Args:
        folder: Of an evaluation.
        width: Columns of the terminal; None where lines may be as long as they like.
    """
    outcome = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}
    for line in (folder / ANSWERS_FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(json.dumps(row["prompt"]), row)  # the first answers to each
    picked = [list(rows.values())[len(rows) * (2 * number + 1) // (2 * _SHOWN)] for number in range(_SHOWN)]
    blocks = [f"{_SHOWN} of {len(rows)} questions that nothing was trained on, with the true score of each answer"]
    blocks += ["\n".join(_show_question(row, width)) for row in picked]
    blocks += ["\n".join(_show_scores(outcome)), "\n".join(_show_verdicts(outcome, width))]
    return "\n\n".join(blocks)


def _show_question(row: Mapping[str, Any], width: int | None) -> Iterator[str]:
    yield printable(str(row["prompt"][-1]["content"]))
    names = max(len(name) for name in row["answers"])
    for name, answer in row["answers"].items():
        head = f"  {name:<{names}}  {answer['scores'][GOLD]:.2f}  "
        yield _wrapped(head, printable(" ".join(str(answer["response"]).split())), width)


def _show_scores(outcome: Mapping[str, Any]) -> Iterator[str]:
    """Of each judge the mean of every model's scores, with its interval; the true one first."""
    judges = sorted({judge for model in outcome["models"].values() for judge in model["rewards"]}, key=_gold_first)
    titles = [f"{judge} (the true score)" if judge == GOLD else f"{judge} (the reward model)" for judge in judges]
    names = max(len(title) for title in titles)
    for judge, title in zip(judges, titles, strict=True):
        numbers = {name: model["rewards"][judge] for name, model in outcome["models"].items()}
        told = [f"{name} {estimate_text(number)}" for name, number in numbers.items()]
        yield f"{title:<{names}}  {'  '.join(told)}"


def _gold_first(judge: str) -> tuple[bool, str]:
    return judge != GOLD, judge


def _show_verdicts(outcome: Mapping[str, Sequence[Mapping[str, Any]]], width: int | None) -> Iterator[str]:
    for verdict in outcome["verdicts"]:
        yield _wrapped("", printable(verdict["sentence"]), width)
    for gate in outcome["gates"]:
        yield _wrapped("", f"{gate['text']}: {'met' if gate['met'] else 'NOT met'}", width)


def _wrapped(head: str, text: str, width: int | None) -> str:
    if width is None:
        return head + text
    return textwrap.fill(text, max(40, width), initial_indent=head, subsequent_indent=" " * len(head))

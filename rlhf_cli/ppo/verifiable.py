"""Rewards that a rule decides, for `reward_funcs: rlhf_cli.ppo.verifiable:…`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def same_number(
    completions: Sequence[Any], answer: Sequence[str], **_: Any
) -> list[float | None]:  # fmt: skip
    """1 where the last number of a completion is the last of the column `answer`, else 0.

    As GSM8K's are judged (Cobbe et al. 2021, arXiv:2110.14168), whose answers end in `#### 72`.

    Args:
        completions: Texts, or messages.
        answer: Of each row; None where an answer has no number, which then counts for nothing.
    """
    found: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        said = completion if isinstance(completion, str) else completion[-1]["content"]
        wanted = _last_number(str(right))
        found.append(None if wanted is None else float(_last_number(said) == wanted))
    return found


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    try:
        return Decimal(numbers[-1].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None

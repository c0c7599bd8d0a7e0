"""Answers side by side: which of many are shown, and how their words differ."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhf_cli.report.wording import clean, cut, is_number

MOST_SAMPLES = 40
_EXTREMES = 14
"""Largest gains, and as many largest losses; the rest are taken at random."""
_LONGEST_PROMPT, _LONGEST_ANSWER = 2000, 3000
"""Characters."""
_MOST_BYTES = 800_000
"""Of all samples of a page, escaped."""
_MOST_WORDS = 700
_ALIKE = 0.25
"""Below, two answers share so little that marking words would only hide both."""
_WORD = re.compile(r"\s+|\w+|[^\w\s]")

SAME, GONE, NEW = "same", "gone", "new"
Piece = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt."""

    name: str
    """Whose."""
    pieces: list[Piece]
    """The text in pieces that are there in both answers, only in the first, or only in this."""
    facts: list[tuple[str, str]]
    """What is known of it: rewards, KL, tokens."""
    cut_off: bool = False
    """Whether it did not end by itself."""


@dataclass(frozen=True)
class Sample:
    """A prompt, and what was answered."""

    prompt: list[tuple[str, str]]
    """Its turns: who speaks, and what."""
    answers: list[Answer]
    gain: float | None
    """How much better the last answer scores than the first."""
    why: str
    """Why it is shown."""
    order: dict[str, float] = field(default_factory=dict)
    """What it may be sorted by."""


def choose(rows: Sequence[T], gain: Callable[[T], float | None]) -> list[tuple[T, str]]:
    """The largest gains, the largest losses, and some at random between, each with why it is shown; by gain."""
    known = sorted((row for row in rows if is_number(gain(row))), key=lambda row: -(gain(row) or 0.0))
    if not known:
        return [(row, "") for row in _some(rows, MOST_SAMPLES)]
    if len(known) <= MOST_SAMPLES:
        return [(row, "") for row in known]
    middle = _some(known[_EXTREMES:-_EXTREMES], MOST_SAMPLES - 2 * _EXTREMES)
    return [
        *((row, "largest gains") for row in known[:_EXTREMES]),
        *((row, "at random") for row in middle),
        *((row, "largest losses") for row in known[-_EXTREMES:]),
    ]


def _some(rows: Sequence[T], count: int) -> list[T]:
    index = np.random.default_rng(0).permutation(len(rows))[:count]
    return [rows[place] for place in sorted(index.tolist())]


def selection_note(total: int, shown: int) -> str:
    """Say which of the answers are shown."""
    if shown == total:
        return f"All {total:,} answers, the largest gain first."
    return (
        f"{shown} of {total:,} answers: the largest gains, the largest losses, and some at random between them; "
        "the largest gain first."
    )


def within_budget(samples: Sequence[Sample]) -> list[Sample]:
    """As many samples as a page has room for, from both ends."""
    kept: list[tuple[int, Sample]] = []
    room = _MOST_BYTES
    places = sorted(range(len(samples)), key=lambda place: min(place, len(samples) - 1 - place))
    for place in places:
        texts = [text for _, text in samples[place].prompt]
        texts += [text for answer in samples[place].answers for _, text in answer.pieces]
        room -= sum(len(text.encode()) + 5 * sum(text.count(sign) for sign in "<>&\"'") + 30 for text in texts)
        if room < 0:
            break
        kept.append((place, samples[place]))
    return [sample for _, sample in sorted(kept, key=lambda each: each[0])]


def turns(prompt: Any) -> list[tuple[str, str]]:
    """A prompt as turns: a conversation, also one written down as JSON, or a text."""
    if isinstance(prompt, str) and prompt.startswith("[{"):
        with suppress(json.JSONDecodeError):
            prompt = json.loads(prompt)
    if isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt):
        return [(str(clean(turn.get("role", ""))), cut(_text(turn.get("content")), _LONGEST_PROMPT)) for turn in prompt]
    return [("", cut(_text(prompt), _LONGEST_PROMPT))]


def _text(value: Any) -> str:
    return str(clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))


def plain(text: Any) -> list[Piece]:
    """An answer without a comparison."""
    return [(SAME, cut(_text(text), _LONGEST_ANSWER))]


def compare(before: Any, after: Any) -> tuple[list[Piece], list[Piece]]:
    """Two answers in pieces, word by word: what only the first has is gone, what only the second has is new."""
    one, other = (cut(_text(text), _LONGEST_ANSWER) for text in (before, after))
    words = _WORD.findall(one), _WORD.findall(other)
    if max(len(each) for each in words) > _MOST_WORDS:
        return plain(one), plain(other)
    matcher = SequenceMatcher(None, *words, autojunk=False)
    if one != other and matcher.ratio() < _ALIKE:
        return plain(one), plain(other)
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        gone, new = "".join(words[0][start:end]), "".join(words[1][other_start:other_end])
        left.append((SAME if kind == "equal" else GONE, gone))
        right.append((SAME if kind == "equal" else NEW, new))
    return [piece for piece in left if piece[1]], [piece for piece in right if piece[1]]


def read_samples(file: Path) -> list[dict[str, Any]]:
    """The rows of a samples file."""
    from pyarrow import parquet

    return [clean(row) for row in parquet.read_table(file).to_pylist()]

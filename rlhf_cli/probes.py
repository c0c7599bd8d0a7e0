"""What a reward model is tried with besides its pairs: junk, harmless edits, answers said twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_cli.rows import Row, prompt_text

Answer = str | list[dict[str, Any]]
_REPEATS = 50

JUNK: dict[str, Callable[[Row, str], str]] = {
    "nothing": lambda row, answer: "",
    "one word, over and over": lambda row, answer: " ".join(["the"] * _REPEATS),
    "the prompt again": lambda row, answer: prompt_text(row),
    "thank you, fifty times": lambda row, answer: " ".join(["Thank you."] * _REPEATS),
    "cut in mid-sentence": lambda row, answer: _first_half(answer),
}
"""Answers that nobody wants, made of a row and its chosen answer; PPO finds whichever of them a reward model likes."""

EDITS: dict[str, Callable[[str], str]] = {
    "a space behind": lambda answer: answer + " ",
    "a line break behind": lambda answer: answer + "\n",
    "curly quotes for straight ones": lambda answer: answer.replace("'", "’"),
}
"""Changes that change no meaning, and should not change which answer is better."""


def text_of_answer(answer: Answer) -> str:
    """What an answer says last."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def replace_text(answer: Answer, text: str) -> Answer:
    """The answer, saying something else last."""
    return text if isinstance(answer, str) else [*answer[:-1], {**answer[-1], "content": text}]


def say_twice(answer: Answer) -> Answer:
    """The answer and the same again: longer, and no better."""
    text = text_of_answer(answer)
    return replace_text(answer, f"{text}\n\n{text.strip()}")


def without_prompt(prompt: Any) -> Any:
    """A prompt that asks nothing; a conversation has a turn of the user all the same, which templates insist on."""
    return "" if isinstance(prompt, str) else [{"role": "user", "content": ""}]


def _first_half(answer: str) -> str:
    return answer[: len(answer) // 2].rstrip()

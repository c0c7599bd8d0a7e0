"""Rows into tokens, and which of them carry the loss.

Loss is on the assistant's tokens, its end of turn included, in every turn that is not part of a prompt. Three ways
lead there, tried in this order: the `{% generation %}` marks of the chat template; the marked twin that TRL knows for
some templates; and, for the rest, rendering the conversation turn by turn to see where each answer starts and ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from rlhf_cli.rows import BadRow

IGNORED_LABEL = -100
_STAND_IN = "(an answer)"
TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tokens:
    """One row as the model reads it."""

    input_ids: list[int]
    labels: list[int]
    """The token where it carries loss, -100 where it does not."""


@dataclass(frozen=True)
class Answer:
    """A prompt and its response, in tokens."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class Renderer:
    """Turns rows into tokens for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    assistant_only: bool
    """Loss on assistant turns only."""
    completion_only: bool
    """Loss on completions only, where rows have a prompt."""
    marked_template: str | None
    """A chat template with generation marks; None renders turn by turn."""

    def encode(self, row: Mapping[str, Any]) -> Tokens:
        """Turn a row into tokens and labels.

        Raises:
            BadRow: when the chat template refuses the row, or does not show where an answer starts.
        """
        with _explained_template():
            return self._encode(row)

    def _encode(self, row: Mapping[str, Any]) -> Tokens:
        if "text" in row:
            return self._encode_text("", row["text"])
        if "messages" in row:
            return self._encode_chat([], row["messages"], row)
        if isinstance(row["prompt"], str):
            return self._encode_text(row["prompt"], row["completion"])
        return self._encode_chat(row["prompt"], row["completion"], row)

    def _encode_text(self, prompt: str, completion: str) -> Tokens:
        text = _with_eos(self.tokenizer, prompt + completion)
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        start = len(prompt) if self.completion_only else 0
        return _label(encoded["input_ids"], encoded["offset_mapping"], [(start, len(text))])

    def _encode_chat(self, prompt: Messages, completion: Messages, row: Mapping[str, Any]) -> Tokens:
        messages = [*prompt, *completion]
        beside = _beside(row)
        if self.assistant_only and self.marked_template is not None:
            return self._encode_marked(messages, len(prompt), beside)
        text = self._text(messages, beside)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if self.assistant_only:
            first = len(prompt) if self.completion_only else 0
            spans = self._answer_spans(text, messages, first, beside)
        else:
            spans = [(self._prompt_end(text, prompt, beside) if self.completion_only else 0, len(text))]
        return _label(encoded["input_ids"], encoded["offset_mapping"], spans)

    def _encode_marked(self, messages: Messages, prompt_turns: int, beside: Mapping[str, Any]) -> Tokens:
        text, spans = self._marked_spans(messages, beside)
        if prompt_turns and self.completion_only:
            start = self._prompt_end(text, messages[:prompt_turns], beside)
            spans = [(max(begin, start), end) for begin, end in spans if end > start]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return _label(encoded["input_ids"], encoded["offset_mapping"], spans)

    def _marked_spans(self, messages: Messages, beside: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered conversation, and where its template's generation marks stand in it, in characters."""
        (text,), (spans,) = render_jinja_template(
            [list(messages)],
            chat_template=self.marked_template,
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **beside},
        )
        return text, list(spans)

    def _text(self, messages: Messages, beside: Mapping[str, Any], *, ask: bool = False) -> str:
        """The rendered conversation; with `ask`, up to where the assistant would begin."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.marked_template,
                tokenize=False,
                add_generation_prompt=ask,
                **beside,
            )
        )

    def _prompt_end(self, text: str, prompt: Messages, beside: Mapping[str, Any]) -> int:
        """Characters of the text that belong to the prompt, the assistant's header included."""
        if not prompt:
            return 0
        return common_prefix(text, self._text(prompt, beside, ask=True))

    def _answer_spans(
        self, text: str, messages: Messages, first: int, beside: Mapping[str, Any]
    ) -> list[tuple[int, int]]:
        """Where each answer from turn `first` on starts and ends in the text, in characters."""
        spans = []
        for turn, message in enumerate(messages):
            if turn < first or message["role"] != "assistant":
                continue
            through = self._text(messages[: turn + 1], beside)
            start = self._answer_start(through, messages[:turn], message, beside)
            if start < 0 or not text.startswith(through):
                raise BadRow(
                    "the chat template renders earlier turns differently once later ones follow, so the answers "
                    "cannot be told from the rest: give a `chat_template_path` with {% generation %} marks, or set "
                    "`assistant_only_loss: false`"
                )
            spans.append((start, start + self._answer_length(through[start:])))
        return spans

    def _answer_start(
        self, through: str, before: Messages, answer: Mapping[str, Any], beside: Mapping[str, Any]
    ) -> int:
        """Characters in front of an answer, its header included; -1 where that cannot be told."""
        if before:
            header = self._text(before, beside, ask=True)
        else:
            # Nothing can be asked of an empty conversation: the header is what stands before another answer.
            header, _, _ = self._text([{**answer, "content": _STAND_IN}], beside).partition(_STAND_IN)
        return len(header) if through.startswith(header) else -1

    def _answer_length(self, tail: str) -> int:
        """Characters of an answer up to and with its end-of-turn token, without what the template adds behind it."""
        for token in dict.fromkeys([self.tokenizer.eos_token, *self.tokenizer.all_special_tokens]):
            at = tail.rfind(token) if token else -1
            if at >= 0 and not tail[at + len(token) :].strip():
                return at + len(token)
        return len(tail)

    def encode_answer(self, row: Mapping[str, Any]) -> Answer:
        """A prompt and its completion as a policy is compared on them: to the end of turn, nothing behind it.

        Raises:
            BadRow: when the chat template refuses the row.
        """
        prompt, completion = row["prompt"], row["completion"]
        with _explained_template():
            if isinstance(prompt, str):
                text = _with_eos(self.tokenizer, prompt + completion)
                start, end = len(prompt), len(text)
                encoded = self.tokenizer(text, return_offsets_mapping=True)
            else:
                beside = _beside(row)
                text = self._text([*prompt, *completion], beside)
                start = self._prompt_end(text, prompt, beside)
                end = start + self._answer_length(text[start:])
                encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return _cut(encoded["input_ids"], encoded["offset_mapping"], start, end)


def render_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    response: str | Messages,
    *,
    beside: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> list[int]:
    """A prompt and a response as a reward model reads them: in training, scoring, evaluation and PPO.

    Finished, a conversation is what `tokenizer.apply_chat_template` gives of it, and a text ends in the end token.

    Args:
        tokenizer: Of the reward model, with a chat template.
        prompt: Text, or messages; empty for a response without its prompt.
        response: Text behind a text, messages behind messages.
        beside: `tools` and `chat_template_kwargs` of the row.
        finished: Whether the response came to its end; where not, no end of turn is written.

    Returns:
        Tokens; the score is read at the last.

    Raises:
        BadRow: when the chat template refuses the conversation.
    """
    with _explained_template():
        if isinstance(response, str):
            text = str(prompt) + response
            return list(tokenizer(_with_eos(tokenizer, text) if finished else text)["input_ids"])
        text = tokenizer.apply_chat_template(
            [*prompt, *response], tokenize=False, continue_final_message=not finished, **_beside(beside or {})
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, *, beside: Mapping[str, Any] | None = None
) -> list[int]:
    """A prompt as a policy reads it before it answers, with the special tokens that it had in training.

    Args:
        tokenizer: Of the policy, with a chat template.
        prompt: Text, which is continued, or messages, which are answered.
        beside: `tools` and `chat_template_kwargs` of the row.

    Returns:
        Tokens.

    Raises:
        BadRow: when the chat template refuses the conversation.
    """
    if isinstance(prompt, str):
        text = (str(tokenizer.bos_token) if _starts_with_bos(tokenizer) else "") + prompt
    else:
        with _explained_template():
            text = str(
                tokenizer.apply_chat_template(
                    list(prompt), add_generation_prompt=True, tokenize=False, **_beside(beside or {})
                )
            )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool, completion_only: bool | None
) -> Renderer:
    """A renderer for a tokenizer that has a chat template.

    Args:
        tokenizer: With `chat_template` set, see `ensure_chat_template`.
        assistant_only: The recipe's `assistant_only_loss`.
        completion_only: The recipe's `completion_only_loss`; None means where there is a prompt.
    """
    return Renderer(tokenizer, assistant_only, completion_only is not False, marked_template(tokenizer))


def marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, or its twin that TRL knows, if either has generation marks."""
    if has_generation_markers(tokenizer.chat_template):
        return None if isinstance(tokenizer.chat_template, dict) else str(tokenizer.chat_template)
    try:
        twin: str | None = get_training_chat_template(tokenizer)
        return twin
    except ValueError:  # TRL knows no twin of this template
        return None


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> bool:
    """Give a tokenizer the recipe's chat template, or ours where it has none; True when it got ours.

    Ours adds no vocabulary: the existing EOS ends an answer, and BOS opens a conversation only where the tokenizer
    itself opens texts with it, so that it is never doubled.
    """
    if template is not None:
        tokenizer.chat_template = template
        return False
    if tokenizer.chat_template:
        return False
    opens = "true" if _starts_with_bos(tokenizer) else "false"
    tokenizer.chat_template = f"{{%- set starts_with_bos = {opens} -%}}\n" + TEMPLATE_FILE.read_text(encoding="utf-8")
    return True


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _label(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tokens:
    """Labels for the tokens that reach into a span; a token without characters, such as BOS, never does.

    Args:
        ids: Tokens.
        offsets: Where each begins and ends in the text; in order.
        spans: What carries loss; in order.
    """
    labels = [IGNORED_LABEL] * len(ids)
    waiting = iter(spans)
    start, stop = next(waiting, (0, 0))
    for index, (begin, end) in enumerate(offsets):
        while stop <= begin and start < stop:
            start, stop = next(waiting, (0, 0))
        if begin < end and begin < stop and start < end:
            labels[index] = ids[index]
    return Tokens(list(ids), labels)


def _cut(ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int) -> Answer:
    """Tokens before a character, and those from there to another; one that reaches over belongs to the response."""
    first = next((index for index, (begin, stop) in enumerate(offsets) if begin < stop and stop > start), len(ids))
    last = next((index for index in range(len(ids), first, -1) if offsets[index - 1][0] < end), first)
    return Answer(list(ids[:first]), list(ids[first:last]))


def _with_eos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    eos = str(tokenizer.eos_token or "")
    return text if text.endswith(eos) else text + eos


def _beside(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}


@contextmanager
def _explained_template() -> Iterator[None]:
    try:
        yield
    except (TemplateError, TypeError, ValueError, UnicodeEncodeError) as error:
        if isinstance(error, BadRow):
            raise
        raise BadRow(f"the chat template refuses it: {error}") from error


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """How far two sequences are the same."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return min(len(one), len(other))

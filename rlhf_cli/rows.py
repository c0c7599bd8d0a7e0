"""The shapes a data row may have, and what makes a row usable.

A row comes out as one of these shapes, named as TRL names them. A demonstration shows how to answer:

text           {"text": str}
messages       {"messages": [message, …]}
prompt/completion, standard          {"prompt": str, "completion": str}
prompt/completion, conversational    {"prompt": [message, …], "completion": [message, …]}

A preference compares two answers to one prompt:

standard          {"prompt": str, "chosen": str, "rejected": str}
conversational    {"prompt": [message, …], "chosen": [message, …], "rejected": [message, …]}

A prompt is what is asked, {"prompt": str} or {"prompt": [message, …]}; every other shape holds one.

A message is {"role": …, "content": …}; `tools` and `chat_template_kwargs` may stand beside any conversational shape,
and `margin`, how much better the chosen answer is, beside a preference.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

Row = dict[str, Any]
Messages = list[dict[str, Any]]

DEMONSTRATION = "demonstration"
PREFERENCE = "preference"
PROMPT = "prompt"
ROLES = ("system", "developer", "user", "assistant", "tool")
KEPT_BESIDE = ("tools", "chat_template_kwargs")
_SPEAKERS = {
    **{role: role for role in ROLES},
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
"""Who speaks, in the words of each layout."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRow(ValueError):
    """A row that cannot be used; the text says why."""


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The text of a column.

    Raises:
        BadRow: when it is missing, empty or something else.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise BadRow(f"`{column}` must be text, got {kind_of(value)}")
    if not value.strip():
        raise BadRow(f"`{column}` is empty")
    _refuse_half_characters(value, column)
    return value


def _refuse_half_characters(text: str, name: str) -> None:
    if _SURROGATE.search(text):
        raise BadRow(f"`{name}` holds half a character (a lone surrogate), which no text can have")


def messages_of(value: Any, column: str, *, answered: bool = True) -> Messages:
    """A list of messages, each with a role and content; ShareGPT's `from` and `value` mean the same.

    Args:
        value: What a row has in the column.
        column: Its name, for the error.
        answered: Whether an assistant's turn must be among them.

    Raises:
        BadRow: when it is no such list.
    """
    if not isinstance(value, list) or not value:
        raise BadRow(f"`{column}` must be a list of messages, got {kind_of(value)}")
    messages = [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]
    if answered and not any(message["role"] == "assistant" for message in messages):
        raise BadRow(f"no assistant turn to learn from in `{column}`")
    return messages


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(f"`{name}` must be a mapping with role and content, got {kind_of(message)}")
    if "from" in message and "role" not in message:
        message = {"role": message["from"], "content": message.get("value")}
    role, content = message.get("role"), message.get("content")
    if role not in _SPEAKERS:
        raise BadRow(f"`{name}` has the role {role!r}, which is none of {', '.join(ROLES)}")
    # Columnar files give every message every key; what is None was not there.
    extras = {key: item for key, item in message.items() if item is not None and key not in ("role", "content")}
    role = _SPEAKERS[role]
    if content is None and role == "assistant" and extras.get("tool_calls"):
        content = ""
    elif not isinstance(content, str):
        raise BadRow(f"`{name}` has no text as content, got {kind_of(content)}")
    elif not content.strip() and role in ("user", "assistant") and not extras.get("tool_calls"):
        raise BadRow(f"`{name}` is empty")
    _refuse_half_characters(content, name)
    return {"role": role, "content": content, **extras}


def preference(prompt: Any, chosen: Any, rejected: Any, **beside: Any) -> Row:
    """A preference, from a prompt and two answers that are all text or all messages.

    Answers that repeat the prompt, as UltraFeedback's do, lose it; without a prompt (None), it is what both share.

    Raises:
        BadRow: when one of them is unusable.
    """
    row: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if beside.get("margin") is not None:
        row["margin"] = _margin(beside["margin"])
    if isinstance(chosen, str) and isinstance(prompt, str):
        texts = {column: text_of(row, column) for column in ("chosen", "rejected")}
        return {**row, **texts}
    answers = [messages_of(row[column], column) for column in ("chosen", "rejected")]
    if isinstance(prompt, str):
        turns = [{"role": "user", "content": text_of(row, "prompt")}]
    else:
        turns = messages_of(prompt, "prompt", answered=False) if prompt is not None else []
    if not turns:
        shared = _shared_turns(*answers)
        if not shared:
            raise BadRow("`chosen` and `rejected` share no prompt")
        turns, answers = answers[0][:shared], [answer[shared:] for answer in answers]
    elif all(answer[: len(turns)] == turns for answer in answers):
        answers = [answer[len(turns) :] for answer in answers]
    for column, answer in zip(("chosen", "rejected"), answers, strict=True):
        row[column] = messages_of(answer, column)
        if row[column][0]["role"] not in ("assistant", "tool"):
            raise BadRow(f"`{column}` starts with a turn of the {row[column][0]['role']} that is not the prompt's")
    return {**row, "prompt": turns, **kept_beside(beside)}


def _margin(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRow(f"`margin` must be a number, got {kind_of(value)}")
    return float(value)


def _shared_turns(one: Messages, other: Messages) -> int:
    """Turns at the start that both have; the last of either is its answer, whatever it says."""
    shared = 0
    for a, b in zip(one[:-1], other[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return shared


def kept_beside(row: Mapping[str, Any]) -> Row:
    """What may stand beside a conversation, where the row has it; as text it is read as JSON.

    Raises:
        BadRow: when the text is no JSON.
    """
    return {key: _from_json(row[key], key) for key in KEPT_BESIDE if row.get(key) not in (None, "", [])}


def _from_json(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRow(f"`{column}` is neither a list nor JSON: {error.msg}") from None


def prompt_of(row: Row) -> Row:
    """What a row asks: its prompt, or its conversation up to the last turn of the user.

    Raises:
        BadRow: when nothing is asked.
    """
    if "prompt" in row:
        return {"prompt": row["prompt"], **kept_beside(row)}
    if "text" in row:
        return {"prompt": row["text"]}
    turns = list(row["messages"])
    while turns and turns[-1]["role"] not in ("user", "tool"):
        turns.pop()
    if not turns:
        raise BadRow("nothing is asked in `messages`")
    return {"prompt": turns, **kept_beside(row)}


def as_user(text: str) -> dict[str, Any]:
    """A text as the turn of a user."""
    return {"role": "user", "content": text}


def prompt_text(row: Row) -> str:
    """What is asked: the text of the prompt, or of the turns before the first answer, without the system's."""
    prompt: Any = row.get("prompt", row.get("messages", ""))
    if isinstance(prompt, str):
        return prompt
    texts = []
    for message in prompt:
        if message["role"] == "assistant" and "messages" in row:
            break
        if message["role"] != "system":
            texts.append(message["content"])
    return "\n\n".join(texts)


def prompt_words(row: Row) -> list[str]:
    """The words of what is asked, in small letters."""
    return _WORD.findall(prompt_text(row).lower())


def words_hash(words: Sequence[str]) -> int:
    """64 bits by which words are known again, whatever stands between them; 0 where there are none."""
    return short_hash(" ".join(words)) if words else 0


def prompt_hash(row: Row) -> int:
    """64 bits by which a prompt is known again, by its words; 0 where nothing is asked."""
    return words_hash(prompt_words(row))


def short_hash(text: str) -> int:
    """64 bits of a text's BLAKE2."""
    return int.from_bytes(blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8).digest(), "little")


def answer_text(answer: Any) -> str:
    """What an answer says, in all its turns."""
    return answer if isinstance(answer, str) else "\n\n".join(message["content"] for message in answer)


def row_text(row: Row) -> str:
    """All that is said in a row."""
    columns = ("text", "prompt", "messages", "completion", "chosen", "rejected")
    parts: list[Any] = [row[column] for column in columns if column in row]
    texts = [[part] if isinstance(part, str) else [message["content"] for message in part] for part in parts]
    return "\n".join(text for part in texts for text in part)


def split_transcript(text: str) -> Messages:
    r"""Split a transcript of `\n\nHuman: …\n\nAssistant: …` into messages.

    A turn starts at the name of whoever does not speak already, behind an empty line; the same words anywhere else
    belong to what is said.

    Raises:
        BadRow: when it does not start with a turn.
    """
    starts: list[re.Match[str]] = []
    for match in _TURN.finditer(text):
        if not starts or match.group(1) != starts[-1].group(1):
            starts.append(match)
    if not starts or text[: starts[0].start()].strip():
        raise BadRow("the transcript does not start with `Human:` or `Assistant:`")
    ends = [*(match.start() for match in starts[1:]), len(text)]
    return [
        {"role": _SPEAKERS[match.group(1).lower()], "content": text[match.end() : end].strip()}
        for match, end in zip(starts, ends, strict=True)
    ]


def kind_of(value: Any) -> str:
    """What a value is, in the words of an error message."""
    names = {type(None): "nothing", dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    if isinstance(value, (list, str)) and not value:
        return "an empty list" if isinstance(value, list) else "empty text"
    return names.get(type(value), f"the number {value}" if isinstance(value, (int, float)) else type(value).__name__)

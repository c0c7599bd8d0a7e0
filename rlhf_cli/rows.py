"""The shapes a data row may have, and public layouts into them.

A row comes out as one of four shapes, named as TRL names them:

text           {"text": str}
messages       {"messages": [message, …]}
prompt/completion, standard          {"prompt": str, "completion": str}
prompt/completion, conversational    {"prompt": [message, …], "completion": [message, …]}

A message is {"role": …, "content": …}; `tools` and `chat_template_kwargs` may stand beside any conversational shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_cli.errors import DataError

Row = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
KEPT_BESIDE = ("tools", "chat_template_kwargs")


class BadRow(ValueError):
    """A row that cannot be used; the text says why."""


@dataclass(frozen=True)
class Layout:
    """One way to lay out a row: the columns that reveal it, and how to read it."""

    name: str
    columns: frozenset[str]
    """All of these are there."""
    read: Callable[[Mapping[str, Any]], Row]
    """A raw row into one of the four shapes; raises BadRow."""


def _read_text(row: Mapping[str, Any], column: str = "text") -> Row:
    return {"text": _text(row, column)}


def _read_messages(row: Mapping[str, Any]) -> Row:
    messages = _messages(row["messages"], "messages")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn to learn from in `messages`")
    return {"messages": messages, **_beside(row)}


def _read_prompt_completion(row: Mapping[str, Any]) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": _text(row, "completion")}
    if isinstance(prompt, str) or isinstance(completion, str):
        raise BadRow("`prompt` and `completion` must both be text or both be lists of messages")
    answer = _messages(completion, "completion")
    if not any(message["role"] == "assistant" for message in answer):
        raise BadRow("no assistant turn to learn from in `completion`")
    return {"prompt": _messages(prompt, "prompt"), "completion": answer, **_beside(row)}


def _read_alpaca(row: Mapping[str, Any]) -> Row:
    """Alpaca's instruction, optional input, output (github.com/tatsu-lab/stanford_alpaca)."""
    question = _text(row, "instruction")
    context = row.get("input")
    if context is not None and not isinstance(context, str):
        raise BadRow(f"`input` must be text, got {type(context).__name__}")
    if context and context.strip():
        question = f"{question}\n\n{context}"
    answer = _text(row, "output")
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def _read_dolly(row: Mapping[str, Any]) -> Row:
    """Dolly's instruction, optional context, response (databricks-dolly-15k): Alpaca under other names."""
    return _read_alpaca({"instruction": row["instruction"], "input": row.get("context"), "output": row["response"]})


def _read_sharegpt(row: Mapping[str, Any]) -> Row:
    """ShareGPT's turns of `from` and `value`."""
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow(f"`conversations` must be a list of turns with from and value, got {_kind(turns)}")
    messages = []
    for index, turn in enumerate(turns):
        speaker = turn.get("from", turn.get("role"))
        if speaker not in _SPEAKERS:
            raise BadRow(f"`conversations[{index}]` is from {speaker!r}, who is none of {', '.join(_SPEAKERS)}")
        messages.append({"role": _SPEAKERS[speaker], "content": turn.get("value", turn.get("content"))})
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return _read_messages({"messages": [*system, *messages]})


def _read_transcript(row: Mapping[str, Any]) -> Row:
    """HH-RLHF's transcripts (arXiv:2204.05862): the chosen one is an example of how to answer."""
    return _read_messages({"messages": split_transcript(_text(row, "chosen"))})


def _read_tree(row: Mapping[str, Any]) -> Row:
    """An OpenAssistant message tree (arXiv:2304.07327): the conversation along its best-ranked replies."""
    messages: list[dict[str, Any]] = []
    node: Any = row["prompt"]
    while node:
        if not isinstance(node, Mapping) or node.get("role") not in _SPEAKERS:
            raise BadRow("`prompt` is no tree of messages with text, role and replies")
        messages.append({"role": _SPEAKERS[node["role"]], "content": node.get("text")})
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        # Where nobody ranked, the first reply; min keeps the order of equals.
        node = min(
            replies, key=lambda reply: reply["rank"] if reply.get("rank") is not None else _UNRANKED, default=None
        )
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("no assistant turn to learn from in the tree")
    return _read_messages({"messages": messages})


def split_transcript(text: str) -> list[dict[str, str]]:
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


_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_UNRANKED = 1_000_000
_SPEAKERS = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant",
    "system": "system", "tool": "tool",
}  # fmt: skip
"""Who speaks, in the words of each layout."""

LAYOUTS: tuple[Layout, ...] = (
    Layout("prompt/completion", frozenset({"prompt", "completion"}), _read_prompt_completion),
    Layout("messages", frozenset({"messages"}), _read_messages),
    Layout("Alpaca", frozenset({"instruction", "output"}), _read_alpaca),
    Layout("Dolly", frozenset({"instruction", "response"}), _read_dolly),
    Layout("ShareGPT", frozenset({"conversations"}), _read_sharegpt),
    Layout("OpenAssistant trees, best replies", frozenset({"message_tree_id", "prompt"}), _read_tree),
    Layout("HH-RLHF transcripts, the chosen", frozenset({"chosen", "rejected"}), _read_transcript),
    Layout("text", frozenset({"text"}), _read_text),
)
"""In the order they are tried: a row with `messages` and `text` is a conversation."""


def find_layout(columns: Iterable[str], *, where: str, text_column: str = "text") -> Layout:
    """The layout that the columns reveal.

    Args:
        columns: Names of the columns, of the first row or of the dataset.
        where: The file, for the error.
        text_column: The column that holds plain text (`dataset_text_field`).

    Raises:
        DataError: when no layout fits; it names the columns seen and the columns looked for.
    """
    seen = set(columns)
    for layout in LAYOUTS:
        if layout.name == "text" and text_column in seen:
            return Layout("text", frozenset({text_column}), lambda row: _read_text(row, text_column))
        if layout.columns <= seen:
            return layout
    looked_for = "; ".join(" + ".join(sorted(layout.columns)) for layout in LAYOUTS)
    raise DataError(
        f"no known row layout has the columns {', '.join(sorted(seen)) or '(none)'}",
        where=where,
        hint=f"rename the columns to one of: {looked_for}",
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise BadRow(f"`{column}` must be text, got {_kind(value)}")
    if not value.strip():
        raise BadRow(f"`{column}` is empty")
    return value


def _messages(value: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"`{column}` must be a list of messages, got {_kind(value)}")
    return [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(f"`{name}` must be a mapping with role and content, got {_kind(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise BadRow(f"`{name}` has the role {role!r}, which is none of {', '.join(ROLES)}")
    # Columnar files give every message every key; what is None was not there.
    extras = {key: item for key, item in message.items() if item is not None and key not in ("role", "content")}
    if content is None and role == "assistant" and extras.get("tool_calls"):
        content = ""
    elif not isinstance(content, str):
        raise BadRow(f"`{name}` has no text as content, got {_kind(content)}")
    elif not content.strip() and role in ("user", "assistant") and not extras.get("tool_calls"):
        raise BadRow(f"`{name}` is empty")
    return {"role": role, "content": content, **extras}


def _beside(row: Mapping[str, Any]) -> Row:
    return {key: row[key] for key in KEPT_BESIDE if row.get(key) is not None}


def _kind(value: Any) -> str:
    names = {type(None): "nothing", dict: "a mapping", list: "a list", str: "text", bool: "true or false"}
    if isinstance(value, (list, str)) and not value:
        return "an empty list" if isinstance(value, list) else "empty text"
    return names.get(type(value), f"the number {value}" if isinstance(value, (int, float)) else type(value).__name__)

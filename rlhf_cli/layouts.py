"""Public layouts of data, how to tell them, and how to read their rows into the shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.errors import DataError
from rlhf_cli.files import BadLine, Raw
from rlhf_cli.rows import (
    DEMONSTRATION,
    KEPT_BESIDE,
    PREFERENCE,
    PROMPT,
    BadRow,
    Messages,
    Row,
    as_user,
    kept_beside,
    kind_of,
    messages_of,
    preference,
    prompt_of,
    split_transcript,
    text_of,
)

PROMPT_RESPONSE = "prompt-response"
Reader = Callable[[Mapping[str, Any]], list[Row]]
"""A raw row into the rows it holds; raises BadRow."""


@dataclass(frozen=True)
class Layout:
    """One way to lay out a row: the columns that reveal it, and how to read it."""

    name: str
    """As `layout:` in a recipe names it."""
    columns: tuple[str, ...]
    """All of these are there."""
    readers: Mapping[str, Reader]
    """By the kind of row that is wanted."""
    optional: frozenset[str] = field(default_factory=frozenset)
    """These may be there, and are read."""
    gather: Callable[[Iterator[Raw]], Iterator[Raw]] | None = None
    """Where a row is spread over several raw ones: puts them together first."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a raw row has the columns."""
        return all(column in row for column in self.columns)


# --- conversations and texts ------------------------------------------------------------------------------------


def _read_text(row: Mapping[str, Any]) -> list[Row]:
    return [{"text": text_of(row, "text")}]


def _read_messages(row: Mapping[str, Any], column: str = "messages") -> list[Row]:
    messages = messages_of(row[column], column)
    system = row.get("system") if messages[0]["role"] != "system" else None
    opening = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [{"messages": [*opening, *messages], **kept_beside(row)}]


def _read_sharegpt(row: Mapping[str, Any]) -> list[Row]:
    """ShareGPT's turns of `from` and `value`."""
    return _read_messages(row, "conversations")


def _read_prompt_completion(row: Mapping[str, Any]) -> list[Row]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"prompt": prompt, "completion": text_of(row, "completion")}]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise BadRow("`prompt` and `completion` must both be text or both be lists of messages")
    answer = messages_of(completion, "completion")
    return [{"prompt": messages_of(prompt, "prompt", answered=False), "completion": answer, **kept_beside(row)}]


def _ask(question: str, answer: str, *, context: str = "", system: str = "") -> Reader:
    """A reader of rows with an instruction in one column and its answer in another."""

    def read(row: Mapping[str, Any]) -> list[Row]:
        asked = "\n\n".join([text_of(row, question), *_present(row, context)])
        opening = [{"role": "system", "content": text} for text in _present(row, system)] + _history(row)
        return [
            {
                "prompt": [*opening, {"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": text_of(row, answer)}],
            }
        ]

    return read


def _ask_only(row: Mapping[str, Any], question: str, *contexts: str) -> Row:
    """What a row asks whose answer is missing."""
    given = [text for context in contexts for text in _present(row, context)]
    return {"prompt": [{"role": "user", "content": "\n\n".join([text_of(row, question), *given])}]}


def _history(row: Mapping[str, Any]) -> Messages:
    """Turns before the question, where a row has them as pairs of question and answer."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("`history` must be a list of pairs of question and answer")
    turns = [turn for pair in pairs for turn in zip(("user", "assistant"), pair, strict=True)]
    return messages_of([{"role": role, "content": text} for role, text in turns], "history") if turns else []


def _present(row: Mapping[str, Any], column: str) -> list[str]:
    """The text of a column that may be left out or empty."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise BadRow(f"`{column}` must be text, got {kind_of(value)}")
    return [value] if value and value.strip() else []


def _read_self_instruct(row: Mapping[str, Any]) -> list[Row]:
    """Self-Instruct's instruction with instances of input and output (arXiv:2212.10560)."""
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(instance, Mapping) for instance in instances):
        raise BadRow(f"`instances` must be a list of mappings with input and output, got {kind_of(instances)}")
    read = _ask("instruction", "output", context="input")
    return [each for instance in instances for each in read({**instance, "instruction": row["instruction"]})]


# --- preferences ------------------------------------------------------------------------------------------------


def _read_preference(row: Mapping[str, Any]) -> list[Row]:
    """TRL's prompt, chosen, rejected; or chosen and rejected that share their prompt, HH-RLHF's transcripts among them.

    HH-RLHF: arXiv:2204.05862. ShareGPT's form of a preference has the prompt in `conversations`.
    """
    prompt = row.get("prompt", row.get("conversations"))
    chosen, rejected = row["chosen"], row["rejected"]
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        chosen, rejected = split_transcript(text_of(row, "chosen")), split_transcript(text_of(row, "rejected"))
    # ShareGPT's form gives the answer as one turn.
    chosen, rejected = ([answer] if isinstance(answer, Mapping) else answer for answer in (chosen, rejected))
    beside = {key: row.get(key) for key in ("margin", *KEPT_BESIDE)}
    return [preference(prompt, chosen, rejected, **beside)]


def _read_chosen(row: Mapping[str, Any]) -> list[Row]:
    """The chosen answers of a preference show how to answer; of a transcript, every answer."""
    if row.get("prompt", row.get("conversations")) is None and isinstance(row["chosen"], str):
        return _read_messages({"messages": split_transcript(text_of(row, "chosen"))})
    return [_chosen(pair) for pair in _read_preference(row)]


def _chosen(pair: Row) -> Row:
    return {"prompt": pair["prompt"], "completion": pair["chosen"], **kept_beside(pair)}


def _read_stack_exchange(row: Mapping[str, Any]) -> list[Row]:
    """StackExchange-paired: a question and two answers, the first with more votes."""
    asked = [{"role": "user", "content": text_of(row, "question")}]
    answers = [[{"role": "assistant", "content": text_of(row, name)}] for name in ("response_j", "response_k")]
    return [preference(asked, *answers)]


def _read_comparison(row: Mapping[str, Any]) -> list[Row]:
    """summarize-from-feedback: a post, two summaries, and which one was chosen (arXiv:2009.01325)."""
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    shaped = isinstance(info, Mapping) and isinstance(summaries, list) and len(summaries) == 2
    if not shaped or choice not in (0, 1):
        raise BadRow("a comparison has `info`, two `summaries`, and a `choice` of 0 or 1")
    title = [f"TITLE: {info['title']}"] if info.get("title") else []
    where = [f"SUBREDDIT: r/{info['subreddit']}"] if info.get("subreddit") else []
    body = text_of(info, "post" if info.get("post") else "article")
    prompt = "\n\n".join([*where, *title, f"POST: {body}", "TL;DR:"])
    texts = [f" {text_of(summary, 'text').strip()}" for summary in summaries]
    return [preference(prompt, texts[choice], texts[1 - choice])]


# --- trees ------------------------------------------------------------------------------------------------------


def _read_best_path(row: Mapping[str, Any]) -> list[Row]:
    """An OpenAssistant message tree (arXiv:2304.07327): the conversation along its best-ranked replies."""
    path: Messages = []
    node: Any = row["prompt"]
    while node:
        path.append(_turn(node))
        node = next(iter(_ranked(node)), None)
    while path and path[-1]["role"] != "assistant":
        path.pop()
    if not path:
        raise BadRow("no assistant turn to learn from in the tree")
    return [{"messages": messages_of(path, "prompt")}]


def _read_rankings(row: Mapping[str, Any]) -> list[Row]:
    """An OpenAssistant message tree: every two ranked answers to the same turn, the better one chosen."""
    pairs: list[Row] = []
    open_paths: list[tuple[Messages, Any]] = [([], row["prompt"])]
    while open_paths:
        before, node = open_paths.pop()
        path = [*before, _turn(node)]
        replies = _ranked(node)
        ranked = [reply for reply in replies if reply.get("rank") is not None and reply.get("role") == "assistant"]
        for index, better in enumerate(ranked):
            worse = [reply for reply in ranked[index + 1 :] if reply["rank"] > better["rank"]]
            pairs += [preference(path, [_turn(better)], [_turn(reply)]) for reply in worse]
        open_paths += [(path, reply) for reply in reversed(replies)]
    return pairs


def _turn(node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping) or "text" not in node or "role" not in node:
        raise BadRow("`prompt` is no tree of messages with text, role and replies")
    return {"role": "user" if node["role"] == "prompter" else node["role"], "content": node["text"]}


def _ranked(node: Mapping[str, Any]) -> list[Any]:
    """The replies that still stand, the best first; where nobody ranked, those that were answered, in their order."""
    replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    return sorted(
        replies,
        key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0, not reply.get("replies")),
    )


def _gather_trees(raws: Iterator[Raw]) -> Iterator[Raw]:
    """OpenAssistant's flat messages into their trees; a tree stands where its first message stands."""
    nodes: dict[str, dict[str, Any]] = {}
    roots: list[tuple[str, dict[str, Any]]] = []
    children: list[tuple[str, dict[str, Any]]] = []
    for where, raw in raws:
        if isinstance(raw, BadLine) or not isinstance(raw.get("message_id"), str):
            yield where, raw if isinstance(raw, BadLine) else BadLine("`message_id` is missing")
            continue
        node = nodes[raw["message_id"]] = {**raw, "replies": []}
        (children if raw.get("parent_id") else roots).append((where, node))
    for where, node in children:
        if node["parent_id"] in nodes:
            nodes[node["parent_id"]]["replies"].append(node)
        else:
            yield where, BadLine(f"its parent message {node['parent_id']!r} is not there")
    for where, node in roots:
        yield where, {"message_tree_id": node["message_id"], "prompt": node}


# --- the table --------------------------------------------------------------------------------------------------


def _layout(
    name: str,
    columns: str,
    demonstration: Reader | None = None,
    pairs: Reader | None = None,
    *,
    optional: str = "",
    gather: Callable[[Iterator[Raw]], Iterator[Raw]] | None = None,
) -> Layout:
    asks = _prompts_of(demonstration or pairs) if demonstration or pairs else _read_prompt
    kinds = ((DEMONSTRATION, demonstration), (PREFERENCE, pairs), (PROMPT, asks))
    readers = {kind: reader for kind, reader in kinds if reader}
    return Layout(name, tuple(columns.split()), readers, frozenset(optional.split()), gather)


def _prompts_of(read: Reader | None) -> Reader:
    """A reader of what the rows of another reader ask."""

    def ask(row: Mapping[str, Any]) -> list[Row]:
        return [prompt_of(each) for each in (read(row) if read else [])]

    return ask


def _read_prompt(row: Mapping[str, Any]) -> list[Row]:
    """A prompt by itself: messages, or text, which is said to the assistant.

    A text that is to be continued is laid out as `text`, or stands before a completion.
    """
    if isinstance(row["prompt"], str):
        return [{"prompt": [as_user(text_of(row, "prompt"))]}]
    return [prompt_of({"messages": messages_of(row["prompt"], "prompt", answered=False), **kept_beside(row)})]


def _read_asked(row: Mapping[str, Any]) -> list[Row]:
    """The conversation of a row that need not be answered."""
    return [prompt_of({"messages": messages_of(row["messages"], "messages", answered=False), **kept_beside(row)})]


LAYOUTS: tuple[Layout, ...] = (
    _layout("prompt-completion", "prompt completion", _read_prompt_completion, optional="tools chat_template_kwargs"),
    _layout("messages", "messages", _read_messages, optional="system tools chat_template_kwargs"),
    _layout("oasst-trees", "message_tree_id prompt", _read_best_path, _read_rankings),
    _layout(
        "oasst-messages", "message_id parent_id role text", _read_best_path, _read_rankings, gather=_gather_trees
    ),
    _layout(
        "preference", "chosen rejected", _read_chosen, _read_preference,
        optional="prompt conversations margin tools chat_template_kwargs",
    ),
    _layout(
        "stack-exchange", "question response_j response_k",
        lambda row: [_chosen(pair) for pair in _read_stack_exchange(row)], _read_stack_exchange,
    ),
    _layout(
        "comparison", "info summaries choice",
        lambda row: [_chosen(pair) for pair in _read_comparison(row)], _read_comparison,
    ),
    _layout("alpaca", "instruction output", _ask("instruction", "output", context="input", system="system"),
            optional="input system history"),
    _layout("dolly", "instruction response", _ask("instruction", "response", context="context"), optional="context"),
    _layout("self-instruct", "instruction instances", _read_self_instruct),
    _layout("sharegpt", "conversations", _read_sharegpt, optional="system tools"),
    _layout("openorca", "question response", _ask("question", "response", system="system_prompt"),
            optional="system_prompt"),
    _layout("question-answer", "question answer", _ask("question", "answer")),
    _layout(PROMPT_RESPONSE, "prompt response", _ask("prompt", "response", system="system"), optional="system"),
    _layout("problem-solution", "problem solution", _ask("problem", "solution")),
    _layout("query-response", "query response", _ask("query", "response")),
    _layout("inputs-targets", "inputs targets", _ask("inputs", "targets")),
    _layout("text", "text", _read_text),
    Layout("open-messages", ("messages",), {PROMPT: _read_asked}),
    Layout("instruction", ("instruction",), {PROMPT: lambda row: [_ask_only(row, "instruction", "input", "context")]}),
    Layout("question", ("question",), {PROMPT: lambda row: [_ask_only(row, "question")]}),
    _layout("prompt", "prompt"),
)  # fmt: skip
"""In the order they are tried: of two that read a sample alike, the first is taken."""


def find_layout(sample: Sequence[Mapping[str, Any]], kind: str, *, where: str, name: str | None = None) -> Layout:
    """The layout of a source: the one whose columns are there and that reads most rows of the sample.

    Args:
        sample: The first rows.
        kind: The kind of row that is wanted: "demonstration", "preference" or "prompt".
        where: The file, for the error.
        name: The layout that the recipe names, which needs no telling.

    Raises:
        DataError: when none fits; it names the columns seen and the columns looked for.
    """
    able = [layout for layout in LAYOUTS if kind in layout.readers and name in (None, layout.name)]
    if not able:
        raise DataError(f"the layout `{name}` holds no {kind} rows", where=where)
    fitting = [layout for layout in able if any(layout.fits(row) for row in sample)]
    if fitting:
        return max(fitting, key=lambda layout: sum(_reads(layout, row, kind) for row in sample))
    seen = ", ".join(sorted({str(column) for row in sample for column in row})) or "(none)"
    if name is not None:
        lacking = ", ".join(able[0].columns)
        raise DataError(f"the layout `{name}` needs the columns {lacking}; there are {seen}", where=where)
    known = "; ".join(" + ".join(layout.columns) for layout in able)
    example = "prompt: …, completion: …" if kind == DEMONSTRATION else "prompt: …, chosen: …, rejected: …"
    raise DataError(
        f"no known layout has the columns {seen}",
        where=where,
        hint=f"say which is which, such as `columns: {{{example}}}`; known are {known}",
    )


def _reads(layout: Layout, row: Mapping[str, Any], kind: str) -> bool:
    if not layout.fits(row):
        return False
    if layout.gather:
        return True
    try:
        return bool(layout.readers[kind](row))
    except BadRow:
        return False


def read_row(layout: Layout, row: Mapping[str, Any], kind: str) -> list[Row]:
    """The rows that a raw row holds.

    Raises:
        BadRow: when it is not laid out like the others of its source, or holds something unusable.
    """
    missing = [] if layout.gather else [column for column in layout.columns if column not in row]
    if missing:
        other = next((each.name for each in LAYOUTS if kind in each.readers and each.fits(row)), None)
        laid_out = f": it is laid out as {other}, the rows before it as {layout.name}" if other else ""
        columns, are = ("columns", "are") if len(missing) > 1 else ("column", "is")
        raise BadRow(f"the {columns} {', '.join(missing)} of {layout.name} {are} missing{laid_out}")
    return layout.readers[kind](row)

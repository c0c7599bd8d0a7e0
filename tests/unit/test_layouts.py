"""Public layouts are told, and read into the shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rlhf_cli.columns import choose_columns
from rlhf_cli.errors import DataError
from rlhf_cli.files import BadLine
from rlhf_cli.layouts import LAYOUTS, Layout, find_layout, read_row
from rlhf_cli.rows import DEMONSTRATION, PREFERENCE, PROMPT, BadRow, prompt_text, split_transcript

USER, ANSWER, WRONG = ({"role": role, "content": text} for role, text in (
    ("user", "2+2?"), ("assistant", "4"), ("assistant", "5"),
))  # fmt: skip
ASKED = {"prompt": [USER], "completion": [ANSWER]}
PAIR = {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]}


def read(row: dict[str, Any], kind: str = DEMONSTRATION) -> tuple[str, list[dict[str, Any]]]:
    before = copy.deepcopy(row)
    layout = find_layout([row], kind, where="file")
    rows = read_row(layout, row, kind)
    assert row == before
    return layout.name, rows


@pytest.mark.parametrize(
    ("row", "layout", "shape"),
    [
        ({"text": "a"}, "text", {"text": "a"}),
        ({"messages": [USER, ANSWER], "text": "x"}, "messages", {"messages": [USER, ANSWER]}),
        ({"messages": [USER, ANSWER], "prompt": "x", "prompt_id": "y"}, "messages", {"messages": [USER, ANSWER]}),
        ({"prompt": "a", "completion": "b", "id": 1}, "prompt-completion", {"prompt": "a", "completion": "b"}),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt-completion", ASKED),
        ({"instruction": "Add", "input": "2+2", "output": "4"}, "alpaca",
         {"prompt": [{"role": "user", "content": "Add\n\n2+2"}], "completion": [ANSWER]}),
        ({"instruction": "2+2?", "input": "", "output": "4"}, "alpaca", ASKED),
        ({"instruction": "2+2?", "context": "", "response": "4", "category": "x"}, "dolly", ASKED),
        ({"question": "2+2?", "answer": "4"}, "question-answer", ASKED),
        ({"prompt": "2+2?", "response": "4"}, "prompt-response", ASKED),
        ({"problem": "2+2?", "solution": "4"}, "problem-solution", ASKED),
        ({"query": "2+2?", "response": "4"}, "query-response", ASKED),
        ({"inputs": "2+2?", "targets": "4"}, "inputs-targets", ASKED),
        ({"id": "x", "system_prompt": "Add.", "question": "2+2?", "response": "4"}, "openorca",
         {"prompt": [{"role": "system", "content": "Add."}, USER], "completion": [ANSWER]}),
        ({"messages": [{**USER, "name": None}, {**ANSWER, "tool_calls": None}], "tools": None}, "messages",
         {"messages": [USER, ANSWER]}),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "tools": [{}]},
         "messages", {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}],
                      "tools": [{}]}),
        ({"id": "x", "system": "Add.", "conversations": [{"from": "human", "value": "2+2?"},
                                                         {"from": "gpt", "value": "4"}]},
         "sharegpt", {"messages": [{"role": "system", "content": "Add."}, USER, ANSWER]}),
        ({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, "preference", {"prompt": "2+2=", "completion": "4"}),
        ({"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}, "preference",
         {"messages": [USER, ANSWER]}),
        ({"question": "2+2?", "response_j": "4", "response_k": "5", "qid": 1}, "stack-exchange", ASKED),
    ],
)  # fmt: skip
def test_demonstrations(row: dict[str, Any], layout: str, shape: dict[str, Any]) -> None:
    assert read(row) == (layout, [shape])


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, {"prompt": "2+2=", "chosen": "4", "rejected": "5"}),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]}, PAIR),
        ({"prompt": "2+2?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG], "score_chosen": 9}, PAIR),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WRONG]}, PAIR),
        ({"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}, PAIR),
        ({"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"},
          "rejected": {"from": "gpt", "value": "5"}}, PAIR),
        ({"question": "2+2?", "response_j": "4", "response_k": "5"}, PAIR),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG], "margin": 2}, {**PAIR, "margin": 2.0}),
    ],
)  # fmt: skip
def test_preferences(row: dict[str, Any], shape: dict[str, Any]) -> None:
    assert read(row, PREFERENCE)[1] == [shape]


def test_a_comparison_has_its_post_as_prompt_and_the_choice_decides() -> None:
    info = {"id": "t3", "post": "We quarrel.", "title": "Help", "subreddit": "advice"}
    row = {"info": info, "summaries": [{"text": " No."}, {"text": " They quarrel."}], "choice": 1, "worker": "w"}
    _, [pair] = read(row, PREFERENCE)
    assert pair["prompt"] == "SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: We quarrel.\n\nTL;DR:"
    assert (pair["chosen"], pair["rejected"]) == (" They quarrel.", " No.")
    assert read({**row, "choice": 0}, PREFERENCE)[1][0]["chosen"] == " No."
    with pytest.raises(BadRow, match="a `choice` of 0 or 1"):
        read({**row, "choice": 2}, PREFERENCE)


def test_self_instruct_gives_a_row_an_instance() -> None:
    row = {"instruction": "Add", "instances": [{"input": "2+2", "output": "4"}, {"input": "", "output": "What?"}]}
    _, rows = read(row)
    assert [prompt_text(each) for each in rows] == ["Add\n\n2+2", "Add"]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2+2?"}, [USER]),
        ({"text": "Two and"}, "Two and"),
        ({"prompt": [USER]}, [USER]),
        ({"messages": [USER, ANSWER]}, [USER]),
        ({"messages": [USER, ANSWER, USER]}, [USER, ANSWER, USER]),
        ({"prompt": "2+2=", "completion": "4"}, "2+2="),
        ({"instruction": "Add", "context": "2+2", "response": "4"}, [{"role": "user", "content": "Add\n\n2+2"}]),
        ({"instruction": "Add", "input": "2+2"}, [{"role": "user", "content": "Add\n\n2+2"}]),
        ({"question": "2+2?"}, [USER]),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, [USER]),
        ({"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}, [USER]),
        ({"instruction": "2+2?", "output": "4", "history": [["1+1?", "2"]], "system": "Add."},
         [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"},
          {"role": "assistant", "content": "2"}, USER]),
    ],
)  # fmt: skip
def test_prompts_of_any_layout(row: dict[str, Any], prompt: Any) -> None:
    assert [each["prompt"] for each in read(row, PROMPT)[1]] == [prompt]


def test_tools_may_be_json_in_text() -> None:
    row = {"messages": [USER, ANSWER], "tools": '[{"type": "function"}]'}
    assert read(row)[1][0]["tools"] == [{"type": "function"}]
    with pytest.raises(BadRow, match="`tools` is neither a list nor JSON"):
        read({**row, "tools": "[{"})


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant: b", ["a", "b"]),
        ("\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: e", ["a\n\nb", "c", "d", "e"]),
        ('Human: a\n\nAssistant: They say "Human: hi" and\nHuman: bye', ["a", 'They say "Human: hi" and\nHuman: bye']),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", ["a\n\nHuman: b", "c"]),
    ],
)
def test_transcripts_are_split_where_a_turn_really_starts(text: str, turns: list[str]) -> None:
    messages = split_transcript(text)
    assert [message["content"] for message in messages] == turns
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"][: len(turns)]


def node(name: str, text: str, role: str, rank: int | None = None, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "text": text, "role": role, "rank": rank, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "q",
    "prompt": node(
        "q", "2+2?", "prompter", None,
        node("b", "5", "assistant", 1),
        node("a", "4", "assistant", 0,
             node("c", "And 3+3?", "prompter", None, node("d", "6", "assistant")),
             node("e", "x", "prompter")),
        node("z", "none", "assistant", -1, deleted=True),
        node("w", "22", "assistant", 2),
    ),
}  # fmt: skip


def test_a_tree_gives_the_conversation_along_its_best_replies() -> None:
    _, [row] = read(TREE)
    assert [message["content"] for message in row["messages"]] == ["2+2?", "4", "And 3+3?", "6"]
    with pytest.raises(BadRow, match="no assistant turn"):
        read({"message_tree_id": "t", "prompt": node("q", "2+2?", "prompter")})


def test_a_tree_gives_every_two_ranked_answers() -> None:
    _, pairs = read(TREE, PREFERENCE)
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs] == [
        ("4", "5"), ("4", "22"), ("5", "22"),
    ]  # fmt: skip
    assert all(pair["prompt"] == [USER] for pair in pairs)


def flatten(tree: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    own = {key: value for key, value in tree.items() if key != "replies"}
    row = {**own, "parent_id": parent, "message_tree_id": "q"}
    return [row, *(each for reply in tree["replies"] for each in flatten(reply, tree["message_id"]))]


@pytest.mark.parametrize("turn_around", [False, True])
@pytest.mark.parametrize("kind", [DEMONSTRATION, PREFERENCE])
def test_flat_messages_give_what_their_tree_gives(kind: str, turn_around: bool) -> None:
    flat = flatten(TREE["prompt"])
    layout = find_layout(flat, kind, where="file")
    assert layout.name == "oasst-messages"
    order = [flat[0], *sorted(flat[1:], key=lambda row: row["message_id"], reverse=turn_around)]
    assert layout.gather
    raws = list(layout.gather(iter([(f"file:{n}", row) for n, row in enumerate(order, 1)])))
    assert [where for where, _ in raws] == ["file:1"]
    assert read_row(layout, raws[0][1], kind) == read(TREE, kind)[1]


def test_a_message_without_its_parent_is_bad() -> None:
    layout = find_layout(flatten(TREE["prompt"]), DEMONSTRATION, where="file")
    orphan = {**flatten(TREE["prompt"])[1], "parent_id": "gone"}
    assert layout.gather
    [(where, raw)] = layout.gather(iter([("file:7", orphan)]))
    assert where == "file:7"
    assert isinstance(raw, BadLine)
    assert "'gone' is not there" in str(raw)


def test_the_sample_decides_between_layouts_that_share_columns() -> None:
    """Here both fit by their columns, but the answers are texts, which conversations cannot be."""
    rows = [{"messages": "none", "question": "2+2?", "answer": "4"}] * 3
    assert find_layout(rows, DEMONSTRATION, where="file").name == "question-answer"


def test_the_recipe_overrules_the_detection() -> None:
    rows = [{"messages": [USER, ANSWER], "text": "Once"}]
    assert find_layout(rows, DEMONSTRATION, where="file").name == "messages"
    assert find_layout(rows, DEMONSTRATION, where="file", name="text").name == "text"
    with pytest.raises(DataError, match="the layout `text` holds no preference rows"):
        find_layout(rows, PREFERENCE, where="file", name="text")
    with pytest.raises(
        DataError, match="the layout `alpaca` needs the columns instruction, output; there are messages, text"
    ):
        find_layout(rows, DEMONSTRATION, where="file", name="alpaca")


def test_columns_are_chosen_by_name_or_path() -> None:
    row = {"q": "2+2?", "a": {"texts": ["4", "5"]}, "tools": [{}], "text": "x"}
    chosen = choose_columns(row, {"prompt": "q", "completion": "a.texts.0"})
    assert chosen == {"prompt": "2+2?", "completion": "4", "tools": [{}]}
    assert choose_columns(row, ["q", "nowhere"]) == {"q": "2+2?"}
    assert choose_columns({"a.b": 1, "a": {"b": 2}}, {"text": "a.b"}) == {"text": 1}
    assert choose_columns({"q": "x"}, {"prompt": "q", "system": "s"}) == {"prompt": "x"}
    with pytest.raises(BadRow, match=r"there is no column `a.texts.2`; there are a, q, text, tools"):
        choose_columns(row, {"prompt": "q", "completion": "a.texts.2"})


def test_a_row_of_another_layout_says_so() -> None:
    layout = find_layout([{"instruction": "a", "output": "b"}], DEMONSTRATION, where="file")
    with pytest.raises(
        BadRow, match="output of alpaca is missing: it is laid out as dolly, the rows before it as alpa"
    ):
        read_row(layout, {"instruction": "a", "response": "b"}, DEMONSTRATION)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " "}, "`text` is empty"),
        ({"text": 7}, "`text` must be text, got the number 7"),
        ({"text": "half \ud83d"}, "`text` holds half a character"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, r"`messages\[1\]` holds half a character"),
        ({"instruction": "a", "output": "b", "history": "x"}, "`history` must be a list of pairs"),
        ({"prompt": "a", "completion": [ANSWER]}, "must both be text or both be lists"),
        ({"prompt": "a", "completion": None}, "must both be text or both be lists"),
        ({"messages": []}, "must be a list of messages, got an empty list"),
        ({"messages": "hi"}, "must be a list of messages, got text"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {"role": "bot", "content": "4"}]}, "has the role 'bot'"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, r"`conversations\[0\]` has the role 'alien'"),
        ({"messages": [USER, {"role": "assistant"}]}, r"`messages\[1\]` has no text as content, got nothing"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"`messages\[1\]` is empty"),
        ({"messages": [USER, "4"]}, r"`messages\[1\]` must be a mapping"),
        ({"instruction": "Add", "input": 4, "output": "4"}, "`input` must be text"),
        ({"instruction": "", "input": "", "output": "4"}, "`instruction` is empty"),
        ({"chosen": "Just a text. Assistant: no", "rejected": "x"}, "does not start with"),
        ({"instruction": "Add", "instances": "x"}, "`instances` must be a list"),
    ],
)
def test_bad_rows_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "`rejected` is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "`rejected` must be text, got nothing"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [USER]}, "no assistant turn to learn from in `rejected`"),
        ({"chosen": [ANSWER], "rejected": [WRONG]}, "share no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"}, "`margin` must be a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "`margin` must be a number"),
    ],
)
def test_bad_preferences_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(row, PREFERENCE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_can_be_found_by_its_own_columns(layout: Layout) -> None:
    row = dict.fromkeys(layout.columns, "x")
    found = find_layout([row], next(iter(layout.readers)), where="file", name=layout.name)
    assert found is layout

"""What the loss sees, checked on the mask itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rlhf_cli.render import IGNORED_LABEL, TEMPLATE_FILE, Tokens, ensure_chat_template, make_renderer
from rlhf_cli.rows import BadRow

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does a bee do?"},
    {"role": "assistant", "content": "It buzzes."},
    {"role": "user", "content": "And a cow, what does a bee do?"},
    {"role": "assistant", "content": "It moos.\nLoudly."},
]
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}{{ m['role'] + ': ' + m['content'] + '\n' }}"
    "{% endif %}{% endfor %}"
)


@pytest.fixture
def chat(tiny_chat: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_chat)


@pytest.fixture
def base(tiny_base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_base)


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> list[str]:
    """The stretches of text that carry loss."""
    found: list[list[int]] = []
    inside = False
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        assert label in (token, IGNORED_LABEL)
        if label != IGNORED_LABEL:
            found = [*found[:-1], [*found[-1], token]] if inside else [*found, [token]]
        inside = label != IGNORED_LABEL
    return [str(tokenizer.decode(piece)) for piece in found]


def encode(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], **keys: Any) -> Tokens:
    return make_renderer(tokenizer, **{"assistant_only": True, "completion_only": None, **keys}).encode(row)


@pytest.mark.parametrize("template", [None, MARKED], ids=["turn by turn", "generation marks"])
def test_every_answer_and_its_end_carry_loss_and_nothing_else(
    chat: PreTrainedTokenizerBase, template: str | None
) -> None:
    chat.chat_template = template or chat.chat_template
    tokens = encode(chat, {"messages": CONVERSATION})
    assert pieces(chat, tokens) == ["It buzzes.<|im_end|>", "It moos.\nLoudly.<|im_end|>"]
    assert tokens.input_ids == chat.apply_chat_template(CONVERSATION)["input_ids"]


@pytest.mark.parametrize("template", [None, MARKED], ids=["turn by turn", "generation marks"])
def test_answers_inside_a_prompt_carry_no_loss(chat: PreTrainedTokenizerBase, template: str | None) -> None:
    chat.chat_template = template or chat.chat_template
    row = {"prompt": CONVERSATION[:4], "completion": CONVERSATION[4:]}
    assert pieces(chat, encode(chat, row)) == ["It moos.\nLoudly.<|im_end|>"]
    assert pieces(chat, encode(chat, row, completion_only=False)) == [
        "It buzzes.<|im_end|>",
        "It moos.\nLoudly.<|im_end|>",
    ]
    # TRL's meaning of a completion: everything behind the prompt, what the template adds included.
    (whole,) = pieces(chat, encode(chat, row, assistant_only=False))
    assert whole == "It moos.\nLoudly.<|im_end|>\n"


def test_an_answer_that_comes_first_carries_loss(chat: PreTrainedTokenizerBase) -> None:
    row = {"messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hello!"}]}
    assert pieces(chat, encode(chat, row)) == ["Hello!<|im_end|>"]


def test_a_short_answer_that_comes_first_is_not_found_in_its_header(chat: PreTrainedTokenizerBase) -> None:
    """`a` also stands in the word assistant."""
    row = {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}
    assert pieces(chat, encode(chat, row)) == ["a<|im_end|>"]


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def test_a_row_that_the_template_refuses_is_bad(chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = REFUSING + chat.chat_template
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(BadRow, match="the chat template refuses it: System role not supported"):
        encode(chat, {"messages": [system, *CONVERSATION[1:]]})


def test_assistant_only_loss_false_brings_back_all_tokens(chat: PreTrainedTokenizerBase) -> None:
    tokens = encode(chat, {"messages": CONVERSATION}, assistant_only=False)
    assert tokens.labels == tokens.input_ids


def test_text_carries_loss_throughout_and_ends(base: PreTrainedTokenizerBase) -> None:
    ensure_chat_template(base)
    tokens = encode(base, {"text": "A bee buzzes."})
    assert tokens.labels == tokens.input_ids
    assert tokens.input_ids[-1] == base.eos_token_id
    assert encode(base, {"text": "A bee buzzes.<|end|>"}) == tokens


def test_a_plain_completion_carries_loss_with_its_end(base: PreTrainedTokenizerBase) -> None:
    ensure_chat_template(base)
    tokens = encode(base, {"prompt": "A bee", "completion": " buzzes."})
    assert pieces(base, tokens) == [" buzzes.<|end|>"]


def test_a_template_that_forgets_turns_is_refused(chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = FORGETFUL
    with pytest.raises(BadRow, match="renders earlier turns differently"):
        encode(chat, {"messages": CONVERSATION})


def test_templates_that_trl_knows_use_its_marked_twin(chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    tokens = encode(chat, {"messages": CONVERSATION})
    assert [piece.count("<|im_end|>") for piece in pieces(chat, tokens)] == [1, 1]
    assert "bee do?" not in "".join(pieces(chat, tokens))


# --- our template ---------------------------------------------------------------------------------------------


def test_a_base_model_gets_our_template_and_no_new_vocabulary(base: PreTrainedTokenizerBase) -> None:
    before = len(base)
    assert ensure_chat_template(base)
    assert not ensure_chat_template(base)  # it has one now
    tokens = encode(base, {"messages": CONVERSATION})
    assert len(base) == before
    assert pieces(base, tokens) == ["It buzzes.<|end|>", "It moos.\nLoudly.<|end|>"]


def test_our_template_keeps_what_it_has_rendered(base: PreTrainedTokenizerBase) -> None:
    ensure_chat_template(base)
    texts = [base.apply_chat_template(CONVERSATION[:n], tokenize=False) for n in range(1, 6)]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))
    asked = base.apply_chat_template(CONVERSATION[:4], tokenize=False, add_generation_prompt=True)
    assert texts[4].startswith(asked)
    assert texts[4][len(asked) :].startswith("It moos.")


def test_our_template_does_not_double_bos(base: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    base.bos_token = "<|pad|>"
    base._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", pair="<|pad|> $A $B", special_tokens=[("<|pad|>", base.bos_token_id)]
    )
    assert base("a")["input_ids"][0] == base.bos_token_id
    ensure_chat_template(base)
    ids = encode(base, {"messages": CONVERSATION}).input_ids
    assert ids[0] == base.bos_token_id
    assert ids.count(base.bos_token_id) == 1


def test_our_template_file_is_what_is_given(base: PreTrainedTokenizerBase) -> None:
    ensure_chat_template(base)
    assert str(base.chat_template).endswith(TEMPLATE_FILE.read_text())


# --- against TRL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"text": "A bee buzzes."},
        {"messages": CONVERSATION},
        {"prompt": "A bee", "completion": " buzzes."},
        {"prompt": CONVERSATION[:4], "completion": CONVERSATION[4:]},
    ],
    ids=["text", "messages", "prompt and completion", "conversational prompt and completion"],
)
@pytest.mark.filterwarnings("ignore")
def test_tokens_and_labels_are_those_of_trl(row: dict[str, Any], tiny_chat: Path, tmp_path: Path) -> None:
    """With `assistant_only_loss: false`, we must give what SFTTrainer makes of the same row."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    arguments = SFTConfig(str(tmp_path), use_cpu=True, report_to="none")
    trainer = SFTTrainer(str(tiny_chat), arguments, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    theirs = trainer.train_dataset[0]
    ours = encode(AutoTokenizer.from_pretrained(tiny_chat), row, assistant_only=False)
    assert ours.input_ids == theirs["input_ids"]
    assert ours.labels == theirs["labels"]

"""What `check` tells of preferences, and what becomes of those that compare nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_cli.tokenizer import _never_last
from tests.integration.test_processes import TWO
from tests.integration.test_resume import card, weights

PAIRS = [
    {"prompt": "2+2?", "chosen": "four, surely", "rejected": "five"},
    {"prompt": "2+2?", "chosen": "five", "rejected": "four, surely"},
    {"prompt": "3+1?", "chosen": "four", "rejected": "four"},
    {"prompt": "5+1?", "chosen": "six", "rejected": "nine", "margin": 0},
    {"prompt": "6+1?", "chosen": "seven", "rejected": "ten", "score_chosen": 3, "score_rejected": 3},
    {"prompt": "7+1?", "chosen": "eight", "rejected": "twelve"},
    {"prompt": "8+1?", "chosen": "nine, I think", "rejected": "ten"},
]


@pytest.fixture
def odd(tmp_path: Path) -> str:
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return str(path)


def findings(outcome: Any) -> dict[str, int]:
    assert outcome.code == 0, outcome.err
    data = json.loads(outcome.out)["recipes"][0]["data"]
    return {finding["name"]: finding["count"] for finding in data["findings"]}


def test_ties_contradictions_and_the_length_rule_are_told(
    odd: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path]
) -> None:
    recipe = str(write_recipe(dataset_name=odd))
    for method in ("dpo", "train-reward"):
        outcome = rlhf("check", recipe, "--method", method, "--rows", "--json")
        found = findings(outcome)
        assert found["pairs whose two answers are the same"] == 1
        assert found["ties"] == 2
        assert found["pairs that contradict another"] == 1
        answers = json.loads(outcome.out)["recipes"][0]["data"]["answers"]
        # Chosen longer in rows 1, 5 and 7, equal in row 3.
        assert (answers["chosen_longer"], answers["equal"]) == (pytest.approx(3 / 7), pytest.approx(1 / 7))
        assert answers["longer_wins"] == pytest.approx(3.5 / 7)
    shown = rlhf("check", recipe, "--method", "dpo", "--rows").out
    assert "the rule that the longer wins is right in 50%" in shown
    assert "odd.jsonl:2): the answers of an earlier pair, the other way round" in shown


@pytest.mark.parametrize("method", ["dpo", "train-reward"])
def test_ties_are_left_out_where_that_is_asked(
    method: str, odd: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path]
) -> None:
    recipe = str(write_recipe(dataset_name=odd))
    for asked, rows in (("false", 7), ("true", 4)):
        outcome = rlhf(method, recipe, "--drop_ties", asked, "--dry-run", "--json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["train"]["read"] == rows
    checked = str(write_recipe("ties.yaml", dataset_name=odd, drop_ties=True))
    assert findings(rlhf("check", checked, "--method", method, "--rows", "--json"))["ties left out"] == 3


def test_the_first_pair_is_shown_as_it_is_read(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tiny_chat: Path, pairs_file: Path
) -> None:
    first = json.loads(pairs_file.read_text().splitlines()[0])
    chosen = first["chosen"][0]["content"]
    recipe = str(write_pairs_recipe(model_name_or_path=str(tiny_chat)))
    compared = rlhf("check", recipe, "--method", "dpo", "--data").out
    assert f"⟦{chosen}<|im_end|>⟧" in compared
    assert f"⟦{first['rejected'][0]['content']}<|im_end|>⟧" in compared
    scored = rlhf("check", recipe, "--method", "train-reward", "--data").out
    assert f"{chosen}<|im_end|>⟦\n⟧" in scored
    assert "on one score an answer, read at its last token" in scored


def test_what_max_length_takes_away_is_told(
    odd: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path]
) -> None:
    rows = [{"prompt": "x " * 5, "chosen": "same " * 9 + "end", "rejected": "same " * 9 + "other"}, *PAIRS]
    Path(odd).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = str(write_recipe(dataset_name=odd, max_length=24))
    found = rlhf("check", recipe, "--method", "train-reward", "--data", "--json")
    tokens = json.loads(found.out)["recipes"][0]["data"]["tokens"]
    assert {each["name"]: each["count"] for each in tokens["findings"]}["pairs longer than max_length"] == 1
    assert tokens["counts"]["train"]["used"] == 7
    found = rlhf("check", recipe, "--method", "dpo", "--data", "--json")
    tokens = json.loads(found.out)["recipes"][0]["data"]["tokens"]
    names = {each["name"]: each["count"] for each in tokens["findings"]}
    assert names["truncated rows"] == 1
    assert names["pairs whose answers are the same within max_length"] == 2  # and the one that always is


@pytest.mark.parametrize(
    ("special", "template", "chosen"),
    [
        (["<|im_end|>", "<|im_start|>", "<|other|>"], "<|im_start|><|im_end|>", "<|other|>"),
        (["<|im_end|>", "<|reserved|>", "<|finetune_right_pad_id|>"], "<|im_end|>", "<|finetune_right_pad_id|>"),
        (["<|im_end|>"], "<|im_end|>", "\u00ff"),
    ],
)
def test_a_reward_model_pads_with_what_ends_no_text(
    special: list[str], template: str, chosen: str, tiny_base: Path, tmp_path: Path
) -> None:
    """One made for padding, one that the template does not write, or a byte that no UTF-8 text has."""
    parts = json.loads((tiny_base / "tokenizer.json").read_text())
    parts["added_tokens"] = []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token=special[0], chat_template=template,
        extra_special_tokens=special[1:],
    )  # fmt: skip
    found = next(_never_last(tokenizer))
    assert found == chosen
    texts = ["ÿ", "õ", "naïve\u00ff", "a b\n", "日本", "\U0010ffff"]
    assert all(tokenizer.convert_tokens_to_ids(found) not in tokenizer(text)["input_ids"] for text in texts)


def test_smollm2s_tokenizer_is_padded_apart(
    tiny_chat: Path, rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Pad = eos, as SmolLM2 has it: the folder that comes out has another, the same in its configuration."""
    assert AutoTokenizer.from_pretrained(tiny_chat).pad_token == "<|im_end|>"
    assert rlhf("train-reward", str(write_pairs_recipe(model_name_or_path=str(tiny_chat), max_steps=1))).code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.pad_token != tokenizer.eos_token
    assert json.loads((tmp_path / "run/config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id


@pytest.mark.parametrize("method", ["train-reward", "dpo"])
def test_two_processes_train_and_grade_as_one_does(
    method: str, rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_pairs_recipe(max_steps=3, bf16=False, optim="sgd", learning_rate=0.1, test_split_size=0.25, use_cpu=True)
    two = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", method, "pairs.yaml", "--num-processes", "2", "--output_dir", "two"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=TWO,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    one = rlhf(method, "pairs.yaml", "--gradient_accumulation_steps", "2", "--output_dir", "one")
    assert one.code == 0, one.err
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    graded = [card(tmp_path / name) for name in ("one", "two")]
    if method == "train-reward":
        assert graded[0]["numbers"]["accuracy"] == graded[1]["numbers"]["accuracy"]
        assert two.stderr.count("report card of") == 1

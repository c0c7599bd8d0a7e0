"""Everything a user can get wrong: the exit code, the whole message, and nothing lost."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.golden_files import assert_golden

GOOD = {"prompt": "2+2?", "completion": "4"}


@dataclass
class World:
    """What a case may change before the command runs."""

    folder: Path
    model: Path
    """A copy of a model folder, to be broken."""
    write_recipe: Callable[..., Path]

    def recipe(self, **keys: Any) -> list[str]:
        self.write_recipe(**keys)
        return ["sft", "recipe.yaml"]

    def text(self, text: str) -> list[str]:
        (self.folder / "recipe.yaml").write_text(text)
        return ["sft", "recipe.yaml"]

    def with_line(self, line: str, **keys: Any) -> list[str]:
        path = self.write_recipe(**{"report": None, **keys})
        path.write_text(path.read_text() + line + "\n")
        return ["sft", "recipe.yaml"]

    def rows(self, *rows: Any, name: str = "bad.jsonl", **keys: Any) -> list[str]:
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (self.folder / name).write_text(text + "\n")
        return self.recipe(dataset_name=name, **keys)

    def pairs(self, *rows: Any, command: str = "train-reward", **keys: Any) -> list[str]:
        """Preferences, each given as changes of a good one; a key of None is left out."""
        made = [{key: item for key, item in {**GOOD_PAIR, **row}.items() if item is not ...} for row in rows]
        return [command, *self.rows(*made, **keys)[1:]]

    def ppo(self, *prompts: str, function: str = "return [0.0] * len(prompts)", **keys: Any) -> list[str]:
        """Prompts, and a reward function with this body."""
        (self.folder / "rewards.py").write_text(f"def reward(prompts, **_):\n    {function}\n")
        settings = {
            "reward_funcs": "rewards.py:reward", "max_length": None, "response_length": 4, "max_steps": None,
            "total_episodes": 2, "bf16": False, **keys,
        }  # fmt: skip
        rows = [{"prompt": prompt} for prompt in prompts or ("2+2?",)]
        return ["ppo", *self.rows(*rows, **settings)[1:]]

    def broken_model(self, **files: Any) -> list[str]:
        """Remove (None) or overwrite files of the model folder."""
        for name, content in files.items():
            path = self.model / name.replace("__", ".")
            if content is None:
                path.unlink()
            else:
                path.write_text(content)
        return self.recipe(model_name_or_path="model")

    def messages(self, *messages: Any) -> list[str]:
        return self.rows(GOOD_CHAT, {"messages": list(messages)})


GOOD_PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
GOOD_CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}

RECIPES: dict[str, Callable[[World], list[str]]] = {
    "missing-file": lambda w: ["sft", "nowhere.yaml"],
    "not-yaml": lambda w: w.text("learning_rate: [1e-5\noutput_dir: x\n"),
    "empty": lambda w: w.text("# nothing yet\n"),
    "a-list": lambda w: w.text("- learning_rate\n"),
    "duplicate-key": lambda w: w.with_line("max_steps: 9"),
    "unknown-key-near-miss": lambda w: w.with_line("learning_rat: 1e-5"),
    "unknown-key-synonym": lambda w: w.with_line("lr: 1e-5"),
    "many-problems": lambda w: w.with_line("lr: 1e-5\nlora_rank: 8\npacking: maybe\nseed: -1\nwarmup_ratio: 0.1"),
    "wrong-type": lambda w: w.recipe(per_device_train_batch_size="two"),
    "out-of-range": lambda w: w.recipe(use_peft=True, lora_r=-4),
    "enum-typo": lambda w: w.with_line("lr_scheduler_type: cosin"),
    "conflicting-keys": lambda w: w.recipe(load_in_4bit=True),
    "missing-required-key": lambda w: w.recipe(model_name_or_path=None, dataset_name=None),
    "extends-cycle": lambda w: w.write_recipe("base.yaml", extends="recipe.yaml") and w.recipe(extends="base.yaml"),
    "extends-nothing": lambda w: w.recipe(extends="base.yaml"),
    "unknown-tag": lambda w: w.with_line("run_name: !python/object:os.system x"),
    "other-method": lambda w: w.recipe(method="ppo"),
    "unknown-override": lambda w: [*w.recipe(), "--learnin_rate", "1e-5"],
    "no-recipe": lambda w: ["sft", "--learning_rate", "1e-5"],
    "resume-and-overwrite": lambda w: [*w.recipe(), "--resume", "--overwrite"],
    "columns-unknown": lambda w: w.recipe(columns={"promt": "frage"}),
    "layout-unknown": lambda w: w.recipe(layout="alpacca"),
    "mixture-key": lambda w: w.recipe(dataset_name=None, datasets=[{"path": "a", "weight": 1}]),
}
DATA: dict[str, Callable[[World], list[str]]] = {
    "data-missing": lambda w: w.recipe(dataset_name="row.jsonl"),
    "data-empty": lambda w: w.rows(""),
    "data-truncated-line": lambda w: w.rows(GOOD, json.dumps(GOOD)[:-9]),
    "data-wrong-columns": lambda w: w.rows({"frage": "2+2?", "antwort": "4"}),
    "data-mixed-types": lambda w: w.rows(GOOD, {"prompt": "3+3?", "completion": 6}, {"prompt": [], "completion": "x"}),
    "data-mixed-layouts": lambda w: w.rows(GOOD, {"instruction": "3+3?", "output": "6"}),
    "data-csv-named-jsonl": lambda w: w.rows("prompt,completion", "2+2?,4"),
    "data-wrong-encoding": lambda w: (
        (w.folder / "bad.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n'),
        w.recipe(dataset_name="bad.jsonl"),
    )[1],
    "data-null-bytes": lambda w: w.rows(GOOD, json.dumps(GOOD).replace("2", "\0")),
    "data-wrong-split": lambda w: (
        (w.folder / "d").mkdir(),
        (w.folder / "d/train.jsonl").touch(),
        w.recipe(dataset_name="./d", dataset_train_split="trian"),
    )[2],
    "data-columns-nowhere": lambda w: w.rows(
        {"frage": "2+2?", "antwort": "4"}, columns={"prompt": "frage", "completion": "antwurt"}
    ),
    "data-layout-that-does-not-fit": lambda w: w.rows(GOOD, layout="sharegpt"),
    "data-escape-codes": lambda w: w.rows({"\x1b[2J": "x"}),
    "data-not-an-object": lambda w: w.rows(GOOD, "[1, 2]"),
    "data-array-cut-off": lambda w: w.rows('[{"prompt": "a", "completion": "b"},', name="bad.json"),
    "data-csv-short-row": lambda w: w.rows("prompt,completion", "a,b", "c", name="bad.csv"),
    "data-not-parquet": lambda w: w.rows("PAR", name="bad.parquet"),
    "data-unknown-suffix": lambda w: w.rows("a", name="bad.txt"),
    "data-folder-without-data": lambda w: ((w.folder / "d").mkdir(), w.recipe(dataset_name="./d"))[1],
    "data-no-test-split": lambda w: w.recipe(eval_strategy="steps"),
    "data-message-without-content": lambda w: w.messages({"role": "user"}, {"role": "assistant", "content": "4"}),
    "data-unknown-role": lambda w: w.messages({"role": "oracle", "content": "2+2?"}),
    "data-no-assistant-turn": lambda w: w.messages({"role": "user", "content": "2+2?"}),
    "data-column-missing-later": lambda w: w.rows(GOOD, {"prompt": "3+3?"}),
    "data-all-masked": lambda w: w.rows({"prompt": "a " * 400, "completion": "b"}),
    "data-hub-offline": lambda w: w.recipe(dataset_name="trl-lib/Capybara"),
    "data-split-by-missing": lambda w: w.recipe(test_split_size=0.2, split_by="tree"),
}
MODELS: dict[str, Callable[[World], list[str]]] = {
    "model-missing": lambda w: w.recipe(model_name_or_path="./nowhere"),
    "model-is-a-file": lambda w: w.recipe(model_name_or_path="rows.jsonl"),
    "model-without-weights": lambda w: w.broken_model(model__safetensors=None),
    "model-pickled": lambda w: ((w.model / "pytorch_model.bin").touch(), w.broken_model(model__safetensors=None))[1],
    "model-without-config": lambda w: w.broken_model(config__json=None),
    "model-without-tokenizer": lambda w: w.broken_model(tokenizer__json=None, tokenizer_config__json=None),
    "model-corrupt-weights": lambda w: w.broken_model(model__safetensors="not weights"),
    "model-corrupt-config": lambda w: w.broken_model(config__json='{"model_type": '),
    "model-unknown-type": lambda w: w.broken_model(config__json='{"model_type": "lama"}'),
    "model-hub-offline": lambda w: w.recipe(model_name_or_path="Qwen/Qwen3-0.6B"),
    "model-unknown-eos": lambda w: w.recipe(eos_token="<|nope|>"),
    "template-missing": lambda w: w.recipe(chat_template_path="chat.jinja"),
}
TURN = {"role": "user", "content": "2+2?"}
FOUR, FIVE = ({"role": "assistant", "content": text} for text in "45")
PAIRS: dict[str, Callable[[World], list[str]]] = {
    "pairs-of-demonstrations": lambda w: ["dpo", *w.rows(GOOD)[1:]],
    "pairs-rejected-missing": lambda w: w.pairs({}, {"rejected": ...}),
    "pairs-null": lambda w: w.pairs({"rejected": None}, {"chosen": " "}),
    "pairs-all-the-same": lambda w: w.pairs({"rejected": "4"}, {"prompt": "3+1?", "rejected": "4"}),
    "pairs-another-prompt-inside": lambda w: w.pairs(
        {"prompt": [{**TURN, "content": "3+1?"}], "chosen": [TURN, FOUR], "rejected": [TURN, FIVE]}
    ),
    "pairs-no-prompt-shared": lambda w: w.pairs({"prompt": ..., "chosen": [FOUR], "rejected": [FIVE]}),
    "pairs-text-and-messages": lambda w: w.pairs(
        {"rejected": [FIVE]}, {"prompt": [TURN], "chosen": "4", "rejected": [FIVE]}
    ),
    "pairs-margin-in-words": lambda w: w.pairs({"margin": "large"}, {"margin": True}),
    "pairs-too-long": lambda w: w.pairs({"prompt": "a " * 200}),
    "pairs-prompt-too-long": lambda w: w.pairs({"prompt": "a " * 200}, command="dpo"),
}
PREFERENCE_RECIPES: dict[str, Callable[[World], list[str]]] = {
    "dpo-beta": lambda w: w.pairs({}, command="dpo", beta=-0.1),
    "dpo-unknown-loss": lambda w: w.pairs({}, command="dpo", loss_type="sigmoyd"),
    "dpo-unknown-losses": lambda w: w.pairs({}, command="dpo", loss_type=["sigmoid", "sfft"]),
    "dpo-weights-of-losses": lambda w: w.pairs({}, command="dpo", loss_type=["sigmoid", "sft"], loss_weights=[1.0]),
    "dpo-moving-reference-kept": lambda w: w.pairs(
        {}, command="dpo", sync_ref_model=True, precompute_ref_log_probs=True
    ),
    "reward-ensemble-of-full-weights": lambda w: w.pairs({}, ensemble_size=3),
    "reward-ensemble-of-one": lambda w: w.pairs({}, ensemble_size=1, use_peft=True),
    "reward-padding-with-the-end": lambda w: w.pairs({}, pad_token="<|end|>"),
    "reward-key-of-sft": lambda w: w.pairs({}, packing=True),
}
PPO: dict[str, Callable[[World], list[str]]] = {
    "ppo-temperature-0": lambda w: w.ppo(temperature=0),
    "ppo-negative-kl": lambda w: w.ppo(kl_coef=-0.1),
    "ppo-no-reward": lambda w: w.ppo(reward_funcs=None),
    "ppo-top-p": lambda w: w.ppo(top_p=0.9),
    "ppo-k3": lambda w: w.ppo(kl_estimator="k3"),
    "ppo-old-batch-size": lambda w: w.ppo(mini_batch_size=4, init_kl_coef=0.1),
    "ppo-critic-in-4-bits": lambda w: w.ppo(value_model="separate", use_peft=True, load_in_4bit=True),
    "ppo-no-such-file": lambda w: w.ppo(reward_funcs="nowhere.py:f"),
    "ppo-no-such-function": lambda w: w.ppo(reward_funcs="rewards.py:rewards"),
    "ppo-function-raises": lambda w: w.ppo(function="return [1 / 0]"),
    "ppo-too-few-rewards": lambda w: w.ppo(function="return [1.0]"),
    "ppo-reward-nan": lambda w: w.ppo(function="return [float('nan')] * len(prompts)"),
    "ppo-reward-in-words": lambda w: w.ppo(function="return ['good'] * len(prompts)"),
    "ppo-weights-of-rewards": lambda w: w.ppo(reward_weights=[1.0, 2.0]),
    "ppo-reward-by-a-policy": lambda w: w.ppo(reward_funcs=None, reward_model_path="model"),
    "ppo-no-such-reward-model": lambda w: w.ppo(reward_funcs=None, reward_model_path="./nowhere"),
    "ppo-adapter-on-the-head": lambda w: w.ppo(use_peft=True, lora_target_modules=["lm_head", "q_proj"]),
}
PPO_DATA: dict[str, Callable[[World], list[str]]] = {
    "ppo-prompts-too-long": lambda w: w.ppo("a " * 400, "b " * 300, response_length=400),
    "ppo-empty-prompt": lambda w: w.ppo("2+2?", " "),
}
OUTPUT: dict[str, Callable[[World], list[str]]] = {
    "output-not-empty": lambda w: (_occupy(w, "notes.txt"), w.recipe())[1],
    "output-holds-no-run-to-move": lambda w: (_occupy(w, "notes.txt"), [*w.recipe(), "--overwrite"])[1],
    "output-holds-no-run-to-resume": lambda w: (_occupy(w, "notes.txt"), [*w.recipe(), "--resume"])[1],
    "output-is-a-file": lambda w: ((w.folder / "run").write_text("x"), w.recipe())[1],
    "output-unwritable": lambda w: w.recipe(output_dir="/proc/run"),
}


def _occupy(world: World, name: str) -> None:
    (world.folder / "run").mkdir()
    (world.folder / "run" / name).write_text("mine")


def _snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


EXIT_CODES = {
    **dict.fromkeys(RECIPES, 2),
    **dict.fromkeys(DATA, 4),
    "data-hub-offline": 5,
    **dict.fromkeys(MODELS, 2),
    "model-hub-offline": 5,
    **dict.fromkeys(PAIRS, 4),
    **dict.fromkeys(PREFERENCE_RECIPES, 2),
    **dict.fromkeys(PPO, 2),
    **dict.fromkeys(PPO_DATA, 4),
    **dict.fromkeys(OUTPUT, 2),
    "output-unwritable": 5,
}


@pytest.mark.parametrize("case", EXIT_CODES)
def test_bad_input_is_named_and_loses_nothing(
    case: str, rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "model")
    world = World(tmp_path, tmp_path / "model", write_recipe)
    arguments = {**RECIPES, **DATA, **MODELS, **PAIRS, **PREFERENCE_RECIPES, **PPO, **PPO_DATA, **OUTPUT}[case](world)
    before = _snapshot(tmp_path)
    outcome = rlhf(*arguments)
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    # What a run says of the machine it is on is not part of the message.
    message = outcome.err[outcome.err.index("TRL\n") + 4 :] if "loading torch" in outcome.err else outcome.err
    message = message[message.index("error:") :] if "machine  " in message else message
    assert_golden(f"errors/{case}.txt", message, folder=tmp_path)
    assert outcome.code == EXIT_CODES[case], outcome.err
    after = _snapshot(tmp_path)
    assert {name: after.get(name) for name in before} == before
    # A run refused while loading its model leaves its record, and nothing else.
    assert all(name.startswith("run/rlhf/") for name in after.keys() - before.keys())


def test_a_corrupt_gzip_file_is_named(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    packed = gzip.compress(b"".join(json.dumps({**GOOD, "n": n}).encode() + b"\n" for n in range(500)))
    (tmp_path / "rows.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    outcome = rlhf("sft", str(write_recipe(dataset_name="rows.jsonl.gz")))
    assert outcome.code == 4
    assert "rows.jsonl.gz: cannot read the file" in outcome.err

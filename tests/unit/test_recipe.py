"""Reading, inheriting, overriding and checking recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.methods import METHODS
from rlhf_cli.recipe import Recipe, apply_environment, parse_value, read_recipe
from rlhf_cli.renames import IGNORED, RENAMED, SYNONYMS, TRANSLATED
from rlhf_cli.schema import FOLDER, load_schema, method_names
from rlhf_cli.schema.overlay import OWN_KEYS, RANGES, RULES

REQUIRED = "model_name_or_path: m\ndataset_name: d.jsonl\n"


def read(tmp_path: Path, text: str, **keys: Any) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(REQUIRED + text)
    return read_recipe(path, **{"method": "sft", **keys})


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    return [f"{problem.line}: {problem.what} | {problem.fix}" for problem in caught.value.problems]


def test_yaml_1_2_numbers_and_words(tmp_path: Path) -> None:
    recipe = read(tmp_path, "learning_rate: 1e-5\npacking: yes\nbf16: off\nmax_steps: 10.0\nrun_name: 2026-01-01\n")
    assert recipe.values["learning_rate"] == 1e-5
    assert recipe.values["packing"] is True
    assert recipe.values["bf16"] is False
    assert recipe.values["max_steps"] == 10
    assert isinstance(recipe.values["max_steps"], int)
    assert recipe.values["run_name"] == "2026-01-01"
    assert all(type(value) in (str, int, float, bool) for value in recipe.values.values())


def test_what_is_left_out_stays_out(tmp_path: Path) -> None:
    recipe = read(tmp_path, "")
    assert set(recipe.values) == {"model_name_or_path", "dataset_name"}
    assert "learning_rate" not in recipe
    assert recipe["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lora_rank: 8", "3: unknown key `lora_rank` | did you mean `lora_r`?"),
        ("epochs: 3", "3: unknown key `epochs` | did you mean `num_train_epochs`?"),
        ("batch_size: 3", "3: unknown key `batch_size` | did you mean `per_device_train_batch_size`?"),
        ("gradient_acumulation_steps: 3", "3: unknown key `gradient_acumulation_steps` | "
         "did you mean `gradient_accumulation_steps`?"),
        ("qqqq: 3", "3: unknown key `qqqq` | None"),
        ("packing_strategy: bfdd", '3: `packing_strategy` cannot be "bfdd" | did you mean `bfd`?'),
        ("optim: adamw", '3: `optim` cannot be "adamw" | did you mean `adamw_torch`?'),
        ("eval_strategy: true", "3: `eval_strategy` cannot be true | one of no, steps, epoch"),
        ("num_train_epochs: 0", "3: `num_train_epochs` must be above 0, got 0 | None"),
        ("lora_dropout: 1\nuse_peft: true", "3: `lora_dropout` must be below 1, got 1 | None"),
        ("max_length: 1.5", "3: `max_length` must be a whole number or null, got 1.5 | None"),
        ("datasets: [{path: x}]", "2: `dataset_name` and `datasets` both name the data | keep one of them"),
        ("packing: true\nmax_length: null", "3: packing needs a length to pack to, but `max_length` is null | "
         "set `max_length`, or `packing: false`"),
        ("padding_free: true", "3: `padding_free` without `packing` does not enforce `max_length` | "
         "set `packing: true`, or `max_length: null`"),
        ("learning_rate: .nan", "3: `learning_rate` must be finite, got NaN | None"),
        ("env: {A: .inf}", '3: `env` must be finite, got {"A": Infinity} | None'),
        ("extends: 5", "3: `extends` must be a file name or a list of them | None"),
        ("model_init_kwargs: {torch_dtype: float16}", '3: `model_init_kwargs` takes no key "torch_dtype" | '
         "write it as a key of the recipe: `dtype`, `model_revision`, `attn_implementation`, `trust_remote_code`, "
         "`load_in_4bit` …"),
        ("optim_args: foo", '3: `optim_args` cannot be "foo" | such as `optim_args: rank=64, scale=0.1`'),
        ("report_to: wandbb", '3: `report_to` cannot be "wandbb" | did you mean `wandb`?'),
        ("hub_token: [hf_secret]", "3: `hub_token` must be text or null, got *** | None"),
        ("split_by: tree", "3: `split_by` says how to hold rows out, but not how many | "
         "add `test_split_size`, such as 0.1"),
    ],
)  # fmt: skip
def test_problems_name_line_and_mend(tmp_path: Path, line: str, expected: str) -> None:
    assert problems(tmp_path, line) == [expected]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: " + ".join(rule["when"]))
def test_every_rule_can_be_broken(rule: dict[str, Any], tmp_path: Path) -> None:
    """A rule that nothing triggers would be dead."""
    samples = {"datasets": [{"path": "x"}], "max_length": 64, "dataset_name": "d.jsonl"}
    defaults = load_schema("sft")["properties"]
    given = {key: samples.get(key, True) if wanted == "*" else wanted for key, wanted in rule["when"].items()}
    samples_text = {"chat_template": "x", "chat_template_path": "x", "split_by": "x"}
    given |= {key: samples_text[key] for key in given if key in samples_text}
    written = {k: v for k, v in given.items() if rule["when"][k] == "*" or v != defaults[k].get("default")}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in written.items()]
    text = "".join(line for line in lines if not line.startswith("dataset_name"))
    assert any(rule["message"] in problem for problem in problems(tmp_path, text))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "lr: 1\nmax_length: 0\npacking: maybe\nbf16: true\nfp16: true\n")) == 4


# --- renames ----------------------------------------------------------------------------------------------------


def test_old_keys_are_taken_over_with_a_warning(tmp_path: Path) -> None:
    recipe = read(tmp_path, "torch_dtype: bfloat16\nwarmup_ratio: 0.1\nevaluation_strategy: steps\n")
    assert (recipe["dtype"], recipe["warmup_steps"], recipe["eval_strategy"]) == ("bfloat16", 0.1, "steps")
    assert [(warning.line, warning.what) for warning in recipe.warnings] == [
        (3, "`torch_dtype` is now `dtype`"),
        (4, "`warmup_ratio` is now `warmup_steps`"),
        (5, "`evaluation_strategy` is now `eval_strategy`"),
    ]


def test_todays_key_wins_over_the_old_one(tmp_path: Path) -> None:
    recipe = read(tmp_path, "max_length: 7\nmax_seq_length: 9\n")
    assert recipe["max_length"] == 7
    assert recipe.warnings[0].what == "`max_seq_length` is ignored: `max_length` is written too"


def test_a_dataset_mixture_becomes_datasets(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: m\ndataset_mixture:\n  datasets:\n"
        "  - {id: org/a, config: default, split: train_sft, columns: [messages], weight: 1.0}\n"
        "  - {id: org/b, weight: 0.25}\n  seed: 0\n  test_split_size: 100\n"
    )
    recipe = read_recipe(path, method="sft")
    assert recipe["datasets"] == [
        {"path": "org/a", "name": "default", "columns": ["messages"], "split": "train_sft"},
        {"path": "org/b", "split": "train[:25%]"},
    ]
    assert recipe["test_split_size"] == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset_mixer: {org/a: 0.25}", {"datasets": [{"path": "org/a", "split": "train", "fraction": 0.25}]}),
        (
            "dataset_mixer: {org/a: 1.0}\ndataset_splits: [train_sft, test_sft]\neval_strategy: epoch",
            {"dataset_name": "org/a", "dataset_train_split": "train_sft", "dataset_test_split": "test_sft",
             "eval_strategy": "epoch"},
        ),
        (
            "dataset_splits: [train_sft]\ndataset_mixer: {org/a: 1.0, org/b: 0.25}\ndataset_configs: [x, y]",
            {"dataset_train_split": "train_sft", "datasets": [
                {"path": "org/a", "name": "x", "split": "train_sft"},
                {"path": "org/b", "name": "y", "split": "train_sft[:25%]"},
            ]},
        ),
        (
            "dataset_mixer: {org/a: 1.0, org/b: 0.5}\ndataset_splits: [train_a, train_b]",
            {"dataset_train_split": "train_a+train_b", "datasets": [
                {"path": "org/a", "split": "train_a+train_b"},
                {"path": "org/b", "split": "train_a[:50%]+train_b[:50%]"},
            ]},
        ),
        ("dataset_mixture: {datasets: [{id: org/a, weight: 0.5}]}",
         {"datasets": [{"path": "org/a", "split": "train", "fraction": 0.5}]}),
        ("dataset_name: d\nchat_template: x\ntokenizer_name: org/t", {"dataset_name": "d", "chat_template": "x"}),
        ("dataset_name: d\ntokenizer_name_or_path: org/t", {"dataset_name": "d", "chat_template_path": "org/t"}),
        ("dataset_name: d\ntrain_on_inputs: false", {"dataset_name": "d"}),
        ("dataset_name: d\ntrain_on_inputs: true",
         {"dataset_name": "d", "assistant_only_loss": False, "completion_only_loss": False}),
        ("dataset_name: d\ndisable_gradient_checkpointing: true",
         {"dataset_name": "d", "activation_checkpointing": False}),
    ],
)  # fmt: skip
def test_old_keys_are_translated(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model_name_or_path: m\n{text}\n")
    values = read_recipe(path, method="sft").values
    assert {key: value for key, value in values.items() if key != "model_name_or_path"} == expected


def test_what_a_translation_drops_is_said(tmp_path: Path) -> None:
    recipe = read(tmp_path, "chat_template: x\ntokenizer_name: t\n")
    assert [warning.what for warning in recipe.warnings] == ["the template of `tokenizer_name` is ignored"]
    path = tmp_path / "mixture.yaml"
    path.write_text("model_name_or_path: m\ndataset_mixture: {datasets: [{id: a, speed: 1}], seed: 1, x: 2}\n")
    said = [warning.what for warning in read_recipe(path, method="sft").warnings]
    assert said[1:] == [
        "the `speed` of an entry of `dataset_mixture` is ignored",
        "the `seed` of `dataset_mixture` is ignored",
        "the `x` of `dataset_mixture` is ignored",
    ]


@pytest.mark.parametrize("mixer", ["5", "{a: x}", "[a]", "{a: null, b: .nan}", "null"])
def test_a_damaged_mixer_ends_in_words(mixer: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for key in ("dataset_mixer", "dataset_mixture", "dataset_splits", "dataset_configs"):
        path.write_text(f"model_name_or_path: m\n{key}: {mixer}\n")
        try:
            problems = read_recipe(path, method="sft").warnings
        except RecipeError as error:
            problems = error.problems
        assert any(f"`{key}`" in problem.what for problem in problems)


def test_ignored_keys_are_named(tmp_path: Path) -> None:
    recipe = read(tmp_path, "do_train: true\noverwrite_output_dir: true\n")
    assert set(recipe.values) == {"model_name_or_path", "dataset_name"}
    assert [warning.what for warning in recipe.warnings] == [
        "`do_train` is ignored",
        "`overwrite_output_dir` is ignored",
    ]


def test_the_tables_point_to_keys_that_exist() -> None:
    every = {key for method in method_names() for key in load_schema(method)["properties"]}
    assert set(SYNONYMS.values()) <= every
    assert RANGES.keys() <= every
    for method in METHODS:
        keys = set(load_schema(method.command)["properties"])
        # What one method alone has, such as PPO's coefficient, others need not.
        lacking = set(RENAMED.values()) - keys
        assert all(sum(key in load_schema(each.command)["properties"] for each in METHODS) == 1 for key in lacking)
        assert not (RENAMED.keys() | TRANSLATED.keys() | IGNORED.keys() | SYNONYMS.keys()) & keys


# A recipe with the keys of the alignment-handbook's SFT recipes, and one of the example in TRL's command line guide.
HANDBOOK = """
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
chat_template: "{{ messages }}"
dataset_mixer: {org/chat: 1.0}
dataset_splits: [train_sft, test_sft]
preprocessing_num_workers: 12
bf16: true
do_eval: true
evaluation_strategy: epoch
gradient_accumulation_steps: 1
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
hub_model_id: zephyr-7b-sft-full
hub_strategy: every_save
learning_rate: 2.0e-05
log_level: info
logging_steps: 5
logging_strategy: steps
lr_scheduler_type: cosine
max_seq_length: 2048
max_steps: -1
num_train_epochs: 1
output_dir: data/zephyr
overwrite_output_dir: true
per_device_eval_batch_size: 8
per_device_train_batch_size: 16
push_to_hub: true
remove_unused_columns: true
report_to: [tensorboard]
save_strategy: steps
save_steps: 100
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
"""
TRL_GUIDE = """
model_name_or_path: Qwen/Qwen2.5-0.5B
datasets:
  - path: stanfordnlp/imdb
  - path: roneneldan/TinyStories
report_to: none
learning_rate: 0.0001
lr_scheduler_type: cosine
env: {NAME: value}
num_processes: 4
"""


@pytest.mark.parametrize("text", ["model_name_or_path: org/m\n" + HANDBOOK, TRL_GUIDE], ids=["handbook", "TRL guide"])
def test_recipes_as_they_are_published_pass(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert read_recipe(path, method="sft").warnings


def test_keys_that_are_merged_in_have_a_line(tmp_path: Path) -> None:
    recipe = read(tmp_path, "lr_scheduler_kwargs: &shared\n  learning_rate: 0.5\n<<: *shared\nseed: 1\n")
    assert (recipe["learning_rate"], recipe["seed"]) == (0.5, 1)
    assert recipe.where("learning_rate").endswith("recipe.yaml:4")
    entries = read(tmp_path, "env: &a {X: 1}\nlr_scheduler_kwargs: {<<: *a, Y: 2}\n")
    assert entries["lr_scheduler_kwargs"] == {"X": 1, "Y": 2}


# --- inheritance and overrides ------------------------------------------------------------------------------


def test_extends_merges_and_remembers_where_values_come_from(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/base.yaml").write_text(
        REQUIRED + "learning_rate: 1\nlora_target_modules: [a, b]\nlr_scheduler_kwargs: {num_cycles: 2, power: 1}\n"
    )
    (tmp_path / "shared/middle.yaml").write_text("extends: base.yaml\nlearning_rate: 2\nseed: 3\n")
    top = tmp_path / "top.yaml"
    top.write_text(
        "extends: [shared/middle.yaml]\nseed: 4\nlora_target_modules: [c]\nlr_scheduler_kwargs: {power: 3}\n"
    )
    recipe = read_recipe(top, method="sft", overrides=[("max-steps", "9")])
    assert recipe["learning_rate"] == 2
    assert recipe["seed"] == 4
    assert recipe["lora_target_modules"] == ["c"]
    assert recipe["lr_scheduler_kwargs"] == {"num_cycles": 2, "power": 3}
    assert recipe["max_steps"] == 9
    assert recipe.where("learning_rate") == f"{tmp_path}/shared/middle.yaml:2"
    assert recipe.where("seed") == f"{top}:2"
    assert recipe.where("max_steps") == "command line"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("8", 8),
        ("true", True),
        ("[q, v]", ["q", "v"]),
        ("null", None),
        ("a: b: c", "a: b: c"),
        ("x", "x"),
    ],
)
def test_values_of_the_command_line_are_yaml(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_the_environment_is_set_but_not_overruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_TEST_SET", "mine")
    monkeypatch.delenv("RLHF_TEST_NEW", raising=False)
    recipe = read(tmp_path, "env: {RLHF_TEST_SET: theirs, RLHF_TEST_NEW: 1}\n")
    apply_environment(recipe)
    import os

    assert (os.environ["RLHF_TEST_SET"], os.environ["RLHF_TEST_NEW"]) == ("mine", "1")
    monkeypatch.delenv("RLHF_TEST_NEW")


# --- schema -------------------------------------------------------------------------------------------------------


def test_the_committed_schemas_are_fresh(tmp_path: Path) -> None:
    """`make schema` would change nothing."""
    subprocess.run([sys.executable, "-m", "rlhf_cli.schema.generate", str(tmp_path)], check=True, capture_output=True)
    made = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert made == {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}


@pytest.mark.parametrize("method", method_names())
def test_every_key_is_described_and_its_default_is_allowed(method: str) -> None:
    from jsonschema import Draft202012Validator

    for key, entry in load_schema(method)["properties"].items():
        assert entry["description"], key
        if "default" in entry and entry["default"] != "":
            checked = {name: value for name, value in entry.items() if name not in RANGES.get(key, {})}
            errors = [error.message for error in Draft202012Validator(checked).iter_errors(entry["default"])]
            assert entry["default"] is None or not errors, (key, errors)


@pytest.mark.parametrize("key", OWN_KEYS)
def test_every_key_of_our_own_is_read(key: str) -> None:
    package = FOLDER.parent
    readers = [path for path in package.rglob("*.py") if path.parent.name != "schema"]
    assert any(f'"{key}"' in path.read_text() for path in readers), f"nothing reads `{key}`"


def test_another_trl_gets_schemas_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stamp does not fit what is installed, the keys are derived anew, once."""
    stale = {**json.loads((FOLDER / "sft.json").read_text()), "x-versions": {"trl": "0.0", "transformers": "0.0"}}
    (tmp_path / "sft.json").write_text(json.dumps({**stale, "properties": {}}))
    monkeypatch.setattr("rlhf_cli.schema.FOLDER", tmp_path)
    assert "learning_rate" in load_schema("sft")["properties"]
    (cached,) = Path.home().glob(".cache/rlhf-cli/*/sft.json")
    cached.write_text(json.dumps({**stale, "properties": {"from the cache": {}}}))
    assert load_schema("sft")["properties"] == {"from the cache": {}}

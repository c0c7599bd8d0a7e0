"""The recipe of an evaluation: its keys."""

from __future__ import annotations

from rlhf_cli.command import Command
from rlhf_cli.gates import GATES


def config_classes() -> tuple[type, ...]:
    """Where the keys of its data come from."""
    from trl.scripts.utils import DatasetMixtureConfig

    return (DatasetMixtureConfig,)


EVALUATION = Command(
    command="eval",
    summary="Judge a reward model on held-out preferences; gates set the exit code",
    config_classes=config_classes,
    required=(("reward_model_path",), ("dataset_name", "datasets")),
    shared=("method", "extends", "env", "columns", "layout", "split_by", "skip_bad_rows"),
    keys={
        "reward_model_path": {
            "type": "string",
            "description": "The reward model: a run of `rlhf train-reward`, a model folder or a Hub id.",
        },
        "dataset_name": {
            "type": ["string", "null"],
            "default": None,
            "description": "The preferences: a data file, a folder or a Hub id.",
        },
        "dataset_config": {
            "type": ["string", "null"],
            "default": None,
            "description": "Configuration of a dataset of the Hub.",
        },
        "dataset_test_split": {
            "type": "string",
            "default": "test",
            "description": "The split to judge on. A file that is not split is judged on whole.",
        },
        "dataset_train_split": {
            "type": "string",
            "default": "train",
            "description": "The split that `test_split_size` holds rows out of.",
        },
        "test_split_size": {
            "type": ["integer", "number", "null"],
            "exclusiveMinimum": 0,
            "default": None,
            "description": "Judge only on the rows that a training run of the same data, `test_split_size`, "
            "`split_by`, `seed`, `drop_ties` and `skip_bad_rows` held out.",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 42, "description": "Of held-out rows and of resampling."},
        "drop_ties": {
            "type": "boolean",
            "default": False,
            "description": "Leave pairs out that compare nothing: equal answers, or a margin of 0.",
        },
        "load_in_4bit": {
            "type": "boolean",
            "default": False,
            "description": "Load the base in 4 bits, whatever it was trained in; the shift of its scores is shown.",
        },
        "load_in_8bit": {
            "type": "boolean",
            "default": False,
            "description": "The same in 8 bits.",
        },
        "trust_remote_code": {
            "type": "boolean",
            "default": False,
            "description": "Let code that comes with the model run.",
        },
        "gates": GATES,
        "output_dir": {
            "type": ["string", "null"],
            "default": None,
            "description": "Where `eval.json` goes; without it, it goes nowhere but to the screen.",
        },
    },
    starter="""\
# Judges a reward model on held-out preferences.   rlhf eval {path}
method: eval
reward_model_path: {model}
dataset_name: {data}
gates:
  - {{metric: accuracy, min: 0.6, bound: ci_low}}
output_dir: {output}
""",
    starter_data="trl-lib/ultrafeedback_binarized",
)

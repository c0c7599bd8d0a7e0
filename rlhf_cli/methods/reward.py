"""Reward model: learn which of two answers people prefer, with TRL's RewardTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_cli.gates import GATES
from rlhf_cli.methods.base import Method, trained
from rlhf_cli.model_source import Role
from rlhf_cli.plan import REWARD_MODEL
from rlhf_cli.rows import PREFERENCE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from rlhf_cli.data import Encoded, Encodings
    from rlhf_cli.model_source import Source
    from rlhf_cli.models import Loaded
    from rlhf_cli.plan import Plan
    from rlhf_cli.recipe import Recipe


def config_classes() -> tuple[type, ...]:
    """Where the keys come from."""
    from trl import ModelConfig, RewardConfig, ScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    return ScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, split: str) -> Encoded:
    """Each answer behind its prompt, as the reward model reads it."""
    from rlhf_cli.errors import DataError
    from rlhf_cli.pairs import Pair, encode_pairs
    from rlhf_cli.render import render_answer
    from rlhf_cli.rows import Row

    if len({isinstance(example["row"]["chosen"], str) for example in rows}) > 1:
        raise DataError(
            "some rows are plain texts and others conversations, and a reward model reads one or the other",
            hint="lay them out alike",
        )

    def pair(row: Row) -> Pair:
        sides = {f"{side}_ids": row[side] for side in ("chosen", "rejected")}
        return {name: render_answer(tokenizer, row["prompt"], answer, beside=row) for name, answer in sides.items()}

    return encode_pairs(rows, pair, recipe, cuts=False)


def build_config(plan: Plan) -> TrainingArguments:
    """What TRL's RewardTrainer is told."""
    from trl import RewardConfig

    return RewardConfig(**plan.arguments(RewardConfig))


def build_trainer(config: TrainingArguments, loaded: Loaded, data: Encodings) -> Trainer:
    """TRL's RewardTrainer on pairs that are tokens already."""
    from trl import RewardTrainer

    return RewardTrainer(
        model=loaded.model,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.test,
        processing_class=loaded.tokenizer,
    )


def roles(recipe: Recipe, source: Source) -> tuple[Role, ...]:
    """One model, with a score for a head."""
    return (trained(REWARD_MODEL, recipe, source),)


METHOD = Method(
    command="train-reward",
    summary="Reward model: learn from preferences which of two answers is better",
    config_classes=config_classes,
    rows=PREFERENCE,
    encode=encode,
    build_config=build_config,
    build_trainer=build_trainer,
    trains=REWARD_MODEL,
    roles=roles,
    narrowed={"center_rewards_coefficient": {"minimum": 0}},
    rules=(
        {
            "when": {"dtype": "bfloat16", "bf16": False},
            "message": "the score is kept in fp32, and reads bf16 weights only where bf16 is computed with",
            "fix": "remove one of them",
        },
        {
            "when": {"ensemble_size": "*", "use_peft": False},
            "message": "an ensemble is made of adapters on one base",
            "fix": "add `use_peft: true`",
        },
    ),
    keys={
        "lora_task_type": {
            "enum": ["SEQ_CLS"],
            "default": "SEQ_CLS",
            "description": "What the adapter is for; here always a score.",
        },
        "drop_ties": {
            "type": "boolean",
            "default": False,
            "description": "Leave pairs out that compare nothing: equal answers, or a margin of 0.",
        },
        "ensemble_size": {
            "type": ["integer", "null"],
            "minimum": 2,
            "default": None,
            "description": "Train so many adapters and scores on one base, each from its own seed and in its own "
            "order of rows, into one folder; their mean is the score, and their spread says how sure it is.",
        },
        "gates": GATES,
    },
    starter="""\
# Trains a reward model on preferences, with LoRA, and ends in its report card.   rlhf train-reward {path}
method: train-reward
model_name_or_path: {model}       # a policy, or a run that continues one
dataset_name: {data}
test_split_size: 0.1              # held out for the report card
split_by: prompt                  # so that no prompt is on both sides
use_peft: true
lora_r: 16
lora_target_modules: all-linear
max_length: 1024                  # longer pairs are left out
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
num_train_epochs: 1
center_rewards_coefficient: 0.01  # scores about zero
gates:
  - {{metric: accuracy, min: 0.6, bound: ci_low}}
output_dir: {output}
""",
    starter_data="trl-lib/ultrafeedback_binarized",
)

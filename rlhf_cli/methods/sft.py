"""SFT: learn to answer from examples, with TRL's SFTTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_cli.methods.base import Method
from rlhf_cli.rows import DEMONSTRATION

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from rlhf_cli.data import Encoded, Encodings
    from rlhf_cli.models import Loaded
    from rlhf_cli.plan import Plan
    from rlhf_cli.recipe import Recipe


def config_classes() -> tuple[type, ...]:
    """Where the keys come from."""
    from trl import ModelConfig, ScriptArguments, SFTConfig
    from trl.scripts.utils import DatasetMixtureConfig

    return ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, split: str) -> Encoded:
    """Tokens, and labels where the loss is."""
    from rlhf_cli.data import encode_rows
    from rlhf_cli.render import make_renderer

    renderer = make_renderer(
        tokenizer, assistant_only=recipe["assistant_only_loss"], completion_only=recipe["completion_only_loss"]
    )
    packs_tests = recipe["packing"] if recipe["eval_packing"] is None else recipe["eval_packing"]
    return encode_rows(rows, renderer, recipe, packing=recipe["packing"] if split == "train" else packs_tests)


def build_config(plan: Plan) -> TrainingArguments:
    """What TRL's SFTTrainer is told."""
    from trl import SFTConfig

    return SFTConfig(**plan.arguments(SFTConfig))


def build_trainer(config: TrainingArguments, loaded: Loaded, data: Encodings) -> Trainer:
    """TRL's SFTTrainer on rows that are tokens already."""
    from trl import SFTTrainer

    return SFTTrainer(
        model=loaded.model,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.test,
        processing_class=loaded.tokenizer,
    )


METHOD = Method(
    command="sft",
    summary="Supervised fine-tuning: learn to answer from examples",
    config_classes=config_classes,
    rows=DEMONSTRATION,
    encode=encode,
    build_config=build_config,
    build_trainer=build_trainer,
    keys={
        "lora_task_type": {
            "enum": ["CAUSAL_LM"],
            "default": "CAUSAL_LM",
            "description": "What the adapter is for; here always a causal language model.",
        },
    },
    defaults={
        # TRL trains on every token of `messages`, the user's included.
        "assistant_only_loss": True,
    },
    starter="""\
# Fine-tunes a chat model on conversations, with LoRA.   rlhf sft {path}
method: sft
model_name_or_path: {model}
dataset_name: {data}
test_split_size: 0.1              # held out, and evaluated at the end
use_peft: true                    # LoRA; remove for full fine-tuning
lora_r: 16
lora_target_modules: all-linear
packing: true                     # several rows into one sequence of max_length
max_length: 1024
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 2.0e-4
num_train_epochs: 1
logging_steps: 10
output_dir: {output}
""",
)

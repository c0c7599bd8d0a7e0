"""DPO: learn from preferences without a reward model, with TRL's DPOTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_cli.methods.base import Method, reference, trained
from rlhf_cli.model_source import Role
from rlhf_cli.plan import POLICY, REFERENCE
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
    from trl import DPOConfig, ModelConfig, ScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    return ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, split: str) -> Encoded:
    """The prompt, and both answers to their end of turn."""
    from rlhf_cli.pairs import Pair, encode_pairs
    from rlhf_cli.render import common_prefix, make_renderer
    from rlhf_cli.rows import Row

    renderer = make_renderer(tokenizer, assistant_only=False, completion_only=True)

    def pair(row: Row) -> Pair:
        chosen, rejected = (renderer.encode_answer({**row, "completion": row[side]}) for side in ("chosen", "rejected"))
        # Where tokens merge over the end of the prompt, the answers begin with the first token that can differ.
        shared = common_prefix(chosen.prompt_ids, rejected.prompt_ids)
        return {
            "prompt_ids": chosen.prompt_ids[:shared],
            "chosen_ids": chosen.prompt_ids[shared:] + chosen.response_ids,
            "rejected_ids": rejected.prompt_ids[shared:] + rejected.response_ids,
        }

    return encode_pairs(rows, pair, recipe, cuts=True)


def build_config(plan: Plan) -> TrainingArguments:
    """What TRL's DPOTrainer is told."""
    from trl import DPOConfig

    return DPOConfig(**plan.arguments(DPOConfig))


def build_trainer(config: TrainingArguments, loaded: Loaded, data: Encodings) -> Trainer:
    """TRL's DPOTrainer on pairs that are tokens already."""
    from rlhf_cli.dpo_trainer import DPOTrainer

    return DPOTrainer(config, loaded, data)


def roles(recipe: Recipe, source: Source) -> tuple[Role, ...]:
    """The policy, and its reference: a copy of what trains, or the base below an adapter at its beginning."""
    policy = trained(POLICY, recipe, source)
    if not source.adapter and recipe["precompute_ref_log_probs"]:
        return policy, Role(REFERENCE, "its log-probabilities are computed before training", source, takes=False)
    return policy, reference(recipe, source)


_LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


METHOD = Method(
    command="dpo",
    summary="Direct preference optimisation: learn from preferences without a reward model",
    config_classes=config_classes,
    rows=PREFERENCE,
    encode=encode,
    build_config=build_config,
    build_trainer=build_trainer,
    roles=roles,
    narrowed={
        "beta": {"exclusiveMinimum": 0},
        "loss_type": {
            "type": ["array", "string"],
            "items": {"enum": _LOSSES},
            "if": {"type": "string"},
            "then": {"enum": _LOSSES},
            "default": ["sigmoid"],
        },
        "label_smoothing": {"minimum": 0, "exclusiveMaximum": 1},
        "ld_alpha": {"minimum": 0, "maximum": 1},
        "f_divergence_type": {"enum": ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]},
        "precompute_ref_batch_size": {"minimum": 1},
    },
    rules=(
        {
            "when": {"padding_free": True},
            "message": "`padding_free` does nothing: TRL 1.16 has none for DPO, and pads",
            "fix": "remove it",
            "severity": "warning",
        },
        {
            "when": {"precompute_ref_log_probs": True, "sync_ref_model": True},
            "message": "`sync_ref_model` moves the reference, and `precompute_ref_log_probs` needs it to stand still",
            "fix": "keep one of them",
        },
        {
            "when": {"sync_ref_model": True, "use_peft": True},
            "message": "`sync_ref_model` needs a reference of its own, and with an adapter the base is the reference",
            "fix": "remove one of them",
        },
        *(
            {
                "when": {"loss_type": loss, "label_smoothing": 0.0},
                "message": "`loss_type: exo_pair` does not go without `label_smoothing`",
                "fix": "add `label_smoothing: 1e-3`, as its paper recommends",
            }
            for loss in ("exo_pair", ["exo_pair"])
        ),
    ),
    keys={
        "lora_task_type": {
            "enum": ["CAUSAL_LM"],
            "default": "CAUSAL_LM",
            "description": "What the adapter is for; here always a causal language model.",
        },
        "drop_ties": {
            "type": "boolean",
            "default": False,
            "description": "Leave pairs out that compare nothing: equal answers, or a margin of 0.",
        },
    },
    starter="""\
# Aligns a chat model to preferences, with LoRA.   rlhf dpo {path}
method: dpo
model_name_or_path: {model}       # the policy; as it is now, it is the reference
dataset_name: {data}
test_split_size: 0.1              # held out, and evaluated at the end
split_by: prompt                  # so that no prompt is on both sides
use_peft: true
lora_r: 16
lora_target_modules: all-linear
beta: 0.1                         # how dear it is to leave the reference
max_length: 1024
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 1
output_dir: {output}
""",
    starter_data="trl-lib/ultrafeedback_binarized",
)

"""What the dataclasses of TRL and transformers cannot say about a key: choices, ranges, rules, and our own keys.

Plain data, read by `generate.py` when the schemas are made and by nothing at run time.
"""

from __future__ import annotations

from typing import Any

from rlhf_cli.columns import COLUMNS
from rlhf_cli.layouts import LAYOUTS

JsonSchema = dict[str, Any]

CHOICES: dict[str, list[Any]] = {
    "include_num_input_tokens_seen": ["no", "all", "non_padding", True, False],
    "torch_compile_mode": ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    "bnb_4bit_quant_storage": ["uint8", "float16", "bfloat16", "float32", "float64"],
    # What TRL measures besides the loss goes to the log only, not to what a best model is chosen by.
    "metric_for_best_model": ["loss", "eval_loss"],
}
"""Choices that upstream hides behind `str` without listing them in the field."""

_POSITIVE: JsonSchema = {"exclusiveMinimum": 0}
_AT_LEAST_0: JsonSchema = {"minimum": 0}
_AT_LEAST_1: JsonSchema = {"minimum": 1}
_SHARE: JsonSchema = {"minimum": 0, "maximum": 1}
_SHARE_BELOW_1: JsonSchema = {"minimum": 0, "exclusiveMaximum": 1}

RANGES: dict[str, JsonSchema] = {
    "learning_rate": _AT_LEAST_0,
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "eval_accumulation_steps": _AT_LEAST_1,
    "num_train_epochs": _POSITIVE,
    "max_steps": {"minimum": -1, "not": {"const": 0}},
    "warmup_steps": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "adam_beta1": _SHARE_BELOW_1,
    "adam_beta2": _SHARE_BELOW_1,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _AT_LEAST_0,
    "label_smoothing_factor": _SHARE_BELOW_1,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "eval_delay": _AT_LEAST_0,
    "save_total_limit": _AT_LEAST_1,
    "dataloader_num_workers": _AT_LEAST_0,
    "dataloader_prefetch_factor": _AT_LEAST_1,
    "dataset_num_proc": _AT_LEAST_1,
    "max_length": _AT_LEAST_1,
    "lora_r": _AT_LEAST_1,
    "lora_alpha": _AT_LEAST_1,
    "lora_dropout": _SHARE_BELOW_1,
    "test_split_size": {"exclusiveMinimum": 0},
    "neftune_noise_alpha": _AT_LEAST_0,
    "ddp_timeout": _AT_LEAST_1,
    "optim_args": {
        "pattern": r"^\s*[^=,\s]+\s*=\s*[^=,]+(,\s*[^=,\s]+\s*=\s*[^=,]+)*$",
        "x-fix": "such as `optim_args: rank=64, scale=0.1`",
    },
    "torch_empty_cache_steps": _AT_LEAST_1,
    "seed": {"minimum": 0, "maximum": 2**32 - 1},
    "data_seed": {"minimum": 0, "maximum": 2**32 - 1},
}

_TRACKERS = [
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "swanlab",
    "tensorboard", "trackio", "wandb",
]  # fmt: skip
WIDER: dict[str, JsonSchema] = {
    "lora_target_modules": {"type": ["array", "string", "null"], "items": {"type": "string"}},
    "report_to": {
        "type": ["array", "string", "null"],
        "items": {"enum": [*_TRACKERS, "all", "none"]},
        "if": {"type": "string"},
        "then": {"enum": [*_TRACKERS, "all", "none"]},
    },
    # Left out are `split_batches` and `even_batches`, which change how many steps there are.
    "accelerator_config": {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {
            "dispatch_batches": {"type": ["boolean", "null"]},
            "use_seedable_sampler": {"type": "boolean"},
            "non_blocking": {"type": "boolean"},
            "gradient_accumulation_kwargs": {"type": ["object", "null"]},
        },
    },
    "model_init_kwargs": {
        "type": ["object", "null"],
        "propertyNames": {
            "not": {
                "enum": [
                    "attn_implementation", "device_map", "dtype", "load_in_4bit", "load_in_8bit",
                    "pretrained_model_name_or_path", "quantization_config", "revision", "torch_dtype",
                    "trust_remote_code",
                ]
            },
            "x-fix": "write it as a key of the recipe: `dtype`, `model_revision`, `attn_implementation`, "
            "`trust_remote_code`, `load_in_4bit` …",
        },
    },
}  # fmt: skip
"""Types that upstream declares otherwise: PEFT takes `all-linear` and regular expressions, the rest is too wide."""

_COLUMNS: JsonSchema = {
    "type": ["object", "array", "null"],
    "propertyNames": {"enum": list(COLUMNS)},
    "additionalProperties": {"type": "string"},
    "items": {"type": "string"},
    "default": None,
    "description": "Which column is which, as `our name: theirs`; theirs may be a path such as `instances.0.output`. "
    "In an entry of `datasets` also a list of columns to keep.",
}
_LAYOUT: JsonSchema = {
    "enum": [*dict.fromkeys(layout.name for layout in LAYOUTS), None],
    "default": None,
    "description": "How the rows are laid out, where it should not be told by their columns.",
}
_MIXTURE: JsonSchema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["path"],
        "additionalProperties": False,
        "properties": {
            "path": {"type": "string"},
            "name": {"type": ["string", "null"]},
            "data_dir": {"type": ["string", "null"]},
            "data_files": {"type": ["string", "array", "object", "null"]},
            "split": {"type": "string"},
            "columns": _COLUMNS,
            "layout": _LAYOUT,
            "fraction": {"type": ["number", "null"], "exclusiveMinimum": 0},
        },
    },
}
WIDER["datasets"] = _MIXTURE

OWN_KEYS: dict[str, JsonSchema] = {
    "method": {
        "type": "string",
        "description": "The method this recipe is for, so that `rlhf check` needs no `--method`.",
    },
    "extends": {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "Recipe files to start from; this file's keys win. Relative to the file that says it.",
    },
    "env": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
        "description": "Environment variables to set before anything heavy is imported.",
    },
    "chat_template": {
        "type": ["string", "null"],
        "default": None,
        "description": "Jinja chat template, written into the recipe. `chat_template_path` names a file instead.",
    },
    "columns": _COLUMNS,
    "layout": _LAYOUT,
    "guards": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"nan": {"enum": ["stop", "warn", "off"]}},
        "default": {},
        "description": "What to do when training goes wrong. `nan`: a loss or gradient that is not finite; stop (the "
        "default, exit code 6), warn or off.",
    },
    "report": {
        "type": "boolean",
        "default": True,
        "description": "Write `report.html` into `output_dir` when the run ends.",
    },
    "split_by": {
        "type": ["string", "null"],
        "default": None,
        "description": "Column whose groups stay together when `test_split_size` holds rows out, such as a "
        "conversation id.",
    },
    "skip_bad_rows": {
        "type": "boolean",
        "default": False,
        "description": "Leave bad rows out, and count them, instead of stopping at them.",
    },
}

RULES: list[dict[str, Any]] = [
    {
        "when": {"load_in_4bit": True, "load_in_8bit": True},
        "message": "`load_in_4bit` and `load_in_8bit` exclude each other",
        "fix": "keep one of them",
    },
    {
        "when": {"load_in_4bit": True, "use_peft": False},
        "message": "4-bit weights cannot be trained themselves",
        "fix": "add `use_peft: true` to train an adapter on them",
    },
    {
        "when": {"load_in_8bit": True, "use_peft": False},
        "message": "8-bit weights cannot be trained themselves",
        "fix": "add `use_peft: true` to train an adapter on them",
    },
    {
        "when": {"bf16": True, "fp16": True},
        "message": "`bf16` and `fp16` exclude each other",
        "fix": "keep one of them",
    },
    {
        "when": {"dataset_name": "*", "datasets": "*"},
        "message": "`dataset_name` and `datasets` both name the data",
        "fix": "keep one of them",
    },
    {
        "when": {"chat_template": "*", "chat_template_path": "*"},
        "message": "`chat_template` and `chat_template_path` both name the template",
        "fix": "keep one of them",
    },
    {
        "when": {"packing": True, "max_length": None},
        "message": "packing needs a length to pack to, but `max_length` is null",
        "fix": "set `max_length`, or `packing: false`",
    },
    {
        "when": {"padding_free": True, "packing": False, "max_length": "*"},
        "message": "`padding_free` without `packing` does not enforce `max_length`",
        "fix": "set `packing: true`, or `max_length: null`",
    },
    {
        "when": {"load_best_model_at_end": True, "eval_strategy": "no"},
        "message": "`load_best_model_at_end` needs evaluations to choose by",
        "fix": "set `eval_strategy` to the value of `save_strategy`",
    },
    {
        "when": {"save_strategy": "best", "eval_strategy": "no"},
        "message": "`save_strategy: best` needs evaluations to choose by",
        "fix": "set `eval_strategy: steps` or `epoch`",
    },
    *(
        {
            "when": {"load_best_model_at_end": True, "save_strategy": save, "eval_strategy": evaluate},
            "message": f"the best model is chosen among those saved, but `save_strategy` is {save} "
            f"and `eval_strategy` {evaluate}",
            "fix": "give both the same value, or set `save_strategy: best`",
        }
        for save, evaluate in (("steps", "epoch"), ("epoch", "steps"), ("no", "steps"), ("no", "epoch"))
    ),
    *(
        {
            "when": {"lr_scheduler_type": name, "eval_strategy": "no"},
            "message": f"`lr_scheduler_type: {name}` follows the loss of evaluations, but there are none",
            "fix": "set `eval_strategy: steps` or `epoch`",
        }
        for name in ("reduce_lr_on_plateau", "greedy")
    ),
    {
        "when": {"dataloader_persistent_workers": True, "dataloader_num_workers": 0},
        "message": "`dataloader_persistent_workers` needs workers, but `dataloader_num_workers` is 0",
        "fix": "set `dataloader_num_workers: 1` or more",
    },
    {
        "when": {"dataloader_prefetch_factor": "*", "dataloader_num_workers": 0},
        "message": "`dataloader_prefetch_factor` is for workers, but `dataloader_num_workers` is 0",
        "fix": "set `dataloader_num_workers: 1` or more",
    },
    {
        "when": {"auto_find_batch_size": True},
        "message": "`auto_find_batch_size` would change batch and steps in the middle of a run, so that neither the "
        "plan nor `--resume` held",
        "fix": "lower `per_device_train_batch_size` and raise `gradient_accumulation_steps` by as much",
    },
    {
        "when": {"fp16_full_eval": True, "bf16_full_eval": True},
        "message": "`bf16_full_eval` and `fp16_full_eval` exclude each other",
        "fix": "keep one of them",
    },
    {
        "when": {"dataset_config": "*", "datasets": "*"},
        "message": "`dataset_config` is for `dataset_name`; entries of `datasets` have a `name` each",
        "fix": "write it as `name` of the entry",
    },
    {
        "when": {"dataset_test_split": "*", "test_split_size": "*"},
        "message": "`test_split_size` holds rows of the training split out, so `dataset_test_split` is not read",
        "fix": "keep one of them",
    },
    {
        "when": {"dataset_test_split": "*", "eval_strategy": "no"},
        "message": "`dataset_test_split` is not read: `eval_strategy` is no",
        "fix": "set `eval_strategy: epoch` or `steps`",
        "severity": "warning",
    },
    *(
        {
            "when": {key: "*", "use_peft": False},
            "message": f"`{key}` is for a new adapter, and without `use_peft: true` none is made",
            "fix": "add `use_peft: true`, or remove it",
            "severity": "warning",
        }
        for key in (
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_parameters",
            "lora_modules_to_save",
        )
    ),
    {
        "when": {"split_by": "*", "test_split_size": None},
        "message": "`split_by` says how to hold rows out, but not how many",
        "fix": "add `test_split_size`, such as 0.1",
    },
    *(
        {
            "when": {"lr_scheduler_type": name, "lr_scheduler_kwargs": None},
            "message": f"`lr_scheduler_type: {name}` does not go without `lr_scheduler_kwargs`",
            "fix": f"add `lr_scheduler_kwargs: {{{argument}: …}}`",
        }
        for name, argument in (
            ("cosine_with_min_lr", "min_lr_rate"),
            ("cosine_warmup_with_min_lr", "min_lr_rate"),
            ("warmup_stable_decay", "num_decay_steps"),
        )
    ),
    {
        "when": {"activation_checkpointing": "*", "gradient_checkpointing": "*"},
        "message": "`activation_checkpointing` and `gradient_checkpointing` are one setting under two names",
        "fix": "keep one of them",
    },
]
"""Keys that do not go together. A rule holds when every key has the value (`*`: anything set); a key that the
recipe leaves out has its default, except against `*`. Those of `severity` warning only say that a key is not read."""

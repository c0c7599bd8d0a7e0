"""What the dataclasses of TRL and transformers cannot say about a key: choices, ranges, rules, and our own keys.

Plain data, read by `generate.py` when the schemas are made and by nothing at run time.
"""

from __future__ import annotations

from typing import Any

from rlhf_cli.layouts import COLUMNS, LAYOUTS

JsonSchema = dict[str, Any]

CHOICES: dict[str, list[Any]] = {
    "include_num_input_tokens_seen": ["no", "all", "non_padding", True, False],
    "torch_compile_mode": ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
    "bnb_4bit_quant_storage": ["uint8", "float16", "bfloat16", "float32", "float64"],
    "lora_task_type": [
        "CAUSAL_LM",
        "SEQ_CLS",
        "SEQ_2_SEQ_LM",
        "TOKEN_CLS",
        "QUESTION_ANS",
        "FEATURE_EXTRACTION",
    ],
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
    "seed": {"minimum": 0, "maximum": 2**32 - 1},
    "data_seed": {"minimum": 0, "maximum": 2**32 - 1},
}

WIDER: dict[str, JsonSchema] = {
    "lora_target_modules": {"type": ["array", "string", "null"], "items": {"type": "string"}},
}
"""Types that upstream declares too tightly: PEFT takes `all-linear` and regular expressions."""

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
    "enum": [*(layout.name for layout in LAYOUTS), None],
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
recipe leaves out has its default, except against `*`."""

REQUIRED: list[list[str]] = [["model_name_or_path"], ["dataset_name", "datasets"]]
"""One key of each list must be there."""

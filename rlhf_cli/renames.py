"""Keys that changed their name, keys that nothing reads, and names people try (tables).

Gathered from the release notes of transformers 5 and TRL 1, and from the recipes people publish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

RENAMED: dict[str, str] = {
    "torch_dtype": "dtype",
    "bnb_4bit_compute_dtype": "dtype",
    "warmup_ratio": "warmup_steps",  # below 1 it is a ratio in transformers 5
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "hub_model_revision": "hub_revision",
    "push_to_hub_revision": "push_to_hub",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "use_liger": "use_liger_kernel",
    "xpu_backend": "ddp_backend",
    "torchdynamo": "torch_compile_backend",
    # TRL's PPOConfig before 0.12
    "init_kl_coef": "kl_coef",
    "ppo_epochs": "num_ppo_epochs",
    "max_new_tokens": "response_length",
    "sft_model_path": "model_name_or_path",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "score_clip": "reward_clip_range",
}
"""Old key to today's; the value stays."""


Lost = list[tuple[str, str]]
"""What of an old key has no meaning any more, and why."""
Translated = tuple[dict[str, Any], Lost]
_UNREAD = "nothing reads it"


def _mixture(old: Any, written: Mapping[str, Any]) -> Translated:
    """alignment-handbook's `dataset_mixture`; a weight there is a share of that dataset."""
    old = old if isinstance(old, Mapping) else {"datasets": old}
    if not isinstance(old.get("datasets"), list):
        return {"datasets": old.get("datasets")}, []
    items = [item if isinstance(item, Mapping) else {"id": item} for item in old["datasets"]]
    entries = []
    lost: Lost = []
    for item in items:
        entry = {"path": item.get("id"), "name": item.get("config"), "columns": item.get("columns")}
        entry |= _share(item.get("split") or "train", item.get("weight"), alone=len(items) == 1)
        entries.append({key: value for key, value in entry.items() if value is not None})
        known = ("id", "config", "columns", "split", "weight")
        lost += [(f"the `{key}` of an entry", _UNREAD) for key in item if key not in known]
    if "seed" in old:
        lost.append(("the `seed`", "`seed` of the recipe holds out rows and shuffles"))
    lost += [(f"the `{key}`", _UNREAD) for key in old if key not in ("datasets", "seed", "test_split_size")]
    size = old.get("test_split_size")
    return {"datasets": entries, **({"test_split_size": size} if size is not None else {})}, lost


def _mixer(old: Any, written: Mapping[str, Any]) -> Translated:
    """alignment-handbook's older `dataset_mixer`, name to share, with its `dataset_splits` and `dataset_configs`."""
    shares = dict(old) if isinstance(old, Mapping) else {str(old): 1.0}
    train = _split_names(written.get("dataset_splits"))[0] or str(written.get("dataset_train_split", "train"))
    configs = written.get("dataset_configs") or [written.get("dataset_config")]
    names = configs if isinstance(configs, list) else [configs]
    alone = len(shares) == 1
    if alone and _is_whole(next(iter(shares.values()))):
        return {"dataset_name": next(iter(shares)), **({"dataset_config": names[0]} if names[0] else {})}, []
    entries = []
    for number, (path, share) in enumerate(shares.items()):
        name = names[number] if number < len(names) else None
        entry = {"path": path, "name": name, **_share(train, share, alone=alone)}
        entries.append({key: value for key, value in entry.items() if value is not None})
    return {"datasets": entries}, []


def _share(split: str, share: Any, *, alone: bool) -> dict[str, Any]:
    """The first rows of a dataset. Beside others a slice, since fractions there are shares of the mixture."""
    if _is_whole(share):
        return {"split": split}
    if alone or not isinstance(share, (int, float)):
        return {"split": split, "fraction": share}
    return {"split": "+".join(f"{name}[:{100 * share:g}%]" for name in split.split("+"))}


def _is_whole(share: Any) -> bool:
    return share is None or (isinstance(share, (int, float)) and share >= 1)


def _splits(old: Any, written: Mapping[str, Any]) -> Translated:
    train, test = _split_names(old)
    newer = {"dataset_train_split": train} if train else {}
    return {**newer, **({"dataset_test_split": test} if test else {})}, []


def _split_names(old: Any) -> tuple[str, str]:
    """The training split and the other of alignment-handbook's `dataset_splits`; several are added up."""
    names = [str(name) for name in (old if isinstance(old, list) else [old] if old else [])]
    return (
        "+".join(name for name in names if "train" in name),
        "+".join(name for name in names if "train" not in name),
    )


def _configs(old: Any, written: Mapping[str, Any]) -> Translated:
    """`dataset_configs`, one for each dataset of a mixer, which takes them."""
    if "dataset_mixer" in written:
        return {}, []
    names = old if isinstance(old, list) else [old]
    return {"dataset_config": names[0] if names else None}, [(f"the entry `{name}`", _UNREAD) for name in names[1:]]


def _tokenizer(old: Any, written: Mapping[str, Any]) -> Translated:
    """Another tokenizer's folder or id: what recipes take from it is its chat template."""
    if "chat_template" in written:
        return {}, [("the template", "`chat_template` is written too")]
    return {"chat_template_path": old}, []


def _when_true(key: str, value: Any) -> Translator:
    return lambda old, _: ({key: value} if old else {}, [])


def _loss_on_prompts(old: Any, written: Mapping[str, Any]) -> Translated:
    """Where prompts are trained on, all tokens are; the default is the answers' only."""
    return ({"assistant_only_loss": False, "completion_only_loss": False} if old else {}), []


Translator = Callable[[Any, Mapping[str, Any]], Translated]

TRANSLATED: dict[str, Translator] = {
    "dataset_mixture": _mixture,
    "dataset_mixer": _mixer,
    "dataset_splits": _splits,
    "dataset_configs": _configs,
    "tokenizer_name_or_path": _tokenizer,
    "tokenizer_name": _tokenizer,
    "train_on_inputs": _loss_on_prompts,
    "train_on_input": _loss_on_prompts,
    "train_on_prompt": _loss_on_prompts,
    "disable_gradient_checkpointing": lambda old, _: ({"activation_checkpointing": not old}, []),
    "use_flash_attention_2": _when_true("attn_implementation", "flash_attention_2"),
    "group_by_length": _when_true("train_sampling_strategy", "group_by_length"),
    "include_inputs_for_metrics": _when_true("include_for_metrics", ["inputs"]),
    "include_tokens_per_second": _when_true("include_num_input_tokens_seen", "all"),
    "adafactor": _when_true("optim", "adafactor"),
    "evaluate_during_training": _when_true("eval_strategy", "steps"),
}
"""Old key to a function of its value, and of all that is written, that gives today's keys and values."""


def translate(key: str, old: Any, written: Mapping[str, Any]) -> Translated:
    """Today's keys and values for an old key.

    Args:
        key: One of RENAMED or TRANSLATED.
        old: Its value.
        written: All that is written beside it.
    """
    return ({RENAMED[key]: old}, []) if key in RENAMED else TRANSLATED[key](old, written)


RENAMED_VALUES: dict[tuple[str, str], str] = {
    ("packing_strategy", "ffd"): "bfd",
    ("packing_strategy", "bfd-requeue"): "bfd_split",
    ("loss_type", "chunked_nll"): "nll",
    ("optim", "adamw_hf"): "adamw_torch",
}

_GONE = "transformers 5 does not have it; remove it"
_TRL_GONE = "TRL 1 does not have it; remove it"

IGNORED: dict[str, str] = {
    "overwrite_output_dir": "pass `--overwrite` or `--resume` on the command line",
    "resume_from_checkpoint": "pass `--resume` on the command line",
    "do_train": "nothing reads it; the command says what is done",
    "do_eval": "nothing reads it; `eval_strategy` turns evaluation on",
    "do_predict": "nothing reads it",
    "local_rank": "nothing reads it; the launcher sets it",
    "ignore_bias_buffers": "nothing reads it",
    "enable_jit_checkpoint": "a signal always writes a checkpoint here, and one that resumes exactly",
    "disable_tqdm": "the progress view is rlhf-cli's own, and quiet without a terminal",
    "dataset_kwargs": "rows are turned into tokens before TRL sees them",
    "dataset_streaming": "every row is checked before training, so nothing is streamed",
    "streaming": "every row is checked before training, so nothing is streamed",
    "max_prompt_length": _TRL_GONE,
    "max_completion_length": _TRL_GONE,
    "max_target_length": _TRL_GONE,
    "dataset_batch_size": _TRL_GONE,
    "num_of_sequences": _TRL_GONE,
    "chars_per_token": _TRL_GONE,
    "num_sample_generations": "answers to the held-out prompts are kept at every evaluation; see `eval_steps`",
    "ds3_gather_for_generation": "PPO does not run under DeepSpeed yet",
    "model_adapter_name": "an adapter needs no name here",
    "ref_adapter_name": "the reference is the policy as it is at the beginning",
    "exp_name": "`run_name` and `output_dir` name a run",
    "num_processes": "pass `--num-processes` on the command line",
    "nproc_per_node": "pass `--num-processes` on the command line",
    "accelerate_config": "pass `--accelerate-config` on the command line",
    "save_safetensors": "weights are always saved as safetensors",
    "logging_dir": "set TENSORBOARD_LOGGING_DIR in the environment, or under `env:`",
    "use_mps_device": _GONE,
    "jit_mode_eval": _GONE,
    "past_index": _GONE,
    "ray_scope": _GONE,
    "tpu_num_cores": _GONE,
    "mp_parameters": _GONE,
    "use_ipex": _GONE,
    "fp16_backend": _GONE,
    "half_precision_backend": _GONE,
    "fp16_opt_level": _GONE,
    "use_legacy_prediction_loop": _GONE,
    "parallelism_config": "say it in the file that `--accelerate-config` names",
}
"""Keys without effect, and what to do instead. They are left out of the schemas."""

SYNONYMS: dict[str, str] = {
    "kl_penalty_coef": "kl_coef",
    "reward_model": "reward_model_path",
    "reward_function": "reward_funcs",
    "reward_fn": "reward_funcs",
    "clip_range": "cliprange",
    "cliprange_reward": "reward_clip_range",
    "gae_lambda": "lam",
    "critic_lr": "value_learning_rate",
    "total_steps": "total_episodes",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "n_epochs": "num_train_epochs",
    "max_train_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "grad_acc": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "sequence_len": "max_length",
    "seq_len": "max_length",
    "seq_length": "max_length",
    "max_seq_len": "max_length",
    "cutoff_len": "max_length",
    "block_size": "max_length",
    "model_max_length": "max_length",
    "context_length": "max_length",
    "model": "model_name_or_path",
    "base_model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_id": "model_name_or_path",
    "pretrained_model_name_or_path": "model_name_or_path",
    "revision": "model_revision",
    "data": "dataset_name",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "train_split": "dataset_train_split",
    "split": "dataset_train_split",
    "eval_split": "dataset_test_split",
    "dataset_eval_split": "dataset_test_split",
    "val_size": "test_split_size",
    "val_set_size": "test_split_size",
    "text_field": "dataset_text_field",
    "text_column": "dataset_text_field",
    "num_proc": "dataset_num_proc",
    "dataset_processes": "dataset_num_proc",
    "num_workers": "dataloader_num_workers",
    "r": "lora_r",
    "rank": "lora_r",
    "lora_rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "lora_target": "lora_target_modules",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "peft": "use_peft",
    "lora": "use_peft",
    "use_lora": "use_peft",
    "adapter": "use_peft",
    "finetuning_type": "use_peft",
    "load_4bit": "load_in_4bit",
    "load_8bit": "load_in_8bit",
    "quantization_bit": "load_in_4bit",
    "double_quantization": "use_bnb_nested_quant",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "quant_type": "bnb_4bit_quant_type",
    "precision": "dtype",
    "flash_attn": "attn_implementation",
    "flash_attention": "attn_implementation",
    "attn_impl": "attn_implementation",
    "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "warmup": "warmup_steps",
    "num_warmup_steps": "warmup_steps",
    "wd": "weight_decay",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "adam_eps": "adam_epsilon",
    "sample_packing": "packing",
    "packed": "packing",
    "pack": "packing",
    "eval_sample_packing": "eval_packing",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "enable_activation_checkpointing": "activation_checkpointing",
    "compile": "torch_compile",
    "eval_every": "eval_steps",
    "save_every": "save_steps",
    "log_interval": "logging_steps",
    "log_every_n_steps": "logging_steps",
    "output": "output_dir",
    "logger": "report_to",
    "wandb_name": "run_name",
    "random_seed": "seed",
    "neftune_alpha": "neftune_noise_alpha",
    "mask_prompt": "completion_only_loss",
    "train_on_responses_only": "assistant_only_loss",
    "template": "chat_template_path",
}
"""Names that other tools use, and the key they mean here. A fuzzy match would send `lr` to `output_dir`."""

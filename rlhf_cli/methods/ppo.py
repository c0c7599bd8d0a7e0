"""PPO: learn from rewards for the policy's own answers, with our PPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_cli.memory import Sampled
from rlhf_cli.methods.base import Method, reference, trained
from rlhf_cli.model_source import Role, look_into, look_into_reward_model
from rlhf_cli.plan import POLICY, REWARD, REWARD_MODEL, VALUE, Counts, Decision, Machine, Schedule
from rlhf_cli.recipe import as_list
from rlhf_cli.rows import PROMPT

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
    from trl import ModelConfig, ScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    from rlhf_cli.ppo.config import PPOConfig

    return ScriptArguments, PPOConfig, ModelConfig, DatasetMixtureConfig


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, split: str) -> Encoded:
    """Prompts, up to where the answer begins."""
    from rlhf_cli.ppo.prompts import encode_rows

    return encode_rows(rows, tokenizer, recipe)


def build_config(plan: Plan) -> TrainingArguments:
    """What the PPOTrainer is told; and whether there are the functions that it is to ask."""
    from rlhf_cli.ppo.config import PPOConfig
    from rlhf_cli.ppo.rewards import load_function

    config = PPOConfig(**plan.arguments(PPOConfig))
    for name in as_list(config.reward_funcs):
        load_function(name)
    return config


def build_trainer(config: TrainingArguments, loaded: Loaded, data: Encodings) -> Trainer:
    """The PPOTrainer, with its rewards and its value."""
    from rlhf_cli.ppo.assembly import assemble

    return assemble(config, loaded, data)


def roles(recipe: Recipe, source: Source) -> tuple[Role, ...]:
    """Policy, reference, value and rewards: which of them share weights, and which have their own."""
    found = [trained(POLICY, recipe, source)]
    if recipe["kl_coef"]:
        found.append(reference(recipe, source))
    names = as_list(recipe["reward_model_path"])
    if recipe["value_model"] == "separate":
        start = look_into(names[0]) if names else source
        text = f"a model of its own that begins as {start.name}"
        found.append(Role(VALUE, text, start, REWARD_MODEL, whole=True))
    else:
        found.append(Role(VALUE, "a head on the policy's trunk", source, takes=False))
    for number, name in enumerate(names, 1):
        own = look_into_reward_model(name, where=recipe.where("reward_model_path"))
        shares = (recipe["use_peft"] or source.adapter) and own.is_adapter_on_base_of(source)
        text = f"{name}, adapter and score on the policy's base" if shares else f"{name}, a model of its own"
        title = REWARD if len(names) == 1 else f"{REWARD} {number}"
        found.append(Role(title, text, own, REWARD_MODEL, trains=False, takes=not shares))
    functions = as_list(recipe["reward_funcs"])
    if functions:
        found.append(Role("functions", ", ".join(functions), source, takes=False))
    return tuple(found)


def schedule(recipe: Recipe, train: Counts, machine: Machine) -> Schedule:
    """Rollouts, and the steps on each."""
    minibatches, epochs = recipe["num_mini_batches"], recipe["num_ppo_epochs"]
    local = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * minibatches
    batch, steps_each = local * machine.processes, epochs * minibatches
    wanted = recipe["total_episodes"] or int(recipe["num_train_epochs"] * train.examples)
    rollouts = max(1, -(-wanted // batch))
    steps = rollouts * steps_each
    if recipe["max_steps"] > 0:
        steps = recipe["max_steps"]
        rollouts = -(-steps // steps_each)
    rounded = rollouts * batch - wanted if recipe["total_episodes"] and recipe["max_steps"] <= 0 else 0
    more = f" ({rounded} more than `total_episodes`)" if rounded else ""
    times = f"{epochs} times" if epochs > 1 else "once"
    text = f"{steps:,} on {rollouts:,} rollouts of {batch:,} episodes, each trained on {times}{more}"
    at_once = min(local, recipe["local_rollout_forward_batch_size"] or local)
    an_epoch = max(1, -(-train.examples // batch)) * steps_each
    return Schedule(batch, steps, an_epoch, text, Sampled(at_once, train.longest))


def decide(recipe: Recipe, machine: Machine) -> dict[str, Decision]:
    """On a CPU, what makes rollouts fast: a policy answers a token at a time, and casts all its weights for each."""
    in_bf16 = machine.bf16 and (recipe["bf16"] or "bf16" not in recipe)
    if machine.device != "cpu" or not in_bf16 or recipe["load_in_4bit"]:
        return {}
    found = {}
    if recipe["value_model"] == "shared":  # two trunks would keep twice as much of it
        found["attn_implementation"] = Decision("eager", "on a CPU the quicker one at a response's length")
    if recipe["use_peft"] or look_into(str(recipe["model_name_or_path"])).adapter:
        found["dtype"] = Decision("bfloat16", "frozen weights are not cast for every token of a response")
    return found


_POSITIVE, _NOT_NEGATIVE, _COUNT = {"exclusiveMinimum": 0}, {"minimum": 0}, {"minimum": 1}
_CLIP = {"exclusiveMinimum": 0, "maximum": 1}
_FAULTS = ("ratio", "clip_fraction", "entropy", "eos", "length", "repetition", "value")
_NOT_ROLLOUTS = (
    "label_smoothing_factor", "train_sampling_strategy", "length_column_name", "dataloader_drop_last",
    "dataloader_num_workers", "per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only",
    "batch_eval_metrics", "include_for_metrics", "label_names", "remove_unused_columns", "data_seed",
    "bf16_full_eval", "fp16_full_eval", "average_tokens_across_devices",
)  # fmt: skip
_METRICS = ["reward", "gain", "eval_reward", "eval_gain"]


def _unread(keys: Sequence[str], when: dict[str, Any], because: str) -> list[dict[str, Any]]:
    message = "`{}` is not read: " + because
    return [
        {"when": {key: "*", **when}, "message": message.format(key), "fix": "remove it", "severity": "warning"}
        for key in keys
    ]


METHOD = Method(
    command="ppo",
    summary="Proximal policy optimisation: learn from rewards for the policy's own answers",
    config_classes=config_classes,
    rows=PROMPT,
    encode=encode,
    build_config=build_config,
    build_trainer=build_trainer,
    decide=decide,
    roles=roles,
    schedule=schedule,
    required=(("model_name_or_path",), ("dataset_name", "datasets"), ("reward_model_path", "reward_funcs")),
    narrowed={
        **dict.fromkeys(
            (
                "total_episodes",
                "num_ppo_epochs",
                "num_mini_batches",
                "response_length",
                "kl_horizon",
                "local_rollout_forward_batch_size",
            ),
            _COUNT,
        ),
        **dict.fromkeys(
            (
                "temperature",
                "kl_target",
                "stop_at_kl",
                "target_kl",
                "reward_clip_range",
                "cliprange_high",
                "cliprange_value",
                "value_learning_rate",
            ),
            _POSITIVE,
        ),
        **dict.fromkeys(
            ("kl_coef", "missing_eos_penalty", "vf_coef", "entropy_coef", "reward_std_coef", "value_warmup_rollouts"),
            _NOT_NEGATIVE,
        ),
        "cliprange": _CLIP,
        "dual_clip": {"exclusiveMinimum": 1},
        "gamma": {"minimum": 0, "maximum": 1},
        "lam": {"minimum": 0, "maximum": 1},
        "value_model": {"enum": ["shared", "separate"]},
        "reward_ensemble": {"enum": ["mean", "min", "mean_minus_std"]},
        "stop_token": {"type": ["string", "null"], "enum": ["eos", None]},
        "kl_estimator": {
            "type": "string",
            "enum": ["k1"],
            "x-fix": "k1: as part of a reward, k3 has another gradient than the KL; it is logged as `objective/kl_k3`",
        },
        "metric_for_best_model": {"enum": [*_METRICS, None]},
        "ignore_data_skip": {"enum": [False]},
    },
    refused={
        **dict.fromkeys(
            ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"),
            "responses are drawn from exactly the policy that learns, else its ratio and its KL are of another one",
        ),
        **dict.fromkeys(
            (
                "mini_batch_size",
                "batch_size",
                "micro_batch_size",
                "local_batch_size",
                "local_mini_batch_size",
                "num_total_batches",
                "rollout_batch_size",
            ),
            "it follows: a rollout is `per_device_train_batch_size` × `gradient_accumulation_steps` × "
            "`num_mini_batches` episodes a process",
        ),
        "world_size": "pass `--num-processes` on the command line",
        "value_model_path": "write `value_model: separate`, which begins as the reward model",
        "ref_model": "the reference is `model_name_or_path` as it is at the beginning",
        "use_score_scaling": "`normalize_rewards` does so by the answers stored with the reward model",
        "use_score_norm": "`normalize_rewards` does so by the answers stored with the reward model",
        "adap_kl_ctrl": "`kl_target` adapts `kl_coef`; without it, `kl_coef` stays",
    },
    rules=(
        *_unread(_NOT_ROLLOUTS, {}, "it is for training on rows, and rollouts are made here"),
        {
            "when": {"neftune_noise_alpha": "*"},
            "message": "`neftune_noise_alpha` would make another policy of it in training than in sampling",
            "fix": "remove it",
        },
        *(
            {
                "when": {"value_model": "separate", "reward_model_path": None, quantised: True},
                "message": "a separate value model would begin as the policy, whose quantised weights cannot train",
                "fix": "write `value_model: shared`, or a `reward_model_path` for it to begin as",
            }
            for quantised in ("load_in_4bit", "load_in_8bit")
        ),
        {
            "when": {"kl_coef": 0.0, "kl_target": "*"},
            "message": "`kl_target` adapts `kl_coef`, and 0 stays 0",
            "fix": "set `kl_coef` to where it begins, such as 0.05",
        },
        {
            "when": {"kl_coef": 0.0, "stop_at_kl": "*"},
            "message": "`kl_coef: 0` does without a reference, so there is no KL to stop at",
            "fix": "set `kl_coef: 1e-6` to measure it all but for free",
        },
        *(
            {
                "when": {"metric_for_best_model": metric, "kl_coef": 0.0},
                "message": "the gain is over the reference, and `kl_coef: 0` does without one",
                "fix": "set `metric_for_best_model: reward`",
            }
            for metric in ("gain", "eval_gain")
        ),
        {
            "when": {"fp16": True, "target_kl": "*"},
            "message": "`target_kl` leaves steps out, which the loss scaling of `fp16` does not know",
            "fix": "use `bf16`",
        },
        *_unread(
            ("reward_ensemble", "reward_std_coef", "normalize_rewards"),
            {"reward_model_path": None},
            "there is no `reward_model_path`",
        ),
        *_unread(("missing_eos_penalty",), {"stop_token": None, "stop_token_id": None}, "nothing ends a response"),
    ),
    keys={
        "guards": {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: {"enum": ["stop", "warn", "off"]} for name in ("nan", *_FAULTS)},
            "default": {},
            "description": "What to do when training goes wrong: stop (exit code 6), warn or off. `nan`, a loss or "
            "gradient that is not finite, stops unless told otherwise; the others warn when they last for three "
            "rollouts. `stop_at_kl` is the budget of KL.",
        },
        "lora_task_type": {
            "enum": ["CAUSAL_LM"],
            "default": "CAUSAL_LM",
            "description": "What the adapter is for; here always a causal language model.",
        },
    },
    starter="""\
# Aligns a chat model to a reward model, with LoRA.   rlhf ppo {path}
method: ppo
model_name_or_path: {model}       # the policy; as it is now, it is the reference
reward_model_path: runs/reward    # made by rlhf train-reward
dataset_name: {data}
test_split_size: 64               # prompts held out, and answered at the end
use_peft: true
lora_r: 16
lora_target_modules: all-linear
response_length: 128
missing_eos_penalty: 1.0
kl_coef: 0.05                     # how dear it is to leave the reference
stop_at_kl: 50                    # nats a response
per_device_train_batch_size: 4
gradient_accumulation_steps: 8    # a rollout is 32 episodes
total_episodes: 3200
learning_rate: 1.0e-5
output_dir: {output}
""",
    starter_data="trl-lib/ultrafeedback-prompt",
)

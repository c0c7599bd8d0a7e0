"""What PPO is told: the keys of TRL's last PPOConfig, and what it had none for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import IntervalStrategy, TrainingArguments

from rlhf_cli.errors import EnvironmentFault


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of `PPOTrainer`.

    A rollout is `per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches` episodes a process; it
    is trained on for `num_ppo_epochs × num_mini_batches` optimizer steps. `save_steps`, `eval_steps` and `max_steps`
    count optimizer steps.

    Raises:
        ValueError: when values do not go together.
        EnvironmentFault: when the processes are to share a model out, which is not tested.
    """

    learning_rate: float = _key(3e-6, "The learning rate at the start.")
    adam_epsilon: float = _key(1e-5, "Epsilon of Adam; 1e-5 damps the first steps, as in OpenAI's.")
    logging_steps: float | None = _key(
        None, "Log every so many optimizer steps; null is once a rollout, when its last step is done."
    )
    max_length: int | None = _key(
        None,
        "Tokens of a prompt and its response; a prompt that leaves no room for `response_length` is left out. null is "
        "what the model can read.",
    )
    dataset_num_proc: int | None = _key(None, "Processes that turn rows into tokens.")
    model_init_kwargs: dict[str, Any] | str | None = _key(None, "More arguments of `from_pretrained`.")
    trust_remote_code: bool = _key(False, "Whether code that comes with a model may run.")
    guards: dict[str, str] | None = _key(None, "What to do when training goes wrong, by the name of the fault.")
    # --- episodes ---
    total_episodes: int | None = _key(
        None,
        "Responses to make and learn from, rounded up to whole rollouts; null is `num_train_epochs` of the prompts.",
    )
    num_ppo_epochs: int = _key(4, "Times that a rollout is trained on.")
    num_mini_batches: int = _key(1, "Optimizer steps that one pass over a rollout is cut into.")
    response_length: int = _key(128, "Tokens of a response at most.")
    temperature: float = _key(1.0, "Logits are divided by it, in sampling and in training alike.")
    stop_token: Literal["eos"] | None = _key("eos", "`eos` ends a response at the end token; null does not.")
    stop_token_id: int | list[int] | None = _key(None, "More tokens that end a response.")
    local_rollout_forward_batch_size: int | None = _key(
        None, "Sequences at once in generation, at most; null is as many as a fifth of the memory holds."
    )
    # --- rewards ---
    reward_model_path: str | list[str] | None = _key(
        None, "Reward models: runs of `rlhf train-reward`, folders or Hub ids."
    )
    reward_funcs: str | list[str] | None = _key(
        None,
        "Reward functions, `file.py:function` or `package.module:function`, called as TRL's GRPO calls its own: "
        "`f(prompts=, completions=, completion_ids=, **columns) -> list[float]`.",
    )
    reward_weights: list[float] | None = _key(
        None, "A weight for each reward, models first, then functions; null is 1 each."
    )
    reward_ensemble: Literal["mean", "min", "mean_minus_std"] = _key("mean", "What the members of an ensemble come to.")
    reward_std_coef: float = _key(1.0, "λ of `mean_minus_std`: mean − λ·standard deviation.")
    normalize_rewards: bool = _key(
        True, "Bring a reward model's scores to mean 0 and standard deviation 1 on the answers stored with it."
    )
    reward_clip_range: float | None = _key(None, "Rewards are kept within ± this.")
    missing_eos_penalty: float | None = _key(None, "Taken off the reward of a response that does not end.")
    whiten_rewards: bool = _key(False, "Scale the rewards of a rollout to variance 1.")
    # --- KL ---
    kl_coef: float = _key(0.05, "What a nat of KL from the reference costs; 0 does without a reference.")
    kl_estimator: Literal["k1"] = _key(
        "k1", "Of the KL in the reward. k3 has another gradient there than the KL; it is logged."
    )
    kl_target: float | None = _key(None, "Nats a response that `kl_coef` is adapted to keep; null leaves it as it is.")
    kl_horizon: int = _key(10_000, "Episodes in which `kl_coef` changes by a fifth at most.")
    stop_at_kl: float | None = _key(
        None, "Stop the run when a rollout's KL is beyond so many nats a response (exit code 6)."
    )
    # --- the update ---
    cliprange: float = _key(0.2, "How far the ratio may leave 1 before its gradient is cut.")
    cliprange_high: float | None = _key(None, "The same above 1; null is `cliprange`.")
    dual_clip: float | None = _key(None, "Bound of the loss at negative advantages, times the advantage; such as 3.")
    cliprange_value: float | None = _key(0.2, "How far a value may move from what it was; null does not clip.")
    target_kl: float | None = _key(
        None, "Leave out the rest of a rollout's steps once the policy is 1.5 × so many nats a token from where it was."
    )
    vf_coef: float = _key(0.1, "Weight of the value loss.")
    entropy_coef: float = _key(0.0, "Weight of an entropy bonus.")
    gamma: float = _key(1.0, "Discount of a reward a token later.")
    lam: float = _key(0.95, "λ of generalised advantage estimation.")
    whiten_advantages: bool = _key(True, "Scale the advantages of a rollout to mean 0 and variance 1.")
    # --- the value ---
    value_model: Literal["shared", "separate"] = _key(
        "shared",
        "`shared` is a head on the policy's trunk; `separate` a model of its own that begins as the reward model, or "
        "as the policy where there is none.",
    )
    value_learning_rate: float | None = _key(None, "Learning rate of the value; null is the policy's.")
    value_warmup_rollouts: int = _key(0, "First rollouts that train the value alone.")

    def __post_init__(self) -> None:
        if self.logging_steps is None:
            self.logging_steps = self.steps_a_rollout
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        if self.metric_for_best_model is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            self.metric_for_best_model = "eval_reward"
        super().__post_init__()
        if self.fp16 and self.target_kl is not None:
            raise ValueError("`target_kl` leaves steps out, which the loss scaling of `fp16` does not know; use `bf16`")
        if self.temperature <= 0:
            raise ValueError("`temperature` must be above 0: PPO learns from samples, and at 0 there is one answer")
        for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
            if os.environ.get(variable, "false").lower() == "true" or self.fsdp or self.deepspeed:
                raise EnvironmentFault(
                    f"PPO does not run under {name} yet: it is not tested there",
                    hint="`--num-processes N` alone trains one copy a GPU",
                )

    @property
    def steps_a_rollout(self) -> int:
        """Optimizer steps a rollout is trained on for."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def local_episodes(self) -> int:
        """Episodes of a rollout that one process makes."""
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches)

    def settle(self, prompts: int, processes: int) -> None:
        """Give what depends on the number of prompts: `max_steps`, and steps for what is done every epoch.

        To the Trainer the whole run is one epoch, since prompts are drawn for rollouts, and not for steps.
        """
        episodes = self.local_episodes * processes
        if self.max_steps <= 0:
            wanted = self.total_episodes or int(self.num_train_epochs * prompts)
            self.max_steps = max(1, -(-wanted // episodes)) * self.steps_a_rollout
        an_epoch = max(1, -(-prompts // episodes)) * self.steps_a_rollout
        for event in ("save", "eval", "logging"):
            if getattr(self, f"{event}_strategy") == IntervalStrategy.EPOCH:
                setattr(self, f"{event}_strategy", type(getattr(self, f"{event}_strategy"))("steps"))
                setattr(self, f"{event}_steps", an_epoch)

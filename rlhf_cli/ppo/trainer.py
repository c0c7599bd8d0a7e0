"""PPO on transformers.Trainer: rollouts made as batches are asked for, and the loss on them."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import speed_metrics

from rlhf_cli.errors import RecipeError
from rlhf_cli.models import as_mapping
from rlhf_cli.ppo import math
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.evaluation import Evaluation
from rlhf_cli.ppo.experience import Experience, Rollout
from rlhf_cli.ppo.model import (
    REFERENCE_ADAPTER,
    PolicyWithValue,
    copy_adapter,
    disable_dropout,
    make_batch,
)
from rlhf_cli.ppo.prompts import encode_prompts
from rlhf_cli.ppo.rewards import FunctionReward, Reward, RewardFunction, Rewards
from rlhf_cli.ppo.rollout import from_tensors, to_tensors
from rlhf_cli.ppo.update import UpdateStatistics, cut_minibatches

_REMEMBERED = 1000
"""Rollouts whose metrics wait for a log event, where there are none."""
_STATE, _ROLLOUT, _VALUE_HEAD, _CRITIC = "ppo_state.json", "ppo_rollout.safetensors", "value_head.safetensors", "value"


class PPOTrainer(Trainer):
    """Proximal policy optimisation of a language model against rewards, with a penalty for leaving the reference.

    The reference is the model as it is given: a new adapter switched off, a frozen copy of an adapter that is trained
    on, or a frozen copy of the weights.

    Args:
        model: The policy: a name or folder, a model, or one with its value already.
        args: Settings.
        reward_funcs: Functions as TRL's GRPO takes them, or `Reward`s, one or several.
        train_dataset: With a column `prompt`: text, which is continued, or messages, which are answered. Other columns
            are given to the functions.
        eval_dataset: The same, held out.
        processing_class: The tokenizer; None loads the model's.
        peft_config: Of a new adapter.
        continues: Whether the model's adapter was trained before; None takes a model that has one to be.
        callbacks: Of transformers; `on_rollout` and `on_answers` are called where they have them.

    Raises:
        RecipeError: when there is nothing to learn from, or the adapter cannot be used.
    """

    loss_is_scaled_for_ga = True

    def __init__(  # noqa: PLR0913 - the arguments of TRL's trainers
        self,
        model: str | PreTrainedModel | PeftModel | PolicyWithValue,
        args: PPOConfig,
        *,
        reward_funcs: RewardFunction | Reward | Sequence[RewardFunction | Reward],
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        continues: bool | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise RecipeError("one process trains on one GPU", hint="accelerate launch, or CUDA_VISIBLE_DEVICES=0")
        if peft_config is not None:
            continues = False
        model = _make_model(model, args, peft_config)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config.name_or_path)
        train_dataset = encode_prompts(train_dataset, processing_class, args, model)
        if eval_dataset is not None:
            eval_dataset = encode_prompts(eval_dataset, processing_class, args, model)
        disable_dropout(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=lambda numbers: {"micro_step": numbers[0]},
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        args.settle(len(train_dataset), args.world_size)
        self.kl_coef = args.kl_coef
        self.experience = Experience(
            model,
            self._take_rewards(reward_funcs),
            args,
            processing_class,
            reference=self._make_reference(model, continues=continues),
            autocast=self.accelerator.autocast,
        )
        self._evaluation = Evaluation(self.experience, args)
        self._rollout: Rollout | None = None
        self._minibatches: list[list[list[int]]] = []
        self._statistics = UpdateStatistics()
        self._pending: list[dict[str, float]] = []
        self._started = time.perf_counter()
        self._made = 0
        self._rollout_ready = self._started

    def _take_rewards(self, given: Any) -> Rewards:
        several: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given]
        rewards: list[Any] = [each if hasattr(each, "judge") else FunctionReward(each) for each in several]
        for reward in rewards:
            if isinstance(reward, FunctionReward):
                reward.state = lambda: self.state
        return Rewards(rewards, self.args)

    def _make_reference(self, model: PolicyWithValue, *, continues: bool | None) -> PreTrainedModel | None:
        if not self.args.kl_coef:
            return None
        if not isinstance(model.policy, PeftModel):
            return copy.deepcopy(model.policy).eval().requires_grad_(False)
        if continues is not False and REFERENCE_ADAPTER not in model.policy.peft_config:
            copy_adapter(model.policy, REFERENCE_ADAPTER)
        return None

    # --- batches ---

    def get_train_dataloader(self) -> DataLoader:
        """Numbers of micro-steps: what is trained on in each is made when it is reached."""
        steps = self.args.max_steps * self.args.gradient_accumulation_steps
        return DataLoader(range(steps), batch_size=1, collate_fn=self.data_collator)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The micro-batch of a micro-step, from a rollout that is made where it begins."""
        args = self.args
        per_rollout = args.steps_a_rollout * args.gradient_accumulation_steps
        number, micro = divmod(inputs["micro_step"], per_rollout)
        if self._rollout is None or self._rollout.number != number:
            self._rollout = self._make_rollout(number)
        step, accumulated = divmod(micro, args.gradient_accumulation_steps)
        part = self._minibatches[step][accumulated * args.world_size + args.process_index]
        episodes = [self._rollout.episodes[index] for index in part]
        batch = make_batch(
            [episode.prompt_ids for episode in episodes],
            [episode.response_ids for episode in episodes],
            self.model.device,
        )
        members = [index for each in self._minibatches[step] for index in each]
        tokens = sum(len(self._rollout.episodes[index].response_ids) for index in members)
        known: dict[str, Any] = {
            name: torch.from_numpy(np.concatenate([getattr(episode, name) for episode in episodes])).to(
                batch.rows.device
            )
            for name in ("log_probs", "values", "advantages", "returns")
        }
        ends = accumulated == args.gradient_accumulation_steps - 1
        facts = {"tokens": tokens, "is_first": step == 0, "ends_step": ends, "number": number}
        return {"batch": batch, **known, **facts}

    def _make_rollout(self, number: int) -> Rollout:
        """Make a rollout, adapt the KL coefficient, and tell who listens."""
        args = self.args
        rollout = self.experience.collect(self.train_dataset, number, kl_coef=self.kl_coef, processes=args.world_size)
        self._cut(rollout)
        episodes = len(rollout.episodes)
        self._made += episodes
        self._rollout_ready = time.perf_counter()
        metrics = rollout.metrics
        metrics["episode"] = float((number + 1) * episodes)
        metrics["eps"] = self._made / (time.perf_counter() - self._started)
        self._pending = [*self._pending[-_REMEMBERED:], metrics]
        if args.kl_target is not None:
            self.kl_coef = math.adapted_coefficient(
                self.kl_coef, metrics["objective/kl"], target=args.kl_target, share=episodes / args.kl_horizon
            )
        first = rollout.episodes[0]
        asked = self.processing_class.decode(first.prompt_ids, skip_special_tokens=True)
        sample = {"prompt": asked, "response": first.text, "reward": first.score}
        self._tell("on_rollout", metrics={**self._statistics.latest, **metrics}, sample=sample)
        return rollout

    def _cut(self, rollout: Rollout) -> None:
        lengths = [len(episode.prompt_ids) + len(episode.response_ids) for episode in rollout.episodes]
        self._minibatches = cut_minibatches(lengths, self.args, rollout.number)
        self._statistics.begin_rollout()

    def _tell(self, event: str, **facts: Any) -> None:
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self.args, self.state, self.control, **facts)

    # --- the update ---

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Policy loss, value loss and entropy bonus, each a mean over the tokens of the whole minibatch.

        Over all micro-batches and processes, that is: however a minibatch is cut up, its gradient is the same.
        """
        args = self.args
        if self._statistics.left_out:
            return torch.zeros((), device=args.device, requires_grad=True)
        warms_up = inputs["number"] < args.value_warmup_rollouts
        self.model.holds_trunk = warms_up
        log_probs, entropy, values = model(**vars(inputs["batch"]))
        # Where nothing was trained since the rollout, the ratio is 1 by definition and not up to rounding.
        old = log_probs.detach() if inputs["is_first"] else inputs["log_probs"]
        clip = (args.cliprange, args.cliprange_high if args.cliprange_high is not None else args.cliprange)
        terms = math.policy_terms(log_probs, old, inputs["advantages"], clip=clip, dual_clip=args.dual_clip)
        value_loss, value_clipped = math.value_terms(
            values, inputs["values"], inputs["returns"], clip=args.cliprange_value
        )
        share = args.world_size / inputs["tokens"]  # DDP takes the mean over processes
        policy_loss = (terms.loss - args.entropy_coef * entropy).sum() * (0.0 if warms_up else 1.0)
        loss: Tensor = (policy_loss + args.vf_coef * value_loss.sum()) * share
        self._statistics.add(terms, value_loss.detach(), value_clipped, entropy.detach())
        if inputs["ends_step"]:
            mean = self._statistics.end_step(args.vf_coef)
            limit = args.target_kl
            # From the next step on; 1.5 as in OpenAI's spinningup.
            self._statistics.left_out = limit is not None and mean["policy/approxkl_avg"] > 1.5 * limit
        return loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, with a learning rate of its own for the value where there is one."""
        if self.optimizer is None and self.args.value_learning_rate is not None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[bool, bool], list[Tensor]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((name.startswith("policy."), name in decayed), []).append(parameter)
            chosen, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = {True: self.args.learning_rate, False: self.args.value_learning_rate}
            decays = {True: self.args.weight_decay, False: 0.0}
            self.optimizer = chosen(
                [
                    {"params": parameters, "lr": rates[of_policy], "weight_decay": decays[decays_too]}
                    for (of_policy, decays_too), parameters in groups.items()
                ],
                **arguments,
            )
        return super().create_optimizer(model)

    # --- logs and evaluation ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the rollouts and steps since the last log have come to; `epoch` is passes over the prompts."""
        if "loss" in logs:
            logs |= self._statistics.take()
            logs |= self._take_pending()
        if self._rollout is not None:
            episodes = (self._rollout.number + 1) * len(self._rollout.episodes)
            self.state.epoch = episodes / len(self.train_dataset)
        super().log(logs, start_time)

    def _take_pending(self) -> dict[str, float]:
        """What the rollouts since the last log have come to."""
        rollouts, self._pending = self._pending, []
        if not rollouts:
            return {}
        known = {name: [each[name] for each in rollouts if name in each] for name in rollouts[-1]}
        told = {name: float(np.mean(values)) for name, values in known.items()}
        told |= {name: rollouts[-1][name] for name in ("episode", "eps")}
        return {**told, "time/train": time.perf_counter() - self._rollout_ready}

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer the held-out prompts with the likeliest tokens, and compare with the reference's answers."""
        prompts = eval_dataset if eval_dataset is not None else self.eval_dataset
        if prompts is None:
            raise ValueError("there are no held-out prompts to evaluate on")
        started = time.time()
        metrics, answers = self._evaluation.run(prompts, prefix=metric_key_prefix)
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(prompts))
        self._tell("on_answers", answers=answers)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- saving ---

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The policy as plain transformers or PEFT load it, and the value beside it."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        model: PolicyWithValue = self.model
        adapters = {"selected_adapters": [model.policy.active_adapter]} if isinstance(model.policy, PeftModel) else {}
        model.policy.save_pretrained(folder, **adapters)
        self.processing_class.save_pretrained(folder)
        save_file(model.value_head.state_dict(), folder / _VALUE_HEAD)
        if model.critic is not None:
            model.critic.save_pretrained(folder / _CRITIC)
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model=self.model.policy)
        self.model.value_head.load_state_dict(load_file(folder / _VALUE_HEAD))
        if self.model.critic is not None:
            super()._load_from_checkpoint(str(folder / _CRITIC), model=self.model.critic)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Also where the run is: the KL coefficient, what is still to be logged, and a rollout that is not done."""
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save or self._rollout is None:
            return
        state = {
            "kl_coef": self.kl_coef,
            "rollout": self._rollout.number,
            "pending": self._pending,
            "statistics": self._statistics.state(),
            "callbacks": [callback.kept for callback in self.callback_handler.callbacks if hasattr(callback, "kept")],
        }
        (Path(output_dir) / _STATE).write_text(json.dumps(state), encoding="utf-8")
        if self.state.global_step % self.args.steps_a_rollout:
            save_file(to_tensors(self._rollout.episodes), Path(output_dir) / _ROLLOUT)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = json.loads((Path(checkpoint) / _STATE).read_text(encoding="utf-8"))
        self.kl_coef = state["kl_coef"]
        kept = Path(checkpoint) / _ROLLOUT
        if kept.exists():
            self._rollout = Rollout(state["rollout"], from_tensors(load_file(kept)))
            self._cut(self._rollout)
        self._pending = state["pending"]
        self._statistics.restore(state["statistics"])
        keepers = [callback for callback in self.callback_handler.callbacks if hasattr(callback, "kept")]
        for callback, kept_state in zip(keepers, state["callbacks"], strict=False):
            callback.kept = kept_state


def _make_model(
    model: str | PreTrainedModel | PeftModel | PolicyWithValue, config: PPOConfig, adapter: PeftConfig | None
) -> PolicyWithValue:
    """A policy with its value, from whatever was given; one that is loaded by name is held in fp32."""
    if isinstance(model, PolicyWithValue):
        return model
    if isinstance(model, str):
        how = {"dtype": torch.float32, "trust_remote_code": config.trust_remote_code}
        model = AutoModelForCausalLM.from_pretrained(model, **how, **as_mapping(config.model_init_kwargs))
    if adapter is not None:
        model = get_peft_model(model, adapter)
    return PolicyWithValue(model, temperature=config.temperature)

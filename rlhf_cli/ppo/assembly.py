"""A PPOTrainer from a recipe's settings: rewards loaded, the value begun, the policy's base shared where it can be."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rlhf_cli.adapters import head_names
from rlhf_cli.data import Encodings
from rlhf_cli.errors import RecipeError
from rlhf_cli.machine import detect_machine
from rlhf_cli.model_source import look_into
from rlhf_cli.models import Loaded
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.guards import PPOGuards
from rlhf_cli.ppo.model import PolicyWithValue
from rlhf_cli.ppo.rewards import ModelReward, Reward, Scale, load_function
from rlhf_cli.ppo.samples import SampleWriter
from rlhf_cli.ppo.shared_reward import share_base
from rlhf_cli.ppo.trainer import PPOTrainer
from rlhf_cli.recipe import as_list
from rlhf_cli.reward_model import RewardModel, load_reward_model, measure_scale
from rlhf_cli.run_dir import RunDir
from rlhf_cli.terminal import say


def assemble(config: PPOConfig, loaded: Loaded, data: Encodings) -> PPOTrainer:
    """Build the trainer of a run.

    Args:
        config: Its settings.
        loaded: The policy, its adapter on, and its tokenizer.
        data: Prompts, as `encode_rows` gives them.

    Raises:
        RecipeError: when a reward cannot be had.
    """
    paths = as_list(config.reward_model_path)
    critic = _begin_critic(config, loaded, paths) if config.value_model == "separate" else None
    model = PolicyWithValue(loaded.model, critic=critic.trunk if critic else None, temperature=config.temperature)
    if critic is not None:
        critic.give_head(model)
    model.to(config.device)  # before the rewards ask where it is
    models = [_load_reward_model(config, loaded, model, path) for path in paths]
    names = _told_apart(paths)
    scaled = Scale(config.normalize_rewards, config.reward_ensemble, config.reward_std_coef)
    judges = [ModelReward(each, scaled, name=name) for each, name in zip(models, names, strict=True)]
    for judge in judges if config.normalize_rewards else []:
        scale = measure_scale(judge.model, judge.stored)
        say(f"{judge.name}: {scale.as_text() if scale else 'no stored answers to bring its scores to a scale by'}")
    rewards: list[Reward] = [*judges]
    rewards += [load_function(name) for name in as_list(config.reward_funcs)]
    trainer = PPOTrainer(
        model,
        config,
        reward_funcs=rewards,
        train_dataset=data.train,
        eval_dataset=data.test,
        processing_class=loaded.tokenizer,
        continues=loaded.source.adapter is not None,
    )
    run = RunDir(Path(config.output_dir))
    trainer.add_callback(PPOGuards(run, config, config.guards))
    trainer.add_callback(SampleWriter(run))
    return trainer


def _told_apart(paths: list[str]) -> list[str]:
    """Names for metrics: the folder's, or more of the path where two are called alike."""
    short = [Path(path).name for path in paths]
    return short if len(set(short)) == len(short) else paths


def _load_reward_model(config: PPOConfig, loaded: Loaded, model: PolicyWithValue, path: str) -> RewardModel:
    """On the policy's base where it was trained on that, else with weights of its own."""
    computes = torch.bfloat16 if config.bf16 else torch.float32
    if isinstance(loaded.model, PeftModel) and look_into(path).is_adapter_on_base_of(loaded.source):
        return share_base(path, model, compute=computes)
    machine, trusts = detect_machine(use_cpu=config.use_cpu), config.trust_remote_code
    found = load_reward_model(path, machine, trust_remote_code=trusts)
    found.model.requires_grad_(False)
    return found


class _Critic:
    """A value model that begins as a reward model, head and scale included, or as the policy."""

    def __init__(self, trunk: PreTrainedModel, head: torch.nn.Linear | None, stamp: dict[str, float]) -> None:
        self.trunk = trunk.float().requires_grad_(True)
        self._head = head
        self._mean, self._std = stamp.get("mean", 0.0), stamp.get("std") or 1.0

    def give_head(self, model: PolicyWithValue) -> None:
        """Values begin as the normalised scores that the reward model would give there."""
        if self._head is None:
            return
        with torch.no_grad():
            model.value_head.weight.copy_(self._head.weight / self._std)
            bias = self._head.bias if self._head.bias is not None else torch.zeros(1)
            model.value_head.bias.copy_((bias - self._mean) / self._std)


def _begin_critic(config: PPOConfig, loaded: Loaded, paths: list[str]) -> _Critic:
    if not paths:
        policy = copy.deepcopy(loaded.model)
        return _Critic((policy.unload() if isinstance(policy, PeftModel) else policy).base_model, None, {})
    machine, trusts = detect_machine(use_cpu=config.use_cpu), config.trust_remote_code
    start = load_reward_model(paths[0], machine, quantisation={}, trust_remote_code=trusts)
    if start.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise RecipeError(
            f"the value model would begin as `{paths[0]}`, whose tokenizer is not the policy's",
            hint="use `value_model: shared`, or a reward model trained from the policy",
        )
    whole = start.model.merge_and_unload() if isinstance(start.model, PeftModel) else start.model
    (name,) = head_names(whole)
    head = getattr(whole, name)
    return _Critic(whole.base_model, head, start.stamp.get("scores", {}) if config.normalize_rewards else {})

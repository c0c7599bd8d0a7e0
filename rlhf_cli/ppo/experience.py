"""Rollouts from beginning to end: prompts answered, scored, rewarded, and turned into advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.errors import UserError
from rlhf_cli.machine import gather_parts, hand_back_memory, own_part, total_memory
from rlhf_cli.ppo import math
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.model import Batch, PolicyWithValue, make_batch
from rlhf_cli.ppo.rewards import Answer, Rewards
from rlhf_cli.ppo.rollout import Episode, Floats, Generator, ModelGenerator, Sampling, in_batches, pad
from rlhf_cli.recipe import as_list
from rlhf_cli.text_measures import repetition

_BATCH_TOKENS = {"cuda": 16_384, "cpu": 4096}
"""Of a forward pass without gradients, padding included."""


@dataclass
class Rollout:
    """The episodes of all processes, in each of them, and what they come to."""

    number: int
    episodes: list[Episode]
    metrics: dict[str, float] = field(default_factory=dict)


class Experience:
    """Makes rollouts with a policy and judges them.

    Every process makes its share of the episodes, and then has all of them: 12 MB for 512 episodes of 1,024 tokens.
    What follows from a rollout as a whole, such as whitening, is then the same everywhere, however many there are.
    """

    def __init__(
        self,
        model: PolicyWithValue,
        rewards: Rewards,
        config: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: PreTrainedModel | None,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model = model
        self.rewards = rewards
        self.reference = reference
        self._config = config
        self._tokenizer = tokenizer
        self._autocast = autocast
        self._stops = stop_tokens(tokenizer, model, stop_token=config.stop_token, stop_token_id=config.stop_token_id)
        self.seconds: dict[str, float] = {}

    # --- episodes ---

    def collect(self, prompts: Dataset, number: int, *, kl_coef: float, processes: int) -> Rollout:
        """Make one rollout.

        Args:
            prompts: With the columns `prompt_ids`, `prompt` and `columns`.
            number: Of the rollout, from 0.
            kl_coef: What a nat of KL costs.
            processes: That make it together.
        """
        count = self._config.local_episodes * processes
        numbers = range(number * count, (number + 1) * count)
        wanted = list(zip(numbers, prompt_order(len(prompts), numbers, self._config.seed), strict=True))
        self.seconds = {}
        with self._thinking():
            mine = self._answer(prompts, wanted, greedy=False)
            with self._timed("score"):
                self._score(mine)
        with self._timed("reward"):
            episodes = self._reward(mine, prompts)
        rollout = Rollout(number, episodes)
        self._estimate(rollout, kl_coef)
        return rollout

    def answer_all(self, prompts: Dataset, *, as_reference: bool = False) -> list[Episode]:
        """Answer every prompt with the likeliest tokens, and judge the answers; the processes share the work.

        Args:
            prompts: As for `collect`.
            as_reference: Whether the reference answers, and not the policy.
        """
        wanted = [(index, index) for index in range(len(prompts))]
        with self._thinking():
            if as_reference:
                with self.model.as_reference(self.reference) as model:
                    mine = self._answer(prompts, wanted, greedy=True, model=model)
            else:
                mine = self._answer(prompts, wanted, greedy=True)
                self._score(mine)
        judged: list[Episode] = self._reward(mine, prompts)
        return judged

    @contextmanager
    def _thinking(self) -> Iterator[None]:
        """No gradients, no dropout, and one autocast around all passes, so that weights are cast once."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self.model.train(training)
            if self.model.device.type == "cpu":
                hand_back_memory()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def _answer(
        self,
        prompts: Dataset,
        wanted: Sequence[tuple[int, int]],
        *,
        greedy: bool,
        model: PreTrainedModel | None = None,
    ) -> list[Episode]:
        """This process's share of the episodes, each a number and a row."""
        ids = prompts["prompt_ids"]
        longest_first = sorted(wanted, key=lambda pair: -len(ids[pair[1]]))
        mine = own_part(longest_first)
        asked = [ids[row] for _, row in mine]
        with self._timed("generate"):
            answers = self._generator(asked, model).generate(asked, None if greedy else [number for number, _ in mine])
        return [
            make_episode(number, row, prompt, answer, self._tokenizer, self._stops)
            for (number, row), prompt, answer in zip(mine, asked, answers, strict=True)
        ]

    def _generator(self, prompts: Sequence[Sequence[int]], model: PreTrainedModel | None) -> Generator:
        longest = max(map(len, prompts), default=1)
        config = self._config
        sampling = Sampling(
            config.response_length,
            config.temperature,
            self._stops,
            config.local_rollout_forward_batch_size or sequences_at_once(self.model, longest, config.response_length),
            config.seed,
        )
        return ModelGenerator(model or self.model.policy, sampling, self.model.device)

    # --- what is known of them ---

    def _score(self, episodes: Sequence[Episode]) -> None:
        """Log-probabilities, entropy and values under the policy, and log-probabilities under the reference."""
        for part, batch in episode_batches(episodes, self.model.device):
            scored = self.model.score(batch)
            found = {"log_probs": scored.log_probs, "entropy": scored.entropy, "values": scored.values}
            found["ref_log_probs"] = (
                self.model.reference_log_probs(batch, self.reference) if self._config.kl_coef else scored.log_probs
            )
            for name, values in found.items():
                spread_over(part, name, values)

    @torch.no_grad()
    def _reward(self, episodes: Sequence[Episode], prompts: Dataset) -> list[Episode]:
        """Judge this process's episodes; those of all processes come back, in order.

        A reward that fails in one process is told in all of them, else they would wait for it.
        """
        fault: UserError | None = None
        try:
            self._judge(episodes, prompts)
        except UserError as error:
            fault = error
        for found in gather_parts([fault]):
            if found is not None:
                raise found
        return sorted(gather_parts(list(episodes)), key=lambda episode: episode.number)

    def _judge(self, episodes: Sequence[Episode], prompts: Dataset) -> None:
        rows = prompts.select([episode.prompt for episode in episodes])
        answers = [
            Answer(row["prompt"], episode.text, episode.response_ids, episode.finished, row["columns"] or {})
            for row, episode in zip(rows, episodes, strict=True)
        ]
        scores, parts = self.rewards.judge(answers)
        for episode, score, part in zip(episodes, scores.tolist(), parts, strict=True):
            episode.score, episode.parts = score, part

    def _estimate(self, rollout: Rollout, kl_coef: float) -> None:
        """Rewards a token, advantages and returns, over the whole rollout."""
        episodes, config = rollout.episodes, self._config
        log_probs, mask = pad([episode.log_probs for episode in episodes])
        references, _ = pad([episode.ref_log_probs for episode in episodes])
        values, _ = pad([episode.values for episode in episodes])
        penalty = config.missing_eos_penalty or 0.0
        scores = torch.tensor([episode.score - penalty * (not episode.finished) for episode in episodes])
        kl = math.k1(log_probs, references)
        rewards = math.token_rewards(kl, scores, mask, kl_coef=kl_coef)
        if config.whiten_rewards:
            rewards = math.whiten(rewards, mask, shift_mean=False)
        advantages = math.advantages_of(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        returns = advantages + values
        rollout.metrics = self._describe(episodes, kl, mask, scores, kl_coef)
        rollout.metrics |= {
            "val/explained_var": math.explained_variance(values[mask], returns[mask]),
            "val/mean": float(values[mask].mean()),
            "val/returns_mean": float(returns[mask].mean()),
            "val/returns_std": float(returns[mask].std(correction=0)),
            "val/advantage_std": float(advantages[mask].std(correction=0)),
        }
        if config.whiten_advantages:
            advantages = math.whiten(advantages, mask)
        for index, episode in enumerate(episodes):
            size = len(episode.response_ids)
            episode.advantages = advantages[index, :size].numpy().copy()
            episode.returns = returns[index, :size].numpy().copy()

    def _describe(
        self, episodes: Sequence[Episode], kl: Tensor, mask: Tensor, scores: Tensor, kl_coef: float
    ) -> dict[str, float]:
        sampled, _ = pad([episode.sampled for episode in episodes])
        log_probs, _ = pad([episode.log_probs for episode in episodes])
        references, _ = pad([episode.ref_log_probs for episode in episodes])
        kl = torch.where(mask, kl, 0.0)
        non_score = float(-kl_coef * kl.sum(dim=1).mean())
        return {
            **describe_answers(episodes),
            "objective/kl": float(kl.sum(dim=1).mean()),
            "objective/kl_k3": float(torch.where(mask, math.k3(log_probs, references), 0.0).sum(dim=1).mean()),
            "objective/kl_per_token": float(kl.sum() / mask.sum()),
            "objective/kl_coef": kl_coef,
            "objective/entropy": float(-torch.where(mask, log_probs, 0.0).sum(dim=1).mean()),
            "objective/entropy_per_token": float(np.mean(np.concatenate([each.entropy for each in episodes]))),
            "objective/non_score_reward": non_score,
            "objective/rlhf_reward": non_score + float(scores.mean()),
            "policy/mismatch_logp": float((sampled - log_probs).abs()[mask].mean()),
            **{f"time/{name}": seconds for name, seconds in self.seconds.items()},
        }


def make_episode(
    number: int,
    row: int,
    prompt: Sequence[int],
    answer: tuple[list[int], Floats],
    tokenizer: PreTrainedTokenizerBase,
    stops: frozenset[int],
) -> Episode:
    """An answer as a generator gives it, with its text, and whether a stop token ends it."""
    response, sampled = answer
    finished = response[-1] in stops
    said = response[:-1] if finished else response
    text = tokenizer.decode(said, skip_special_tokens=True)
    return Episode(number, row, list(prompt), response, finished, text, sampled=sampled)


def episode_batches(episodes: Sequence[Episode], device: torch.device) -> Iterator[tuple[list[Episode], Batch]]:
    """Episodes laid out for forward passes without gradients, those of like lengths together."""
    lengths = [len(episode.prompt_ids) + len(episode.response_ids) for episode in episodes]
    for indices in in_batches(lengths, _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"])):
        part = [episodes[index] for index in indices]
        yield part, make_batch([each.prompt_ids for each in part], [each.response_ids for each in part], device)


def spread_over(episodes: Sequence[Episode], name: str, values: Tensor) -> None:
    """Give each episode its own of the values of all their tokens, under a name."""
    sizes = [len(each.response_ids) for each in episodes]
    for episode, own in zip(episodes, values.float().cpu().split(sizes), strict=True):
        setattr(episode, name, own.numpy())


def describe_answers(episodes: Sequence[Episode]) -> dict[str, float]:
    """What is told of answers whether they are trained on or not."""
    lengths = np.array([len(episode.response_ids) for episode in episodes])
    scores = np.array([episode.score for episode in episodes])
    found = {
        "objective/scores": float(scores.mean()),
        "objective/scores_std": float(scores.std()),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.mean([not episode.finished for episode in episodes])),
        "completions/repetition": float(np.mean([repetition(episode.response_ids) for episode in episodes])),
        "val/num_eos_tokens": float(sum(episode.finished for episode in episodes)),
    }
    for name in episodes[0].parts:
        found[f"rewards/{name}/mean"] = float(np.mean([episode.parts[name] for episode in episodes]))
    return found


def prompt_order(prompts: int, numbers: Sequence[int], seed: int) -> list[int]:
    """Which prompt each episode answers: all of them in a new order every time round, so that few prompts go as well.

    Args:
        prompts: How many there are.
        numbers: Of the episodes.
        seed: Of the run.
    """
    orders = {
        turn: np.random.default_rng([seed, turn]).permutation(prompts) for turn in {n // prompts for n in numbers}
    }
    return [int(orders[number // prompts][number % prompts]) for number in numbers]


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase,
    model: PolicyWithValue,
    *,
    stop_token: str | None = "eos",
    stop_token_id: int | list[int] | None = None,
) -> frozenset[int]:
    """What ends a response: with "eos" the end tokens of tokenizer and model, and those that are added."""
    ends = [tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)]
    stops = [token for end in ends for token in as_list(end)] if stop_token == "eos" else []
    return frozenset([*stops, *as_list(stop_token_id)])


def sequences_at_once(model: PolicyWithValue, prompt: int, response: int) -> int:
    """How many sequences a fifth of the device's memory has room for; the same on every start, whatever is free.

    Args:
        model: The policy.
        prompt: Tokens of the longest prompt.
        response: Tokens of a response at most.
    """
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache_bytes = 2 * text.num_hidden_layers * heads * width * 4 * (prompt + response)
    by_cache = int(0.2 * total_memory(model.device)) // cache_bytes
    by_prefill = 4 * _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS["cpu"]) // prompt
    return max(1, int(min(by_cache, by_prefill)))

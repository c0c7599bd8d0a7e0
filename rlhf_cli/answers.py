"""A policy that is asked: its answers, how likely it finds those of others, and the perplexity it gives a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.lineage import read_record, run_of, settings_of
from rlhf_cli.machine import gather_parts, hand_back_memory, own_part, quietly
from rlhf_cli.model_source import look_into
from rlhf_cli.models import QUANTISATION, explain_broken, load_for_generation
from rlhf_cli.plan import Machine
from rlhf_cli.ppo.experience import episode_batches, make_episode, sequences_at_once, spread_over, stop_tokens
from rlhf_cli.ppo.model import PolicyWithValue
from rlhf_cli.ppo.rollout import Episode, Floats, ModelGenerator, Sampling
from rlhf_cli.render import ensure_chat_template


@dataclass(frozen=True)
class Asking:
    """How a policy is asked."""

    response_length: int
    """Tokens at most."""
    temperature: float
    """0 takes the likeliest token."""
    seed: int
    batch_size: int | None = None
    """Prompts at a time; None is as many as a fifth of memory has room for."""
    stops: Sequence[int] = ()
    """Tokens that end an answer, beside the end tokens of tokenizer and model."""


class Respondent:
    """A policy ready to be asked.

    Args:
        name: A run folder, one of its checkpoints, a model folder or a Hub id.
        machine: What it runs on.
        dtype: Of its weights; None is bf16 where the machine computes that, else fp32.
        quantisation: Keys such as `load_in_4bit`; None is as it was trained.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        RecipeError: when it holds no policy.
        EnvironmentFault: when the Hub cannot be reached.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        *,
        dtype: str | None = None,
        quantisation: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        run = run_of(name)
        trained = settings_of(run, read_record(run)) if run else {}
        if quantisation is None:
            quantisation = {key: trained[key] for key in QUANTISATION if trained.get(key)}
        with quietly():
            model, self.tokenizer = load_for_generation(
                name,
                dtype=dtype or ("bfloat16" if machine.bf16 else "float32"),
                device=machine.device,
                model_revision=trained.get("model_revision") or "main",
                trust_remote_code=trust_remote_code,
                quantisation=quantisation,
            )
        self._model = PolicyWithValue(model).to(machine.device).eval()

    @property
    def policy(self) -> Any:
        """The language model itself."""
        return self._model.policy

    @property
    def longest(self) -> int:
        """Tokens it can read."""
        return longest_of(self._model.config)

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], asking: Asking, *, scored: bool = True
    ) -> list[Episode]:
        """Answer prompts, those of like lengths together; the processes of a launch share the work.

        Args:
            prompts: Their tokens.
            numbers: Of the answers: the noise of each is drawn by the seed and its number, whatever else is asked.
            asking: How.
            scored: Whether to find out as well how likely its tokens are.
        """
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        mine = own_part(order)
        asked = [prompts[index] for index in mine]
        sampling = self._sampling(max(map(len, asked), default=1), asking)
        draws = [numbers[index] for index in mine] if asking.temperature else None
        made = ModelGenerator(self._model.policy, sampling, self._model.device).generate(asked, draws)
        episodes = [
            make_episode(index, index, prompts[index], answer, self.tokenizer, sampling.stops)
            for index, answer in zip(mine, made, strict=True)
        ]
        if scored:
            self._score(episodes, "log_probs", asking.temperature)
        hand_back_memory()
        return sorted(gather_parts(episodes), key=lambda episode: episode.number)

    def _sampling(self, longest: int, asking: Asking) -> Sampling:
        at_once = asking.batch_size or sequences_at_once(self._model, longest, asking.response_length)
        stops = stop_tokens(self.tokenizer, self._model, stop_token_id=list(asking.stops))
        return Sampling(asking.response_length, asking.temperature or 1.0, stops, at_once, asking.seed)

    @torch.no_grad()
    def judge_likely(self, episodes: Sequence[Episode], asking: Asking) -> None:
        """Say how likely this model finds the tokens of another's answers: their `ref_log_probs`."""
        mine = own_part(list(episodes))
        self._score(mine, "ref_log_probs", asking.temperature)
        found = dict(gather_parts([(episode.number, episode.ref_log_probs) for episode in mine]))
        for episode in episodes:
            episode.ref_log_probs = found[episode.number]

    def _score(self, episodes: Sequence[Episode], name: str, temperature: float) -> None:
        self._model.temperature = temperature or 1.0
        for part, batch in episode_batches(episodes, self._model.device):
            spread_over(part, name, self._model.score(batch).log_probs)

    @torch.no_grad()
    def surprise(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Nats and tokens of each text, behind a token that begins it."""
        first = self.tokenizer.bos_token_id
        start = [self.tokenizer.eos_token_id if first is None else first]
        windows: list[Episode] = []
        for index, text in enumerate(texts):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            windows += [
                Episode(index, index, start, part, finished=False) for part in _windows(ids, self.longest - 1) if part
            ]
        self._score(windows, "log_probs", 1.0)
        nats, tokens = np.zeros(len(texts), np.float32), np.zeros(len(texts), np.float32)
        for window in windows:
            nats[window.number] -= window.log_probs.sum()
            tokens[window.number] += len(window.log_probs)
        return nats, tokens


def open_tokenizer(name: str, *, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a policy, and how many tokens the policy can read.

    Raises:
        RecipeError: when it has none.
    """
    with explain_broken(name), quietly():
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(look_into(name).base, trust_remote_code=trust_remote_code)
    ensure_chat_template(tokenizer)
    return tokenizer, longest_of(config)


def _windows(ids: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def longest_of(config: Any) -> int:
    """Tokens a model can read; without end where its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether a token means the same text to both, so that one can say how likely the other's answers are."""
    return bool(one.get_vocab() == other.get_vocab())

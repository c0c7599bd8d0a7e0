"""Episodes: responses sampled from the policy, and what is learnt from each token of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_cli.ppo.cache import make_cache

Floats = NDArray[np.float32]


@dataclass
class Episode:
    """A prompt, a response to it, and what was found out about it."""

    number: int
    """From the beginning of the run on; its noise is drawn by it."""
    prompt: int
    """Which row of the dataset it answers."""
    prompt_ids: list[int]
    response_ids: list[int]
    finished: bool
    """Whether a stop token ends it."""
    text: str = ""
    """What the response says, without its stop token."""
    score: float = 0.0
    """What it is worth, before a penalty for not ending."""
    parts: dict[str, float] = field(default_factory=dict)
    """What each reward gave it, as it came; and the standard deviation of an ensemble's members."""
    sampled: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """Log-probabilities of the tokens as they were sampled; all of these have shape (tokens,)."""
    log_probs: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """Log-probabilities under the same policy, in the forward pass that training uses."""
    ref_log_probs: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    entropy: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    values: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    advantages: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    returns: Floats = field(default_factory=lambda: np.empty(0, np.float32))


class Generator(Protocol):
    """What makes responses: here the model itself; a server of another process would fit in as well."""

    def generate(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int] | None
    ) -> list[tuple[list[int], Floats]]:
        """Answer prompts.

        Args:
            prompts: Their tokens.
            numbers: Of the episodes, which key the noise; None takes the likeliest token every time.

        Returns:
            Of each prompt, the response, a stop token included, and the log-probability of every token of it.
        """
        ...


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    response_length: int
    """Tokens at most."""
    temperature: float
    stops: frozenset[int]
    """Tokens that end a response."""
    sequences: int
    """At once, at most."""
    seed: int


def draw_noise(seed: int, number: int, tokens: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each position of an episode: a response hangs on it, and not on its batch.

    Philox makes independent streams by key (Salmon et al. 2011, doi:10.1145/2063384.2063405).
    """
    return np.random.Generator(np.random.Philox(key=[seed, number])).random(tokens)


class ModelGenerator:
    """Samples from exactly the policy's distribution at the temperature: nothing of a generation_config leaks in.

    Sequences that have ended leave the batch, so the last ones are not slowed down by those that are done.
    """

    def __init__(self, model: PreTrainedModel, sampling: Sampling, device: torch.device) -> None:
        self._model = model
        self._sampling = sampling
        self._device = device

    def generate(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int] | None
    ) -> list[tuple[list[int], Floats]]:
        """Answer prompts, those of like lengths together."""
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        answers: list[tuple[list[int], Floats]] = [([], np.empty(0, np.float32))] * len(prompts)
        for start in range(0, len(order), self._sampling.sequences):
            batch = order[start : start + self._sampling.sequences]
            noise = None
            if numbers is not None:
                noise = np.stack([self._noise(numbers[index]) for index in batch])
            for index, answer in zip(batch, self._answer([prompts[i] for i in batch], noise), strict=True):
                answers[index] = answer
        return answers

    def _noise(self, number: int) -> NDArray[np.float64]:
        return draw_noise(self._sampling.seed, number, self._sampling.response_length)

    @torch.no_grad()
    def _answer(
        self, prompts: Sequence[Sequence[int]], noise: NDArray[np.float64] | None
    ) -> Iterator[tuple[list[int], Floats]]:
        """Answer one batch, which is padded on the left."""
        longest = max(map(len, prompts))
        input_ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=self._device)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        stops = torch.tensor(sorted(self._sampling.stops), dtype=torch.long, device=self._device)
        rows = torch.arange(len(prompts), device=self._device)
        draws = None if noise is None else self._on_device(noise)
        tokens: list[list[int]] = [[] for _ in prompts]
        log_probs: list[list[float]] = [[] for _ in prompts]
        cache = make_cache(self._model.config, longest + self._sampling.response_length)
        for position in range(self._sampling.response_length):
            logits = self._model(
                input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            token, log_prob = self._draw(logits, None if draws is None else draws[rows, position])
            for row, one, its in zip(rows.tolist(), token.tolist(), log_prob.tolist(), strict=True):
                tokens[row].append(one)
                log_probs[row].append(its)
            going = torch.isin(token, stops, invert=True)
            if not going.all():
                left = going.nonzero().squeeze(1)
                if not len(left):
                    break
                cache.reorder_cache(left)  # the one that every kind of layer has
                rows, token, mask, positions = rows[left], token[left], mask[left], positions[left]
            input_ids = token[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
        return zip(tokens, (np.array(each, np.float32) for each in log_probs), strict=True)

    def _on_device(self, noise: NDArray[np.float64]) -> Tensor:
        """In fp64, which MPS does not have; there still below 1."""
        if self._device.type != "mps":
            return torch.from_numpy(noise).to(self._device)
        return torch.from_numpy(np.minimum(noise, np.nextafter(np.float32(1), 0)).astype(np.float32)).to(self._device)

    def _draw(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """A token for each row by the inverse of the distribution function, and its log-probability.

        Args:
            logits: Shape (rows, vocabulary).
            noise: In [0, 1), shape (rows,); None takes the likeliest token.
        """
        log_probs = (logits.float() / self._sampling.temperature).log_softmax(dim=-1)
        if noise is None:
            token = log_probs.argmax(dim=-1)
        else:
            cumulative = log_probs.exp().to(noise.dtype).cumsum(dim=-1)
            drawn = noise[:, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, drawn, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
        return token, log_probs.gather(1, token[:, None]).squeeze(1)


def pad(rows: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """Rows of numbers as one tensor, and where there are any; both of shape (rows, longest)."""
    values = torch.zeros(len(rows), max(map(len, rows)))
    mask = torch.zeros(values.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.from_numpy(np.asarray(row))
        mask[index, : len(row)] = True
    return values, mask


def in_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of sequences, the longest first, in batches of at most so many tokens, padding included."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


_IDS = ("prompt_ids", "response_ids")
_TOKENS = ("log_probs", "values", "advantages", "returns")


def to_tensors(episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """What training needs of a rollout, to be saved in the middle of it."""
    kept: dict[str, Tensor] = {"number": torch.tensor([episode.number for episode in episodes])}
    for name in _IDS:
        rows = [getattr(episode, name) for episode in episodes]
        kept[name] = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
        kept[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
    for name in _TOKENS:
        kept[name] = torch.from_numpy(np.concatenate([getattr(episode, name) for episode in episodes]))
    return kept


def from_tensors(kept: Mapping[str, Tensor]) -> list[Episode]:
    """The rollout that `to_tensors` kept."""
    rows: dict[str, Any] = {}
    for name in (*_IDS, *_TOKENS):
        lengths = kept[f"{name}_lengths" if name in _IDS else "response_ids_lengths"].tolist()
        rows[name] = [part.numpy() for part in kept[name].split(lengths)]
    return [
        Episode(
            number, -1, rows["prompt_ids"][index].tolist(), rows["response_ids"][index].tolist(), finished=True,
            **{name: rows[name][index] for name in _TOKENS},
        )
        for index, number in enumerate(kept["number"].tolist())
    ]  # fmt: skip

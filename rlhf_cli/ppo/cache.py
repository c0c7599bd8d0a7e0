"""A key-value cache with room for the whole response from the beginning on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def make_cache(config: Any, tokens: int) -> DynamicCache:
    """A cache as transformers makes it, whose layers do not copy what they hold for every token.

    Args:
        config: Of the model. Layers of another kind than full attention, such as sliding windows, stay as they are.
        tokens: Of a prompt and its response at most.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """Writes new states into room that is there already; `keys` and `values` are views of what is written.

    A DynamicLayer concatenates, which at every token copies all that is held: half the time of sampling on a CPU.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add states of new tokens, each of shape (sequences, heads, new tokens, width), and give all there are."""
        held = self.get_seq_length()
        if self._rooms is None:
            self.lazy_initialization(key_states, value_states)
            self._rooms = (self._room_for(key_states), self._room_for(value_states))
        end = held + key_states.shape[-2]
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., held:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def reorder_cache(self, indices: Tensor) -> None:
        """Keep some of the sequences."""
        if self._rooms is None:
            return
        held = self.get_seq_length()
        keys, values = (room[indices] for room in self._rooms)
        self._rooms = (keys, values)
        self.keys, self.values = keys[..., :held, :], values[..., :held, :]

    def _room_for(self, states: Tensor) -> Tensor:
        *batch, _, width = states.shape
        return torch.empty(*batch, self._tokens, width, dtype=states.dtype, device=states.device)

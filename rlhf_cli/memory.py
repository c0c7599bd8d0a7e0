"""Memory of a run by part, from the sizes of its models and its settings, and what to change where it does not fit.

A step holds the weights and the optimizer's state throughout. On top come, one after the other, what the forward pass
keeps for the backward pass together with the tiles of the language model head, and then the gradients, which take its
place while it is let go. With gradient accumulation the gradients stay, so both are held at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 4}
_OPTIMIZER_BYTES = {
    "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "paged_lion_8bit": 1,
    "lion_32bit": 4, "paged_lion_32bit": 4, "rmsprop": 4, "rmsprop_bnb": 4, "rmsprop_bnb_8bit": 1,
    "adagrad": 4, "sgd": 0, "adafactor": 0,
}  # fmt: skip
"""Bytes of optimizer state a trained weight; 8, two fp32 moments, for the Adams."""
_TILE_TOKENS, _TILE_WORDS = 4096, 32768
"""TRL works the head's logits off in tiles of this size (trl/kernels/chunked_logprob.py, trl/trainer/utils.py)."""
CPU_TILE_TOKENS = 256
"""What it is told to take on a CPU."""
_TILE_COPIES_ON_CPU = 8
"""fp32 copies of a tile alive at once where its arithmetic is done by torch (`_backward_tile` there)."""
_SLACK_ON_CPU = 0.15
"""Share of what comes and goes in a step that the C library's allocator holds beyond it, in pieces too small to use."""


@dataclass(frozen=True)
class ModelSize:
    """One model, measured without loading it."""

    trainable: int
    """Parameters that train, kept in fp32."""
    frozen: int
    frozen_bytes: int
    hidden: int
    """Width of the residual stream."""
    layers: int
    vocabulary: int
    kept_bytes: int
    """What a forward pass over the longest batch keeps for the backward pass, without checkpointing."""
    cast_bytes: int
    """Of these, copies of weights in the dtype of the computation: they do not grow with the batch."""
    head_trains: bool
    """Whether the language model head gets gradients of its own."""
    cache_bytes: int = 0
    """Keys and values of one token, that sampling keeps."""


@dataclass(frozen=True)
class Sampled:
    """What is sampled at once."""

    sequences: int
    tokens: int
    """Of a sequence at its end."""


@dataclass(frozen=True)
class Memory:
    """Memory of one device, by role and part."""

    parts_gib: dict[str, float]
    peak_gib: float
    """The most held at once: less than the sum of the parts where gradients take the place of activations."""

    def as_text(self, free_gib: float) -> str:
        """The parts, one a line, and what they come to."""
        lines = [f"{name:<20} {amount:>8.2f} GiB" for name, amount in self.parts_gib.items()]
        return "\n".join([*lines, f"{'at the peak':<20} {self.peak_gib:>8.2f} of {free_gib:.2f} GiB free"])


def estimate_memory(
    sizes: Mapping[str, ModelSize],
    value: Callable[[str], Any],
    tokens: int,
    *,
    device: str,
    sampled: Sampled | None = None,
) -> Memory:
    """Estimate what a run holds at its peak.

    Args:
        sizes: The models, by role.
        value: Gives a setting by its key.
        tokens: Of the longest batch, padding included.
        device: cpu, cuda or mps.
        sampled: What the first of the models samples before it trains.
    """
    parts: dict[str, float] = {}
    standing = passing = gradients = 0.0
    for role, size in sizes.items():
        for_role = _parts(size, value, tokens, device=device)
        parts.update({f"{role} {name}": amount / GIB for name, amount in for_role.items() if amount})
        standing += for_role["weights"] + for_role["optimizer"]
        passing += for_role["activations"] + for_role["logits"]
        gradients += for_role["gradients"]
    slack = _SLACK_ON_CPU * max(passing, gradients) if device == "cpu" else 0.0
    together = passing + gradients if value("gradient_accumulation_steps") > 1 else max(passing, gradients)
    parts["allocator"] = slack / GIB
    if sampled is not None:
        rollout = _sampling_bytes(next(iter(sizes.values())), sampled)
        parts["rollout"] = rollout / GIB
        together = max(together, rollout)
    return Memory(parts, (standing + together + slack) / GIB)


def _sampling_bytes(size: ModelSize, sampled: Sampled) -> float:
    """The cache, and of the last token's logits the copies that drawing from them takes: two in fp32, three in fp64."""
    return sampled.sequences * (sampled.tokens * size.cache_bytes + size.vocabulary * (2 * 4 + 3 * 8))


def _parts(size: ModelSize, value: Callable[[str], Any], tokens: int, *, device: str) -> dict[str, float]:
    """Bytes by part."""
    compute = 2 if value("bf16") or value("fp16") else 4
    growing: float = size.kept_bytes - size.cast_bytes
    if value("activation_checkpointing"):
        # The input of every layer stays, and one layer at a time is done again (Chen et al. 2016, arXiv:1604.06174).
        growing = size.layers * 4 * size.hidden * tokens + growing / max(1, size.layers)
    tile = min(tokens, CPU_TILE_TOKENS if device == "cpu" else _TILE_TOKENS) * min(size.vocabulary, _TILE_WORDS)
    logits = tile * (4 * _TILE_COPIES_ON_CPU + compute if device == "cpu" else compute)
    head_gradient = 4 * size.vocabulary * size.hidden if size.head_trains else 0
    return {
        "weights": size.trainable * 4 + size.frozen_bytes,
        "gradients": size.trainable * 4,
        "optimizer": size.trainable * _OPTIMIZER_BYTES.get(str(value("optim")), 8),
        "activations": growing + size.cast_bytes,
        "logits": logits + head_gradient,
    }


def estimate_disk(
    sizes: Mapping[str, ModelSize], value: Callable[[str], Any], *, steps: int, steps_per_epoch: int
) -> dict[str, float]:
    """GiB on the disk: of the checkpoints that are there at once, and of the model at the end.

    Args:
        sizes: The models, by role; what does not train is not saved.
        value: Gives a setting by its key.
        steps: Of the run.
        steps_per_epoch: Of one epoch.
    """
    trainable = sum(size.trainable for size in sizes.values())
    state = 0 if value("save_only_model") else _OPTIMIZER_BYTES.get(str(value("optim")), 8)
    every = {"steps": value("save_steps"), "epoch": steps_per_epoch, "best": value("eval_steps")}.get(
        str(value("save_strategy"))
    )
    saves = 0 if not every else math.ceil(1 / every) if every < 1 else math.ceil(steps / every)
    limit = value("save_total_limit")
    # The oldest goes only when the newest is complete, and the best one stays besides.
    kept = min(saves, limit + 1 + bool(value("load_best_model_at_end"))) if limit else saves
    return {"checkpoints": kept * trainable * (4 + state) / GIB, "model": trainable * 4 / GIB}


def smallest_change(
    sizes: Mapping[str, ModelSize],
    value: Callable[[str], Any],
    tokens: int,
    *,
    device: str,
    room_gib: float,
    sampled: Sampled | None = None,
) -> str | None:
    """The change of least consequence with which a run should fit, as recipe lines; None where none of these does.

    Args:
        sizes: The models, by role.
        value: Gives a setting by its key.
        tokens: Of the longest batch.
        device: cpu, cuda or mps.
        room_gib: What there is.
        sampled: What is sampled before training, which none of these changes.
    """
    for change, shrunk in _changes(value):

        def changed(key: str, change: Mapping[str, Any] = change) -> Any:
            return change[key] if key in change else value(key)

        smaller = {role: _scaled(size, shrunk) for role, size in sizes.items()}
        shorter = max(1, int(tokens * shrunk))
        if estimate_memory(smaller, changed, shorter, device=device, sampled=sampled).peak_gib <= room_gib:
            return ", ".join(f"`{key}: {str(item).lower()}`" for key, item in change.items())
    return None


def _changes(value: Callable[[str], Any]) -> Iterator[tuple[dict[str, Any], float]]:
    """Changes that leave the result as it is, the cheapest first; and the share of the longest batch that remains."""
    checkpointing = {} if value("activation_checkpointing") else {"activation_checkpointing": True}
    if checkpointing:
        yield checkpointing, 1.0
    batch, accumulation = value("per_device_train_batch_size"), value("gradient_accumulation_steps")
    for more in ({}, checkpointing) if checkpointing else ({},):
        for divisor in range(2, batch + 1):
            if batch % divisor == 0:
                shrunk = {
                    "per_device_train_batch_size": batch // divisor,
                    "gradient_accumulation_steps": accumulation * divisor,
                }
                yield {**shrunk, **more}, 1 / divisor


def _scaled(size: ModelSize, share: float) -> ModelSize:
    kept = size.cast_bytes + (size.kept_bytes - size.cast_bytes) * share
    return ModelSize(**{**size.__dict__, "kept_bytes": int(kept)})


def weight_bytes(dtype: str | None) -> int:
    """Bytes of one weight stored as `dtype`."""
    return _BYTES.get(dtype or "float32", 4)

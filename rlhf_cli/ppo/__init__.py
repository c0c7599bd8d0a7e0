"""Proximal policy optimisation, usable without the command line: `from rlhf_cli.ppo import PPOConfig, PPOTrainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_cli.ppo.config import PPOConfig
    from rlhf_cli.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    """Import on first use: describing a method must not import torch."""
    if name == "PPOConfig":
        from rlhf_cli.ppo.config import PPOConfig

        return PPOConfig
    if name == "PPOTrainer":
        from rlhf_cli.ppo.trainer import PPOTrainer

        return PPOTrainer
    raise AttributeError(name)

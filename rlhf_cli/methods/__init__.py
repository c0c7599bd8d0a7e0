"""The methods, in the order of a project: METHODS."""

from rlhf_cli.methods import dpo, ppo, reward, sft
from rlhf_cli.methods.base import Method

METHODS: tuple[Method, ...] = (sft.METHOD, reward.METHOD, dpo.METHOD, ppo.METHOD)

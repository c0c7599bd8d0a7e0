"""The methods, in the order of a project: METHODS, and `method_of` a recipe."""

from rlhf_cli.methods import dpo, ppo, reward, sft
from rlhf_cli.methods.base import Method
from rlhf_cli.recipe import Recipe

METHODS: tuple[Method, ...] = (sft.METHOD, reward.METHOD, dpo.METHOD, ppo.METHOD)


def method_of(recipe: Recipe) -> Method | None:
    """The method that a recipe trains with; None for one that trains nothing, an evaluation."""
    return next((method for method in METHODS if method.command == recipe.method), None)

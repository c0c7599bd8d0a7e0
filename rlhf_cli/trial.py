"""What a trainer is told, tried out before any weights load: its config, optimizer, schedule and trackers."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.utils import is_liger_kernel_available

from rlhf_cli.errors import EnvironmentFault, RecipeError
from rlhf_cli.methods.base import Method
from rlhf_cli.plan import Plan
from rlhf_cli.recipe import Recipe

HUB_ERRORS = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
"""What a Hub that refuses or cannot be reached raises: OSError, and the error of whichever client it is asked with."""
_MACHINE_ERRORS: tuple[type[Exception], ...] = (ImportError, RuntimeError, *HUB_ERRORS)
_NEEDS_THE_MODEL = {"galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "adalomo": "lomo_optim"}
"""Optimizers that cannot be built without the weights, and the package of each."""


def try_config(recipe: Recipe, method: Method, plan: Plan) -> TrainingArguments:
    """Build the config of the method's trainer, and what the trainer would build of it only as it begins to train.

    Raises:
        RecipeError: when TRL, transformers or torch refuses a value.
        EnvironmentFault: when a part or a device is missing.
    """
    with explained_refusals(recipe):
        config = method.build_config(plan)
        _try_parts(config)
        optimizer = _try_optimizer(config)
        get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.get_warmup_steps(plan.steps),
            num_training_steps=plan.steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )
    return config


@contextmanager
def explained_refusals(recipe: Recipe) -> Iterator[None]:
    """Turn what TRL, transformers and torch raise for settings they do not take into one clear error."""
    where = str(recipe.path)
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise RecipeError(f"TRL refuses the recipe: {error}", where=where) from error
    except _MACHINE_ERRORS as error:
        # A tracker that is not installed, a Hub that cannot be reached, a device that is not there.
        raise EnvironmentFault(f"this machine cannot run it: {error}", where=where) from error


def _try_parts(config: TrainingArguments) -> None:
    missing = [name for name in config.report_to if name not in (*get_available_reporting_integrations(), "flyte")]
    if missing:
        raise ImportError(f"`report_to: {missing[0]}` needs a package that is not installed")
    if config.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("`use_liger_kernel` needs a package that is not installed (pip install liger-kernel)")


def _try_optimizer(config: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer on one number; where that cannot be, another one, for the schedule."""
    number = torch.nn.Parameter(torch.zeros(1))
    package = _NEEDS_THE_MODEL.get(config.optim.value.split("_")[0])
    if package is None:
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(config)
        without = copy.copy(config)
        without.optim_args = None
        if config.optim_args and Trainer.get_optimizer_cls_and_kwargs(without)[1] == arguments:
            raise ValueError(f"`optim: {config.optim.value}` reads no `optim_args: {config.optim_args}`")
        if not is_optimizer_factory(optimizer_class):
            optimizer: torch.optim.Optimizer = optimizer_class([number], **arguments)
            return optimizer
    elif importlib.util.find_spec(package) is None:
        raise ImportError(f"`optim: {config.optim.value}` needs the package {package}, which is not installed")
    return torch.optim.SGD([number], lr=config.learning_rate)

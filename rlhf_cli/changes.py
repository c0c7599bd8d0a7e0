"""What a run may not change when it is resumed: its recipe, its kind of machine, its length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlhf_cli.errors import EnvironmentFault, Problem, RecipeError
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import hide_in
from rlhf_cli.run_dir import RunDir

MAY_CHANGE_ON_RESUME = frozenset({
    # How long, see `refuse_other_length`; what is written down on the way; and what changes where a run computes and
    # how much memory that takes, but not what it computes. All else would make it another run.
    "max_steps", "num_train_epochs", "total_episodes", "stop_at_kl", "method", "output_dir",
    "use_cpu", "activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps",
    "save_strategy", "save_steps", "save_total_limit", "save_on_each_node",
    "logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica", "log_on_each_node",
    "gates", "report", "report_to", "run_name", "project",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataset_num_proc", "env",
})  # fmt: skip
"""Recipe keys that may differ when a run goes on."""
_ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
"""Those whose learning rate at a step does not depend on how many steps there are."""


def changed_keys(run: RunDir, recipe: Recipe, settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that differ in effect from those of the run on disk, and may not: key, old value, new value."""
    before = _settings_on_disk(run)
    if before is None:
        return []
    now = json.loads(json.dumps(hide_in(dict(settings), run.secrets), default=str))
    known = recipe.schema["properties"]

    def value(values: Mapping[str, Any], key: str) -> Any:
        return values[key] if key in values else known.get(key, {}).get("default")

    return [
        (key, value(before, key), value(now, key))
        for key in sorted((before.keys() | now.keys()) - MAY_CHANGE_ON_RESUME)
        if value(before, key) != value(now, key)
    ]


def _settings_on_disk(run: RunDir) -> dict[str, Any] | None:
    try:
        return dict(json.loads(run.resolved_file.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def refuse_changes(run: RunDir, recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Refuse to resume what has become another run.

    Args:
        run: The run on disk.
        recipe: What is asked for now.
        settings: The same, with what was decided on this machine.

    Raises:
        RecipeError: naming every key that changed.
        EnvironmentFault: when only the machine has.
    """
    changed = changed_keys(run, recipe, settings)
    decided = run.read_run().get("plan", {}).get("decisions", {}).keys() & settings.keys() - recipe.values.keys()
    ours = [(key, old, new) for key, old, new in changed if key not in decided]
    problems = [
        Problem(f"`{key}` was {json.dumps(old)} and is now {json.dumps(new, default=str)}", recipe.where(key))
        for key, old, new in ours
    ]
    if problems:
        raise RecipeError(
            "the recipe has changed",
            problems=problems,
            hint=f"put the old values back (see {run.resolved_file}), or train it anew with another output_dir; "
            "what to log and save may change",
        )
    if changed:
        lines = ", ".join(f"`{key}: {json.dumps(old)}`" for key, old, _ in changed)
        raise EnvironmentFault(
            f"the run began on another kind of machine, where {lines} was decided; here it would be otherwise",
            where=str(run.path),
            hint=f"write {lines} into the recipe, or go on with it on a machine of that kind",
        )


def refuse_other_length(run: RunDir, recipe: Recipe, *, steps: int) -> None:
    """Refuse to stretch a schedule that is spread over all steps: a longer run has another rate at every step.

    Raises:
        RecipeError: naming the schedule, and what works.
    """
    before = run.read_run().get("plan", {}).get("steps", steps)
    schedule, warmup = recipe["lr_scheduler_type"], recipe["warmup_steps"]
    if steps == before or (schedule in _ENDLESS_SCHEDULES and not 0 < warmup < 1):
        return
    why = f"`lr_scheduler_type: {schedule}`" if schedule not in _ENDLESS_SCHEDULES else f"`warmup_steps: {warmup}`"
    raise RecipeError(
        f"the run was to have {before} steps and is now to have {steps}, but {why} is spread over all of them, "
        "so going on would not be the longer run",
        where=recipe.where("max_steps" if recipe["max_steps"] > 0 else "num_train_epochs"),
        hint=f"only constant schedules can go on; start a new run with `model_name_or_path: {run.path}` instead",
    )

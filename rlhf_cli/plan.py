"""Recipe + machine + counts into the run's numbers, memory included (pure)."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.errors import RecipeError
from rlhf_cli.memory import Memory, ModelSize, Sampled, estimate_disk, estimate_memory, smallest_change
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import hide_named

POLICY = "policy"
REWARD_MODEL = "reward model"
"""What a model may be: one that answers, or the same trunk with one score for a head."""
REFERENCE = "reference"
VALUE = "value"
REWARD = "reward"
"""What else models are for in a run."""

_NOT_THE_TRAINERS = frozenset({
    # rows come as tokens, and the model loaded
    "assistant_only_loss", "completion_only_loss", "chat_template_path", "model_init_kwargs", "dataset_text_field",
    "pad_token",
    # set in the environment
    "hub_token",
    # one name for one setting
    "gradient_checkpointing",
    # old checkpoints go only when the new one has its manifest
    "save_total_limit",
})  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What a run has to work with."""

    device: str
    """cpu, cuda or mps."""
    name: str
    processes: int
    """Processes that train together."""
    threads: int
    memory_gib: float
    """Of one device; for a CPU, of the machine, or what its container may have."""
    free_gib: float
    """What of it nobody holds now."""
    bf16: bool
    """Whether bf16 is computed by hardware, not emulated."""


@dataclass(frozen=True)
class Decision:
    """A value for a key that the recipe leaves out, and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Counts:
    """What became of the rows of one split, and of their tokens."""

    read: int
    """Rows in the files."""
    bad: int
    """Left out with `skip_bad_rows`."""
    masked: int
    """Left out: no token carries loss within `max_length`, or a text that is read whole is longer."""
    used: int
    """Rows that train."""
    truncated: int
    """Of the used rows, those longer than `max_length`."""
    examples: int
    """What the trainer sees: the used rows, or packs of them."""
    tokens: int
    """In all examples, once."""
    loss_tokens: int | None
    """Of these, tokens that carry loss; None where a text has one score, 0 where they are yet to be made."""
    longest: int
    """Tokens of the longest sequence."""
    sequences: int = 1
    """Sequences of an example: a pair has two."""


@dataclass(frozen=True)
class Schedule:
    """How much there is to train."""

    batch: int
    """Examples an optimizer step sees, over all processes and accumulation; of rollouts, episodes of one."""
    steps: int
    steps_per_epoch: int
    text: str
    """The same for people."""
    sampled: Sampled | None = None
    """What each process samples at once, where it trains on what it samples."""


@dataclass(frozen=True)
class Plan:
    """The numbers of one run."""

    method: str
    trains: str
    """`POLICY` or `REWARD_MODEL`."""
    output_dir: Path
    settings: dict[str, Any]
    """Every key that is not left to TRL: what the recipe says, and what was decided for it."""
    decisions: dict[str, Decision]
    machine: Machine
    train: Counts
    test: Counts | None
    schedule: Schedule
    roles: dict[str, str]
    """Each part that a model plays, and whose weights it is."""
    memory: Memory
    """Of one device. An estimate."""
    disk_gib: dict[str, float]
    """Of the checkpoints there at once, and of the model."""
    smaller: str
    """The change of least consequence that should make it fit, where it does not or turns out not to."""

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        schedule = {key: value for key, value in asdict(self.schedule).items() if key != "text"}
        facts = {key: value for key, value in asdict(self).items() if key != "schedule"}
        return {**facts, **schedule, "output_dir": str(self.output_dir), "settings": self.public_settings()}

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.schedule.steps

    @property
    def steps_per_epoch(self) -> int:
        """Of these, in one pass over the rows."""
        return self.schedule.steps_per_epoch

    @property
    def batch(self) -> int:
        """Examples of an optimizer step, or episodes of a rollout."""
        return self.schedule.batch

    @property
    def members(self) -> int:
        """Models that are trained one after the other: those of an ensemble, or one."""
        return self.setting("ensemble_size") or 1

    @property
    def fits(self) -> bool:
        """Whether the estimate is less than what is free."""
        return self.memory.peak_gib <= self.machine.free_gib

    def warning(self) -> str:
        """What is said where it does not fit."""
        needed, free = self.memory.peak_gib, self.machine.free_gib
        return f"warning: about {needed:.2f} GiB are needed and {free:.2f} are free\nhint: {self.smaller} should fit"

    def public_settings(self) -> dict[str, Any]:
        """The settings that may be written down: all but tokens, and variables that may hold some."""
        shown: dict[str, Any] = hide_named(
            {key: value for key, value in self.settings.items() if key not in ("hub_token", "env")}
        )
        return shown

    def setting(self, key: str, default: Any = None) -> Any:
        """A key that the recipe gives or that was decided."""
        return self.settings.get(key, default)

    def as_text(self, width: int | None = None) -> str:
        """The plan as it is shown to a person; with a width, wrapped to it."""
        counts, machine = self.train, self.machine
        left_out = [f"{n} {why}" for n, why in ((counts.bad, "bad"), (counts.masked, _why_masked(counts))) if n]
        rows = f"{counts.used:,} of {counts.read:,} train" + (f" ({', '.join(left_out)} left out)" if left_out else "")
        if self.test:
            rows += f", {self.test.used:,} held out"
        packs = f" in {counts.examples:,} packs" if counts.examples != counts.used else ""
        share = "" if not counts.loss_tokens else f", {counts.loss_tokens / max(1, counts.tokens):.0%} with loss"
        each = f", for each of {self.members} members" if self.members > 1 else ""
        parts = ", ".join(f"{name} {_gib(amount)}" for name, amount in self.memory.parts_gib.items())
        lines = [
            ("rows", f"{rows}; {counts.truncated:,} truncated"),
            (
                "tokens",
                f"{counts.tokens:,} an epoch{packs}{share}, longest {counts.longest:,}",
            ),
            ("steps", f"{self.schedule.text}{each}"),
            *self.roles.items(),
            (
                "machine",
                f"{machine.name}, {machine.processes} process{'es' if machine.processes > 1 else ''}",
            ),
            ("memory", f"about {_gib(self.memory.peak_gib)} of {machine.free_gib:.1f} GiB free: {parts}"),
            ("disk", ", ".join(f"{name} {_gib(amount)} GiB" for name, amount in self.disk_gib.items())),
            *((key, f"{json.dumps(decision.value)}: {decision.reason}") for key, decision in self.decisions.items()),
            ("output", str(self.output_dir)),
        ]
        indent = 2 + max(len(name) for name, _ in lines)
        wrapped = [textwrap.wrap(text, max(30, width - indent)) if width else [text] for _, text in lines]
        heads = [f"{name:<{indent}}" for name, _ in lines]
        return "\n".join(head + f"\n{'':<{indent}}".join(text) for head, text in zip(heads, wrapped, strict=True))

    def arguments(self, config_class: type) -> dict[str, Any]:
        """The settings that are fields of a trainer's config, without those that are dealt with before or around it."""
        fields = config_class.__dataclass_fields__  # type: ignore[attr-defined]
        return {key: value for key, value in self.settings.items() if key in fields and key not in _NOT_THE_TRAINERS}


def make_plan(  # noqa: PLR0913 - what a plan is made of
    recipe: Recipe,
    decisions: Mapping[str, Decision],
    machine: Machine,
    *,
    train: Counts,
    test: Counts | None,
    sizes: Mapping[str, ModelSize],
    schedule: Schedule | None = None,
    roles: Mapping[str, str] | None = None,
) -> Plan:
    """Work out memory, and put the numbers of a run together.

    Args:
        recipe: What to train.
        decisions: Values for keys that the recipe leaves out.
        machine: What it trains on.
        train: Counts of the training rows.
        test: Counts of the held-out rows.
        sizes: The models, by role; the first is the one that trains.
        schedule: Of the run; None is that of training on examples.
        roles: Whose weights each part is.
    """
    schedule = schedule or schedule_examples(recipe, train, machine)
    settings = {**recipe.values, **{key: decision.value for key, decision in decisions.items()}}

    def value(key: str) -> Any:
        return settings[key] if key in settings else recipe[key]

    longest = value("per_device_train_batch_size") * train.sequences * train.longest
    memory = estimate_memory(sizes, value, longest, device=machine.device, sampled=schedule.sampled)
    # Where memory runs out although the plan had room, the estimate was too low: then a fifth less is a change.
    room = min(machine.free_gib, 0.8 * memory.peak_gib)
    smaller = smallest_change(
        sizes, value, longest, device=machine.device, room_gib=room, sampled=schedule.sampled
    ) or _beyond(recipe)
    return Plan(
        method=recipe.method,
        trains=next(iter(sizes)),
        output_dir=Path(value("output_dir")),
        settings=settings,
        decisions=dict(decisions),
        machine=machine,
        train=train,
        test=test,
        schedule=schedule,
        roles=dict(roles or {}),
        memory=memory,
        disk_gib={
            name: amount * (settings.get("ensemble_size") or 1)
            for name, amount in estimate_disk(
                sizes, value, steps=schedule.steps, steps_per_epoch=schedule.steps_per_epoch
            ).items()
        },
        smaller=smaller,
    )


def schedule_examples(recipe: Recipe, train: Counts, machine: Machine) -> Schedule:
    """The steps of training on examples, each once an epoch.

    Raises:
        RecipeError: when `dataloader_drop_last` drops all of them.
    """
    accumulation = recipe["gradient_accumulation_steps"]
    per_step = recipe["per_device_train_batch_size"] * machine.processes
    drops = recipe["dataloader_drop_last"]
    if drops and train.examples < per_step:
        raise RecipeError(
            f"`dataloader_drop_last` drops all there is: {train.examples} examples, and a batch takes {per_step}",
            where=recipe.where("dataloader_drop_last"),
        )
    batches = train.examples // per_step if drops else math.ceil(train.examples / per_step)
    steps_per_epoch = max(1, math.ceil(batches / accumulation))
    steps = recipe["max_steps"] if recipe["max_steps"] > 0 else math.ceil(recipe["num_train_epochs"] * steps_per_epoch)
    batch = per_step * accumulation
    return Schedule(batch, steps, steps_per_epoch, f"{steps:,} of {batch} examples ({steps_per_epoch:,} an epoch)")


def _why_masked(counts: Counts) -> str:
    return "without loss" if counts.loss_tokens else "longer than `max_length`"


def _beyond(recipe: Recipe) -> str:
    """What is left where smaller batches do not help: changes of what is trained."""
    steps = [] if recipe["use_peft"] else ["`use_peft: true`"]
    steps += [] if recipe["load_in_4bit"] else ["`load_in_4bit: true`"]
    return ", ".join([*steps, "a shorter `max_length`, or a smaller model"])


def _gib(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 0.005 else "<0.01"

"""A run before its first step: rows read, tokens made, plan drawn up; nothing written, no weights loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from rlhf_cli.data import Encoded, Rows, load_rows
from rlhf_cli.machine import decide, detect_machine, quietly
from rlhf_cli.measure import Batch, measure_model
from rlhf_cli.methods.base import Method
from rlhf_cli.model_source import Source, find_source
from rlhf_cli.plan import REWARD_MODEL, Counts, Decision, Machine, Plan, make_plan
from rlhf_cli.recipe import Recipe
from rlhf_cli.redaction import find_secrets
from rlhf_cli.rows import PROMPT
from rlhf_cli.run_dir import RunDir, output_dir_of
from rlhf_cli.terminal import printable, say, say_error
from rlhf_cli.tokenizer import load_tokenizer
from rlhf_cli.trial import try_config


@dataclass(frozen=True)
class Material:
    """What a run trains on, as its model will read it."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    own_template: bool
    """Whether the tokenizer had no chat template, and got ours."""
    rows: Rows
    train: Encoded
    test: Encoded | None


@dataclass(frozen=True)
class Prepared:
    """A run that could start."""

    recipe: Recipe
    run: RunDir
    material: Material
    plan: Plan
    config: TrainingArguments
    """What the trainer is told."""

    def members(self, method: Method) -> list[Prepared]:
        """The run of each member of an ensemble: from its own seed, in its own folder; the first is in the run's.

        Without an ensemble, this run alone.
        """
        return [self, *(self._member(method, number) for number in range(2, self.plan.members + 1))]

    def _member(self, method: Method, number: int) -> Prepared:
        run = self.run.member(number)
        settings = {**self.plan.settings, "output_dir": str(run.path), "push_to_hub": False}
        settings["seed"] = self.recipe["seed"] + number - 1
        if settings.get("data_seed") is not None:
            settings["data_seed"] += number - 1
        plan = replace(self.plan, settings=settings, output_dir=run.path)
        return replace(self, run=run, plan=plan, config=method.build_config(plan))


def prepare(recipe: Recipe, method: Method, environment: Mapping[str, str] | None = None) -> Prepared:
    """Check data and model folder, and make the plan; `--dry-run` ends here.

    Args:
        recipe: A checked recipe.
        method: How to train.
        environment: Variables that the processes of a launch would find; None plans for this process.

    Raises:
        UserError: when the run cannot start.
    """
    machine = detect_machine(use_cpu=bool(recipe["use_cpu"]), environment=environment)
    source = find_source(recipe, method.trains)
    adapts = bool(recipe["use_peft"] or source.adapter)
    decisions = decide(recipe, machine, method.defaults, adapts=adapts)
    decisions |= {key: decision for key, decision in method.decide(recipe, machine).items() if key not in recipe}
    run = RunDir(output_dir_of(recipe), find_secrets(recipe.values))
    with quietly():
        material = gather(recipe, method, source)
        dtype = decisions["dtype"].value if "dtype" in decisions else recipe["dtype"]
        batch = _longest_batch(recipe, decisions, machine, material.train.counts)
        filled = recipe.with_defaults({key: decision.value for key, decision in decisions.items()})
        roles = method.roles(recipe, source)
        sizes = {role.name: measure_model(filled, role, str(dtype), batch) for role in roles if role.takes}
    plan = make_plan(
        recipe,
        decisions,
        machine,
        train=material.train.counts,
        test=material.test.counts if material.test else None,
        sizes=sizes,
        schedule=method.schedule(recipe, material.train.counts, machine),
        roles={role.name: role.text for role in roles},
    )
    with quietly():
        config = try_config(recipe, method, plan)
    return Prepared(recipe, run, material, plan, config)


def _longest_batch(recipe: Recipe, decisions: Mapping[str, Decision], machine: Machine, counts: Counts) -> Batch:
    computes_bf16 = decisions["bf16"].value if "bf16" in decisions else recipe["bf16"]
    compute = torch.bfloat16 if computes_bf16 else torch.float16 if recipe["fp16"] else torch.float32
    return Batch(
        rows=recipe["per_device_train_batch_size"] * counts.sequences,
        tokens=counts.longest,
        packed=any(key in recipe and recipe[key] for key in ("packing", "padding_free")),
        compute=compute,
        device=machine.device,
    )


def _tell_repeats(train: Encoded, test: Encoded | None) -> None:
    """Say which prompts are there more than once, and which are held out and trained on."""
    there = [tuple(ids) for ids in train.dataset["prompt_ids"]]
    asked = set(there)
    if len(asked) < len(there):
        say(f"{len(there) - len(asked):,} of {len(there):,} prompts are there before")
    known = sum(tuple(ids) in asked for ids in test.dataset["prompt_ids"]) if test else 0
    if known:
        say_error(
            f"warning: {known:,} of the held-out prompts are trained on too, so their rewards say little\n"
            "hint: remove them from one side, or hold out with `split_by: prompt`"
        )


def gather(recipe: Recipe, method: Method, source: Source) -> Material:
    """Read every row and turn it into tokens."""
    tokenizer, own_template = load_tokenizer(recipe, source, pads_apart=method.trains == REWARD_MODEL)
    rows = load_rows(recipe, method.rows)
    for read in rows.sources:
        say(f"{printable(read['name'])}: {read['rows']:,} rows as {read['layout']}")

    filled = recipe.with_defaults(method.defaults)
    train = method.encode(rows.train, tokenizer, filled, "train")
    counts = replace(train.counts, read=train.counts.read + rows.bad, bad=train.counts.bad + rows.bad)
    train = replace(train, counts=counts)
    test = method.encode(rows.test, tokenizer, filled, "test") if rows.test is not None else None
    if method.rows == PROMPT:
        _tell_repeats(train, test)
    return Material(source, tokenizer, own_template, rows, train, test)

"""The page of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.report.appendix import data_tables, environment_table, file_table, recipe_tables
from rlhf_cli.report.card_section import card_section
from rlhf_cli.report.curves import Curve, read_curves
from rlhf_cli.report.page import BAD, GOOD, UNSURE, Page, Section
from rlhf_cli.report.samples import (
    Answer,
    Sample,
    choose,
    compare,
    plain,
    read_samples,
    selection_note,
    turns,
    within_budget,
)
from rlhf_cli.report.training import is_shown, training_groups
from rlhf_cli.report.verdicts import Facts, verdict_of
from rlhf_cli.report.wording import date, duration, is_number, number, read_json
from rlhf_cli.run_details import command_again
from rlhf_cli.run_dir import RunDir, step_of
from rlhf_cli.schema import load_schema, method_names


def run_page(run: RunDir) -> Page:
    """All that a run folder tells, for people."""
    record, settings = read_json(run.run_file), read_json(run.resolved_file)
    curves = read_curves(run.metrics_file, is_shown)
    method = str(record.get("method", ""))
    schema = load_schema(method) if method in method_names() else {}
    known = schema.get("properties", {})

    def setting(key: str) -> Any:
        return settings[key] if key in settings else known.get(key, {}).get("default")

    plan = record.get("plan") or {}
    card = record.get("report") or read_json(run.reward_card).get("report") or {}
    held_out = (plan.get("test") or {}).get("used")
    results = record.get("results") or _last_evaluation(curves)
    numbers, sentence = verdict_of(Facts(str(plan.get("trains")), results, curves, card, held_out, setting))
    status, mood = _status(record)
    return Page(
        title=run.path.absolute().name,
        kind=str(schema.get("description", method)).partition(":")[0],
        status=status,
        mood=mood,
        facts=_facts(record, plan),
        command=command_again(record) or "",
        verdict=sentence,
        numbers=numbers,
        alerts=_alerts(record),
        sections=[
            card_section(card),
            _training(run, curves, setting, plan),
            _samples(run),
            Section("recipe", "Recipe", _RECIPE, tables=recipe_tables(settings, known, plan.get("decisions") or {})),
            Section("data", "Data", tables=data_tables(record.get("data"), plan)),
            Section("environment", "Environment and files", tables=[
                environment_table(record.get("environment"), record.get("machine"), record.get("seed")),
                file_table(run.path),
            ]),
        ],
        made_by=f"rlhf-cli {(record.get('environment') or {}).get('rlhf-cli', '')}",
    )  # fmt: skip


_RECIPE = "In bold what differs from the default."


def _status(record: Mapping[str, Any]) -> tuple[str, str]:
    status = str(record.get("status", "unknown"))
    if status == "done" and record.get("exit_code"):
        return "done, but a gate was not met", BAD
    return status, {"done": GOOD, "failed": BAD}.get(status, UNSURE)


def _alerts(record: Mapping[str, Any]) -> list[str]:
    reason = record.get("reason")
    return [f"{str(record.get('status')).capitalize()}: {reason}"] if reason else []


def _facts(record: Mapping[str, Any], plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, data = record.get("model") or {}, record.get("data") or []
    environment, machine = record.get("environment") or {}, record.get("machine") or {}
    where = f"{machine.get('processes', 1)} × {machine.get('name', '')}".removeprefix("1 × ")
    found = [
        ("model", Path(str(model.get("name", ""))).name),
        ("data", ", ".join(Path(str(source.get("name", ""))).name for source in data)),
        ("steps", f"{number(record.get('steps_done') or 0)} of {plan.get('text') or number(plan.get('steps'))}"),
        ("finished", date(record.get("ended"))),
        ("took", f"{duration(record.get('elapsed_s'))} on {where}"),
        ("git", str(environment.get("git") or "no repository")),
    ]
    return [(name, value) for name, value in found if value]


def _last_evaluation(curves: Mapping[str, Curve]) -> dict[str, float]:
    """What the metrics of evaluations came to last, for a run that was stopped."""
    return {name: float(curve.values[-1]) for name, curve in curves.items() if name.startswith("eval_") and len(curve)}


def _training(run: RunDir, curves: Mapping[str, Curve], setting: Any, plan: Mapping[str, Any]) -> Section:
    checkpoints = [step_of(checkpoint) for checkpoint in run.complete_checkpoints()]
    last = max((float(curve.steps[-1]) for curve in curves.values() if len(curve)), default=1.0)
    groups = training_groups(curves, setting, checkpoints, last_step=last)
    lead = "Faint lines are the values as logged, strong ones their moving mean."
    if checkpoints:
        kept = ", ".join(number(step) for step in sorted(checkpoints)[:12])
        lead += f" ▲ marks the checkpoints that are kept: {kept}."
    members = (plan.get("settings") or {}).get("ensemble_size")
    if is_number(members) and members > 1:
        lead += f" Of {members} members, the curves are those of the first."
    return Section("training", "Training", lead, groups=groups)


def _samples(run: RunDir) -> Section:
    """The answers of the last evaluation, beside the reference's."""
    files = sorted((run.own / "samples").glob("step-*.parquet"), key=lambda file: int(file.stem.split("-")[1]))
    if not files:
        return Section("samples", "Samples")
    rows = read_samples(files[-1])
    chosen = choose(rows, _gain)
    shown = within_budget([_sample(row, why) for row, why in chosen])
    step = files[-1].stem.split("-")[1]
    lead = f"Answers to held-out prompts after step {step}. {selection_note(len(rows), len(shown))}"
    return Section("samples", "Samples", lead, samples=shown)


def _gain(row: Mapping[str, Any]) -> float | None:
    after, before = row.get("reward"), row.get("reference_reward")
    return after - before if is_number(after) and is_number(before) else None


def _sample(row: Mapping[str, Any], why: str) -> Sample:
    has_reference = isinstance(row.get("reference"), str)
    left, right = compare(row["reference"], row["response"]) if has_reference else ([], plain(row.get("response", "")))
    facts = [("reward", number(row.get("reward")))]
    parts = {name.removeprefix("rewards/"): value for name, value in row.items() if name.startswith("rewards/")}
    if len(parts) > 1:
        facts += [(name, number(value)) for name, value in parts.items()]
    facts += [("KL", number(row["kl"]))] if is_number(row.get("kl")) else []
    facts += [("tokens", number(row.get("tokens")))]
    policy = Answer("policy", right, facts, cut_off=row.get("finished") is False)
    reference = Answer("reference", left, [("reward", number(row.get("reference_reward")))])
    gain = _gain(row)
    order = {"gain": gain, "kl": row.get("kl"), "length": row.get("tokens"), "reward": row.get("reward")}
    return Sample(
        turns(row.get("prompt", "")),
        [reference, policy] if has_reference else [policy],
        gain,
        why,
        {name: float(value) for name, value in order.items() if is_number(value)},
    )

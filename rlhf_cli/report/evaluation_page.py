"""The page of an evaluation: of policies, or of a reward model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.report.appendix import data_tables, environment_table, file_table, recipe_tables
from rlhf_cli.report.card_section import card_section
from rlhf_cli.report.comparison import Comparison, comparison_sections, policy_numbers
from rlhf_cli.report.page import BAD, GOOD, UNSURE, Page, Section
from rlhf_cli.report.verdicts import card_verdict
from rlhf_cli.report.wording import clean, date, number, read_json
from rlhf_cli.run_details import command_again
from rlhf_cli.run_dir import ANSWERS_FILE, EVALUATION_FILE
from rlhf_cli.schema import load_schema

_MOODS = {"better": GOOD, "worse": BAD, "over-optimised": BAD}


def evaluation_page(folder: Path) -> Page:
    """All that an evaluation leaves behind, for people."""
    found = read_json(folder / EVALUATION_FILE)
    if found.get("kind") == "policies":
        return _policies(folder, found)
    return _reward_model(folder, found)


def _reward_model(folder: Path, found: Mapping[str, Any]) -> Page:
    card = found.get("report") or {}
    numbers, sentences = card_verdict(card)
    good = bool(card.get("good_enough_for_ppo"))
    return Page(
        title=Path(str(found.get("reward_model", folder.name))).name,
        kind="evaluation of a reward model",
        status="good enough for PPO" if good else "not good enough for PPO",
        mood=GOOD if good else BAD,
        facts=_facts(folder, found, {"reward model": str(found.get("reward_model", ""))}),
        command=command_again(found) or "",
        verdict=" ".join(sentences),
        numbers=numbers,
        alerts=[*found.get("warnings", []), *card.get("failed_gates", [])],
        sections=[card_section(card), *_appendix(folder, found)],
        made_by=_made_by(found),
    )


def _policies(folder: Path, found: Mapping[str, Any]) -> Page:
    comparison = Comparison(found, list(_read_answers(folder / ANSWERS_FILE)))
    verdicts = found.get("verdicts") or []
    outcomes = [str(each.get("outcome")) for each in verdicts]
    missed = any(not gate.get("met") for gate in found.get("gates") or [])
    mood = BAD if missed else _MOODS.get(outcomes[0], UNSURE) if len(outcomes) == 1 else ""
    what = {"models": ", ".join(found.get("models") or {}), "baseline": str(found.get("baseline", "")),
            "judges": ", ".join(str(each.get("name")) for each in found.get("judges") or [])}  # fmt: skip
    return Page(
        title=" against ".join([", ".join(comparison.others) or comparison.baseline, comparison.baseline])
        if comparison.others
        else comparison.baseline,
        kind="evaluation",
        status="a gate was not met" if missed else outcomes[0] if len(outcomes) == 1 else "done",
        mood=mood,
        facts=_facts(folder, found, what),
        command=command_again(found) or "",
        verdict="\n".join(str(each.get("sentence", "")) for each in verdicts) or "There is nothing to compare with.",
        numbers=policy_numbers(comparison),
        alerts=[str(each) for each in found.get("warnings") or []],
        sections=[*comparison_sections(comparison), *_appendix(folder, found)],
        made_by=_made_by(found),
    )


def _read_answers(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(found, dict) and isinstance(found.get("answers"), dict):
                yield clean(found)


def _facts(folder: Path, found: Mapping[str, Any], what: Mapping[str, str]) -> list[tuple[str, str]]:
    sources = [source for source in found.get("data") or [] if isinstance(source, Mapping)]
    counts = {"prompts": "prompts", "answers": "answers of each model", "left_out": "left out"}
    asked = ", ".join(f"{number(found[key])} {name}" for key, name in counts.items() if found.get(key))
    sampling = ", ".join(f"{name} {number(value)}" for name, value in (found.get("sampling") or {}).items())
    every = [
        *what.items(),
        ("data", ", ".join(Path(str(source.get("name", ""))).name for source in sources)),
        ("asked", asked),
        ("sampling", sampling.replace("_", " ")),
        ("made", date((folder / EVALUATION_FILE).stat().st_mtime)),
        ("git", str((found.get("environment") or {}).get("git") or "no repository")),
    ]
    return [(name, value) for name, value in every if value]


def _appendix(folder: Path, found: Mapping[str, Any]) -> list[Section]:
    known = load_schema("eval")["properties"]
    recipe = found.get("recipe") or {}
    return [
        Section("recipe", "Recipe", "In bold what differs from the default.",
                tables=recipe_tables(recipe, known, {}) if recipe else []),
        Section("data", "Data", tables=data_tables(found.get("data"), {})),
        Section("environment", "Environment and files",
                tables=[environment_table(found.get("environment"), found.get("machine")), file_table(folder)]),
    ]  # fmt: skip


def _made_by(found: Mapping[str, Any]) -> str:
    return f"rlhf-cli {(found.get('environment') or {}).get('rlhf-cli', '')}".strip()

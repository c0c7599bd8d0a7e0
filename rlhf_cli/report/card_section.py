"""The report card of a reward model as a part of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_cli.report.charts import reliability_spec, share_spec
from rlhf_cli.report.page import Cell, Group, Key, Picture, Section, Table
from rlhf_cli.report.wording import cut, ends, is_number, number, percent, points

_MEANINGS = {
    "accuracy": "the chosen answer scores higher",
    "longer_wins": "the longer answer is the chosen one",
    "accuracy_over_longer": "accuracy less that of the longer-answer rule",
    "promptless": "accuracy without the prompt",
    "accuracy_over_promptless": "accuracy that the prompt brings",
    "log_loss": "log-loss in nats; a coin has 0.693",
    "picks_longer": "the longer answer scores higher",
    "said_twice": "an answer scores higher said twice",
    "junk_wins": "junk scores above the chosen answer",
    "flips": "a harmless edit changes the order",
}
_DIFFERENCES = ("accuracy_over_longer", "accuracy_over_promptless")


def card_section(card: Mapping[str, Any]) -> Section:
    """Calibration, accuracy by kind of pair, and what it falls for."""
    if not card:
        return Section("card", "The reward model")
    pictures = [_reliability(card), _shares("Accuracy where the chosen answer is …", card.get("by_length"), level=0.5)]
    if len(card.get("by_source") or {}) > 1:
        pictures.append(_shares("Accuracy by source", card.get("by_source"), level=0.5))
    pictures.append(_shares("Junk that scores above the chosen answer", card.get("junk"), note="0 % is best."))
    note = "Of pairs whose order changes under an edit that changes no meaning; 0 % is best."
    pictures.append(_shares("Order changed by", card.get("edits"), note=note))
    kept = [picture for picture in pictures if picture is not None]
    title = "Why it is not good enough for PPO" if card.get("objections") else ""
    return Section(
        "card",
        "The reward model",
        lead=title,
        points=[str(each) for each in card.get("objections") or []],
        groups=[Group("", kept)],
        tables=[_numbers(card)],
    )


def _reliability(card: Mapping[str, Any]) -> Picture | None:
    bins = (card.get("calibration") or {}).get("bins") or []
    if not bins:
        return None
    from scipy import stats

    shown = []
    for each in bins:
        count = int(each["n"])
        extent = stats.binomtest(round(each["wins"] * count), count).proportion_ci(0.95, method="wilson")
        shown.append({**each, "low": float(extent.low), "high": float(extent.high)})
    calibration = card["calibration"]
    return Picture(
        "Does it know how sure to be?",
        reliability_spec(shown),
        [Key("share that was chosen, with 95 % interval", "blue", (), "dot"), Key("as sure as right", "soft", (3, 3))],
        f"{card.get('pairs')} pairs in {len(bins)} bins; calibration error {percent(calibration.get('ece'))}. Below "
        "the dashed line it is too sure.",
    )


def _shares(title: str, found: Any, *, level: float | None = None, note: str = "") -> Picture | None:
    if not found:
        return None
    rows = [(cut(name, 38), each) for name, each in found.items() if is_number(each.get("value"))]
    keys = [Key("share, with 95 % interval", "blue", (), "dot")]
    keys += [Key("a coin", "soft", (3, 3))] if level is not None else []
    return Picture(title, share_spec(rows, level=level), keys, note) if rows else None


def _numbers(card: Mapping[str, Any]) -> Table:
    rows = []
    for name, each in (card.get("numbers") or {}).items():
        if name not in _MEANINGS or not is_number(each.get("value")):
            continue
        write = number if name == "log_loss" else points if name in _DIFFERENCES else percent
        rows.append(
            [
                Cell(_MEANINGS[name]),
                Cell(write(each["value"]), ends(each, write)),
                Cell(f"{each.get('n'):,}"),
                Cell(name, code=True),
            ]
        )
    return Table(rows, ["", "value and 95 % interval", "of", "as a gate"], "All its numbers")

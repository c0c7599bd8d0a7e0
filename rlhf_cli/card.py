"""The model card, which names base and data truthfully."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.plan import REWARD_MODEL, Plan
from rlhf_cli.run_dir import RunDir
from rlhf_cli.writing import write_text

_RESULTS = (
    "eval_loss", "eval_mean_token_accuracy", "eval_accuracy", "eval_margin", "eval_rewards/accuracies",
    "eval_rewards/margins", "eval_rewards/chosen",
)  # fmt: skip


def write_card(
    folder: Path,
    plan: Plan,
    *,
    model: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
) -> None:
    """Write README.md beside the model: what it was trained from, on what, how, and what came out.

    Args:
        folder: The run folder.
        plan: The numbers of the run.
        model: What it started from: `name`, `base`, and the `adapter` that was continued, if any.
        sources: What was read, with rows and hashes.
        results: The last evaluation.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = str(model["base"])
    on_hub = not Path(base).exists()
    adapts = bool(plan.setting("use_peft") or model["adapter"])
    names = [str(source["name"]) for source in sources]
    hub_data = sorted({name.partition("[")[0] for name in names if not Path(name).exists()})
    metadata = ModelCardData(
        base_model=base if on_hub else None,
        datasets=hub_data or None,
        library_name="peft" if adapts else "transformers",
        model_name=folder.name,
        tags=["rlhf-cli", "trl", plan.method],
    )
    counts = plan.train
    origin = f"[{base}](https://huggingface.co/{base})" if on_hub else f"the local model folder `{base}`"
    if model["adapter"]:
        origin = f"the adapter `{model['name']}` on {origin}"
    lines = [
        f"# {folder.name}",
        "",
        f"Trained with `rlhf {plan.method}` from {origin}.",
        "",
        "## Data",
        "",
        *(f"- {_describe_source(source)}" for source in sources),
        "",
        f"{counts.used} of {counts.read} rows trained, {counts.truncated} of them truncated; {counts.tokens:,} tokens"
        + ("." if counts.loss_tokens is None else f", {counts.loss_tokens:,} of them with loss."),
        "",
        "## Training",
        "",
        f"{plan.steps} steps of {plan.batch} examples. Every setting is in `rlhf/resolved.json`.",
        "",
        *_describe_results(results),
        *(_describe_loading(folder, plan.members, adapts=adapts) if plan.trains == REWARD_MODEL else []),
    ]
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip() + "\n")
    write_text(folder / "README.md", str(card))


def _describe_source(source: Mapping[str, Any]) -> str:
    name = str(source["name"])
    if "sha256" in source:
        return f"local file `{Path(name).name}`, {source['rows']} rows, sha256 `{source['sha256'][:16]}…`"
    return f"{name}, {source['rows']} rows"


def _describe_results(results: Mapping[str, Any]) -> list[str]:
    shown = {key: results[key] for key in _RESULTS if key in results}
    if not shown:
        return []
    rows = [f"| {key.removeprefix('eval_')} | {value:.4g} |" for key, value in shown.items()]
    return ["## Held-out results", "", "| metric | value |", "|---|---|", *rows, ""]


def _describe_loading(folder: Path, members: int, *, adapts: bool) -> list[str]:
    """How to get the scores that `rlhf score` gives."""
    if members > 1:
        return ["## Scores", "", f"The mean of {members} adapters on one base: `rlhf score` gives it."]
    stamp = RunDir(folder).reward_card
    texts = stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")).get("reads") == "texts"
    reads = 'tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")'
    if not texts:
        reads = 'tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)'
    kind = "AutoPeftModelForSequenceClassification" if adapts else "AutoModelForSequenceClassification"
    library, labels = ("peft", ", num_labels=1") if adapts else ("transformers", "")
    return [
        "## Scores",
        "",
        "One score, read at its last token. What it was trained on, how sure it is, and whether it is "
        "good enough for PPO is in `reward_card.json`. `rlhf score` checks that file; by hand:",
        "",
        "```python",
        f"from {library} import {kind}",
        "from transformers import AutoTokenizer",
        "",
        f'model = {kind}.from_pretrained("{folder.name}"{labels}).eval()',
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.name}")',
        "model.config.pad_token_id = tokenizer.pad_token_id",
        f"score = model(**{reads}).logits",
        "```",
    ]

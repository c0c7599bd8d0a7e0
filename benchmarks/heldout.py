"""Show whether LoRA on real conversations lowers held-out loss: heldout.py MODEL TREES.jsonl.gz [OUT].

MODEL is a chat model folder; TREES are OpenAssistant message trees. The best-ranked reply is followed down each tree;
whole trees are held out. Loss is per conversation, the difference is paired, and its standard error is over trees.
"""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from measure import BIN, ENVIRONMENT

from rlhf_cli.machine import quietly
from rlhf_cli.methods import METHODS
from rlhf_cli.models import find_source, load_for_generation
from rlhf_cli.prepare import gather
from rlhf_cli.recipe import read_recipe

RECIPE = """\
method: sft
model_name_or_path: {model}
dataset_name: {rows}
test_split_size: 0.25
split_by: tree
use_peft: true
lora_target_modules: all-linear
packing: true
eval_packing: false
max_length: 1024
per_device_train_batch_size: 2
learning_rate: 2.0e-4
lr_scheduler_type: cosine
warmup_steps: 0.1
num_train_epochs: 2
logging_steps: 5
save_steps: 10
save_total_limit: 1
output_dir: {output}
"""


def main() -> None:
    """Train, and print the held-out loss before and after."""
    model, trees = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "conversations.jsonl"
    with gzip.open(trees, "rt", encoding="utf-8") as file:
        conversations = [row for line in file for row in follow(json.loads(line))]
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, rows=rows, output=folder / "run"))
    subprocess.run([str(BIN / "rlhf"), "sft", str(path), "--resume"], check=True, env=ENVIRONMENT)
    report(path, str(model), str(folder / "run"))


def follow(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation along the best-ranked replies of a tree, cut after its last answer."""
    messages, node = [], tree["prompt"]
    while node:
        role = "user" if node["role"] == "prompter" else "assistant"
        messages.append({"role": role, "content": node["text"]})
        replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
        node = min(replies, key=lambda reply: reply["rank"] if reply.get("rank") is not None else 99, default=None)
    while messages and messages[-1]["role"] == "user":
        messages.pop()
    return [{"messages": messages, "tree": tree["message_tree_id"]}] if messages else []


def report(path: Path, before: str, after: str) -> None:
    """Print the paired difference in held-out loss, with its standard error over trees."""
    recipe = read_recipe(path)
    with quietly():
        material = gather(recipe, METHODS[0], find_source(recipe))
        assert material.test is not None
        losses = {name: row_losses(name, material.test.dataset, recipe["max_length"]) for name in (before, after)}
    changes: dict[str, list[float]] = defaultdict(list)
    for row, old, new in zip(material.rows.test, losses[before], losses[after], strict=True):
        changes[row["row"]["messages"][0]["content"]].append(new - old)
    per_tree = [statistics.mean(values) for values in changes.values()]
    change, error = statistics.mean(per_tree), statistics.stdev(per_tree) / len(per_tree) ** 0.5
    old, new = (statistics.mean(values) for values in losses.values())
    print(f"held-out trees {len(per_tree)}; loss {old:.4f} before, {new:.4f} after")
    print(f"change {change:+.4f}, standard error {error:.4f}: {abs(change) / error:.1f} standard errors")


@torch.no_grad()
def row_losses(name: str, dataset: Any, max_length: int) -> list[float]:
    """Mean negative log-likelihood of the answer tokens of each row, in nats."""
    model, _ = load_for_generation(name, dtype="float32", device="cpu")
    losses = []
    for row in dataset:
        ids, labels = (torch.tensor([row[key][:max_length]]) for key in ("input_ids", "labels"))
        if (labels[:, 1:] != -100).any():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
        else:
            losses.append(0.0)
    return losses


if __name__ == "__main__":
    main()

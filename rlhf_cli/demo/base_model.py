"""The toy world's base model, made from nothing: `python -m rlhf_cli.demo.base_model` writes `base/` anew."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.demo import BASE
from rlhf_cli.demo.readings import readings
from rlhf_cli.demo.texts import write_rows
from rlhf_cli.demo.tiny import END, build_tiny_model
from rlhf_cli.methods import sft
from rlhf_cli.recipe import read_recipe
from rlhf_cli.train import train

_READINGS = 24_000
_TEMPLATE = """\
{%- for message in messages -%}
{%- if message["role"] == "assistant" -%}
{%- generation -%}{{ " " + message["content"] | trim + eos_token }}{%- endgeneration -%}
{%- else -%}
{{ message["content"] | trim }}
{%- endif -%}
{%- endfor -%}
"""
"""A question and its answer as it has read them: with a space between, and an end behind."""
# Batches are of all kinds of text: with those of one length together, it learns no reply.
_RECIPE = """\
method: sft
model_name_or_path: {folder}/untrained
dataset_name: {folder}/readings.jsonl
test_split_size: 400
packing: false
max_length: 256
num_train_epochs: 6
per_device_train_batch_size: 128
learning_rate: 3.0e-3
lr_scheduler_type: cosine
warmup_steps: 0.02
logging_steps: 10
save_strategy: "no"
attn_implementation: eager
use_cpu: true
bf16: true
report: false
output_dir: {folder}/run
"""


def main() -> None:
    """Train it, about five minutes on two cores, and put it where the package keeps it."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else BASE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = list(readings(_READINGS, seed=0))
        write_rows(folder / "readings.jsonl", ({"text": text} for text in texts))
        words = (text.replace(END, " ") for text in texts)
        build_tiny_model(folder / "untrained", words, width=128, vocabulary=1024, chat_template=_TEMPLATE)
        (folder / "base.yaml").write_text(_RECIPE.format(folder=folder), encoding="utf-8")
        recipe = read_recipe(folder / "base.yaml")
        train(recipe, sft.METHOD)
        model = AutoModelForCausalLM.from_pretrained(folder / "run", dtype="bfloat16")
        tokenizer = AutoTokenizer.from_pretrained(folder / "untrained")
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main()

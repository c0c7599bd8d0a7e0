"""How far the memory plan is off, on three models: `python benchmarks/memory.py SMOLLM2`."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps", "until", "evening")
LORA = {"use_peft": True, "lora_target_modules": "all-linear"}
SETTINGS: dict[str, dict[str, Any]] = {
    "full, 2 x 512": {"per_device_train_batch_size": 2, "max_length": 512},
    "full, 4 x 256, fp32": {"per_device_train_batch_size": 4, "max_length": 256, "bf16": False},
    "full, checkpointed": {"per_device_train_batch_size": 2, "max_length": 512, "activation_checkpointing": True},
    "full, accumulated": {"per_device_train_batch_size": 2, "max_length": 512, "gradient_accumulation_steps": 2},
    "LoRA, 2 x 512": {"per_device_train_batch_size": 2, "max_length": 512, **LORA},
    "LoRA, packed": {"per_device_train_batch_size": 2, "max_length": 512, "packing": True, **LORA},
    "4-bit, 2 x 512": {"per_device_train_batch_size": 2, "max_length": 512, "load_in_4bit": True, **LORA},
}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama, 25M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    "Qwen2, 60M": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
                   "num_key_value_heads": 2, "tie_word_embeddings": False},
}  # fmt: skip


def make_model(name: str, shape: dict[str, Any], tokenizer_of: str, folder: Path) -> Path:
    """A model of this shape with random weights, and SmolLM2's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = AutoConfig.for_model(name.partition(",")[0].lower(), vocab_size=len(tokenizer), **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Probe every model with every setting, each in a process of its own."""
    smollm2 = sys.argv[1]
    errors = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = random.Random(0)
        rows = [json.dumps({"text": " ".join(texts.choices(WORDS, k=2000))}) for _ in range(24)]
        (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
        models = {"SmolLM2, 135M": Path(smollm2)}
        models |= {
            name: make_model(name, shape, smollm2, folder / name.partition(",")[0]) for name, shape in SHAPES.items()
        }
        for model_name, model in models.items():
            for setting_name, settings in SETTINGS.items():
                recipe = folder / "recipe.yaml"
                keys = {"model_name_or_path": str(model), "dataset_name": str(folder / "rows.jsonl"), **settings}
                recipe.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
                command = ["rlhf", "check", str(recipe), "--method", "sft", "--probe", "--format", "json"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                memory = json.loads(done.stdout)["recipes"][0]["memory"]
                errors.append(memory["probe"]["error"])
                print(
                    f"{model_name:<14} {setting_name:<20} estimate {memory['peak_gib']:5.2f}  "
                    f"measured {memory['probe']['peak_gib']:5.2f} GiB  {errors[-1]:+.0%}",
                    flush=True,
                )
    print(f"largest error {max(map(abs, errors)):.0%}, median {statistics.median(map(abs, errors)):.0%}")


if __name__ == "__main__":
    main()

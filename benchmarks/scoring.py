"""Scoring 2,000 pairs of log-normal length, beside a loop in file order: python benchmarks/scoring.py [ROUNDS].

Both use one untrained reward model of a million parameters and the same kernels. The loop takes texts as they come,
16 at a time, and pads each batch to its longest; `rlhf eval` and `rlhf score` sort them first. The last line is for the
memory of an ensemble: parameters of four members on SmolLM2's base, as LoRA of rank 16 on all linear modules, beside
those of one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from rlhf_cli.demo.tiny import build_tiny_model
from rlhf_cli.machine import detect_machine, quietly, settle_on_cpu
from rlhf_cli.reward_model import RewardModel, load_reward_model

PAIRS, LOOP_BATCH = 2000, 16


def main() -> None:
    """Print pairs a second of both, the ratio of each round, and the parameters of an ensemble."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    settle_on_cpu()
    with tempfile.TemporaryDirectory() as name, quietly():
        model = untrained(Path(name))
        lengths = np.clip(np.random.default_rng(0).lognormal(np.log(120), 0.8, 2 * PAIRS), 8, 1000).astype(int)
        vocabulary = len(model.tokenizer)
        texts = [np.random.default_rng(n).integers(10, vocabulary, length).tolist() for n, length in enumerate(lengths)]
        ours, theirs = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            scores = model.score(texts)[:, 0]
            between = time.perf_counter()
            looped = loop(model, texts)
            theirs.append(PAIRS / (time.perf_counter() - between))
            ours.append(PAIRS / (between - started))
            assert np.abs(scores - looped).max() < 1e-4
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"rlhf  {statistics.median(ours):6.1f} pairs/s")
    print(f"loop  {statistics.median(theirs):6.1f} pairs/s")
    print(f"rlhf / loop: {statistics.median(ratios):.2f}  ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    one, four = parameters(1), parameters(4)
    print(f"ensemble of four: {four:,} parameters, of one {one:,}: {four / one:.2f}")


def untrained(folder: Path) -> RewardModel:
    """A reward model nobody trained."""
    build_tiny_model(folder, ["a few words to learn merges from"] * 9, width=128)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return load_reward_model(str(folder), detect_machine(use_cpu=True))


def loop(model: RewardModel, texts: list[list[int]]) -> np.ndarray:
    """Scores as most scripts get them."""
    scores: list[float] = []
    pad = model.tokenizer.pad_token_id
    for start in range(0, len(texts), LOOP_BATCH):
        batch = texts[start : start + LOOP_BATCH]
        longest = max(map(len, batch))
        input_ids = torch.tensor([text + [pad] * (longest - len(text)) for text in batch])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
        with torch.inference_mode():
            scores += model.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
    return np.array(scores)


def parameters(members: int) -> int:
    """Of an ensemble, on the meta device."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, num_labels=1,
    )  # fmt: skip
    adapter = LoraConfig(task_type=TaskType.SEQ_CLS, r=16, target_modules="all-linear", modules_to_save=["score"])
    with init_empty_weights():
        model = get_peft_model(AutoModelForSequenceClassification.from_config(config), adapter)
        for number in range(2, members + 1):
            model.add_adapter(f"member-{number}", adapter)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()

"""Answers for `rlhf eval`, beside plain `generate` in file order: python benchmarks/answers.py [ROUNDS].

Both sample 64 tokens for each of 96 prompts of log-normal length from one untrained Llama of 30 M parameters in fp32,
16 prompts at a time. `generate` of transformers takes prompts as they come; ours takes those of like lengths together.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ppo_vs_trl import VOCABULARY, make_policy

from rlhf_cli.answers import Asking, Respondent
from rlhf_cli.machine import detect_machine, quietly, settle_on_cpu

PROMPTS, BATCH, TOKENS = 96, 16, 64


def main() -> None:
    """Print sequences a second of both, and the ratio of each round."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    settle_on_cpu()
    with tempfile.TemporaryDirectory() as name, quietly():
        make_policy(Path(name))
        respondent = Respondent(name, detect_machine(use_cpu=True), dtype="float32")
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(100), 0.8, PROMPTS), 8, 440).astype(int)
    prompts = [draw.integers(2, VOCABULARY, length).tolist() for length in lengths]
    asking = Asking(TOKENS, 1.0, 0, BATCH)
    ours, theirs = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        made = respondent.answer(prompts, range(PROMPTS), asking, scored=False)
        between = time.perf_counter()
        plain(respondent, prompts)
        theirs.append(PROMPTS / (time.perf_counter() - between))
        # A random model ends an answer now and then; it counts for the share of it that was made.
        share = sum(len(episode.response_ids) for episode in made) / (PROMPTS * TOKENS)
        ours.append(PROMPTS * share / (between - started))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"rlhf      {statistics.median(ours):5.2f} sequences/s")
    print(f"generate  {statistics.median(theirs):5.2f} sequences/s")
    print(f"rlhf / generate: {statistics.median(ratios):.2f}  ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def plain(respondent: Respondent, prompts: list[list[int]]) -> None:
    """Answers as most scripts get them, each of all its tokens."""
    respondent.tokenizer.padding_side = "left"
    for start in range(0, len(prompts), BATCH):
        batch = respondent.tokenizer.pad({"input_ids": prompts[start : start + BATCH]}, return_tensors="pt")
        with torch.no_grad():
            respondent.policy.generate(
                **batch, do_sample=True, top_k=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0
            )


if __name__ == "__main__":
    main()

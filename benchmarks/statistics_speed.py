"""What the statistics of a comparison take: python benchmarks/statistics_speed.py [PROMPTS].

One model against the baseline by one judge, on 2,000 prompts: the win rate with its interval of 10,000 resamples, the
paired permutation test with as many permutations, the length-controlled win rate, and the difference of scores.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from rlhf_cli.contest import compare


def main() -> None:
    """Print the median of five."""
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    draw = np.random.default_rng(0)
    margins, lengths = draw.normal(0.1, 1, prompts), draw.normal(10, 30, prompts)
    seconds = []
    for seed in range(5):
        started = time.perf_counter()
        found = compare(
            margins, range(prompts), names=("ppo", "sft", "gold"), lengths=lengths, scored=True, seed=seed
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    print(found.sentence)
    print(f"{prompts:,} prompts: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()

"""The demo, timed and held to its word: python benchmarks/demo.py [TIMES] [SEEDS].

`rlhf demo` from nothing, TIMES times (3): seconds, the median, and the peak of its memory. Then `rlhf run` of what is
there, which has nothing to do. Then the demo and `--hack` for SEEDS seeds (0): whether their assertions hold, with what
came out. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import BIN, ENVIRONMENT, run

RLHF = str(BIN / "rlhf")


def main() -> None:
    """Print what was measured."""
    times, seeds = (int(sys.argv[n]) if len(sys.argv) > n else (3, 0)[n - 1] for n in (1, 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [run([RLHF, "demo", f"demo-{number}"], cwd=folder) for number in range(times)]
        for number, each in enumerate(runs):
            print(f"demo {number}: {each.elapsed_s:.0f} s, peak {each.peak_mib:,.0f} MiB", flush=True)
        if runs:
            print(f"demo, median: {statistics.median(each.elapsed_s for each in runs):.0f} s")
            again = [run([RLHF, "run", "demo-0/pipeline.yaml"], cwd=folder) for _ in range(7)]
            seconds = statistics.median(each.elapsed_s for each in again)
            print(f"rlhf run, unchanged, median: {seconds:.2f} s, peak {again[0].peak_mib:.0f} MiB")
        for seed in range(seeds):
            hold_to_its_word(folder, seed)


def hold_to_its_word(folder: Path, seed: int) -> None:
    """Run the demo and the hack with a seed, and print their numbers."""
    name = f"seed-{seed}"
    codes = [
        subprocess.run([RLHF, "demo", name, "--seed", str(seed), *more], cwd=folder, env=ENVIRONMENT, check=False,
                       capture_output=True).returncode
        for more in ((), ("--hack",))
    ]  # fmt: skip
    print(f"seed {seed}: exit codes {codes}", flush=True)
    for stage in ("eval", "hack-eval"):
        found = json.loads((folder / name / "runs" / stage / "eval.json").read_text())
        rewards = {model: each["rewards"]["gold"]["value"] for model, each in found["models"].items()}
        told = ", ".join(f"{model} {value:.3f}" for model, value in rewards.items())
        contest = next(each for each in found["contests"] if (each["model"], each["judge"]) == ("ppo", "gold"))
        gain, kl = contest["difference"], found["models"]["ppo"]["numbers"]["kl"]["value"]
        verdict = next(each["outcome"] for each in found["verdicts"] if each["model"] == "ppo")
        print(
            f"  {stage}: gold {told}; ppo - sft {gain['value']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}], "
            f"KL {kl:.1f}, verdict {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()

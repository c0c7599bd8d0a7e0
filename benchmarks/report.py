"""The report of a long run: python benchmarks/report.py [--steps N] [--json].

Writes the metrics of a PPO run that logged every one of its steps, with 45 of them a line and samples of 40 prompts,
and says how long `write_report` takes in a fresh process, and how large the page is.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
from pyarrow import parquet

LINES = (
    "objective/scores", "objective/kl", "objective/kl_k3", "completions/mean_length", "completions/clipped_ratio",
    "completions/repetition", "objective/entropy_per_token", "policy/clipfrac_avg", "val/clipfrac_avg", "val/ratio",
    "val/explained_var", "loss/policy_avg", "loss/value_avg", "loss", "grad_norm", "learning_rate",
)  # fmt: skip
ANSWER = "Once upon a time a small dog went to the river and saw that <b>all</b> was well & good. "


def main() -> None:
    """Print seconds and megabytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        write_run(folder, given.steps)
        command = (
            f"from pathlib import Path; from rlhf_cli.report import write_report; write_report(Path({str(folder)!r}))"
        )
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", command], check=True)
        seconds = time.perf_counter() - started
        megabytes = (folder / "report.html").stat().st_size / 1e6
        metrics = (folder / "rlhf" / "metrics.jsonl").stat().st_size / 1e6
    found = {"steps": given.steps, "metrics_mb": metrics, "seconds": seconds, "report_mb": megabytes}
    shown = f"{given.steps:,} lines of {metrics:.0f} MB: {seconds:.1f} s, report.html of {megabytes:.2f} MB"
    print(json.dumps(found) if given.json else shown)


def write_run(folder: Path, steps: int) -> None:
    """Write a run folder as PPO leaves it."""
    (folder / "rlhf" / "samples").mkdir(parents=True)
    facts = {"status": "done", "method": "ppo", "argv": ["rlhf", "ppo", "r.yaml"], "steps_done": steps, "exit_code": 0,
             "plan": {"steps": steps, "trains": "policy", "test": {"used": 40}},
             "results": {"eval_gain": 0.3, "eval_gain_low": 0.1, "eval_gain_high": 0.5, "eval_kl": 9.0}}  # fmt: skip
    (folder / "rlhf" / "run.json").write_text(json.dumps(facts))
    (folder / "rlhf" / "resolved.json").write_text(json.dumps({"method": "ppo"}))
    noise = random.Random(0)
    with (folder / "rlhf" / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {name: math.log(1 + step) + noise.gauss(0, 1) for name in LINES}
            rest = {f"other/{number}": noise.random() for number in range(45 - len(LINES))}
            file.write(json.dumps({"step": step, **record, **rest}) + "\n")
    rows = [{"prompt": ANSWER, "response": ANSWER * 9, "reference": ANSWER * 8, "reward": noise.random(), "kl": 9.0,
             "reference_reward": noise.random(), "tokens": 64, "finished": True} for _ in range(400)]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rlhf" / "samples" / f"step-{steps}.parquet")


if __name__ == "__main__":
    main()

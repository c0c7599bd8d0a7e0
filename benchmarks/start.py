"""How long a user waits before something happens, beside `trl sft`: `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import BIN, Run, alternate, median, run

from rlhf_cli.demo import INSTRUCTIONS

STEPS = """\
model_name_or_path: tiny
dataset_name: data
max_length: 64
max_steps: 3
logging_steps: 1
report_to: none
save_strategy: "no"
use_cpu: true
"""


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what this one holds in memory would count as its children's.
        subprocess.run([sys.executable, "-m", "rlhf_cli.demo.tiny", str(folder)], check=True, capture_output=True)
        rows = [json.loads(line) for line in INSTRUCTIONS.read_text().splitlines()]
        (folder / "data").mkdir()
        chats = [{"prompt": row["instruction"], "completion": row["output"]} for row in rows]
        (folder / "data/train.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
        (folder / "wrong.yaml").write_text(STEPS + "learning_rat: 1e-5\n")
        (folder / "good.yaml").write_text(STEPS)
        measure(folder)


def measure(folder: Path) -> None:
    """Time each command and print a row for it."""
    rlhf, trl = str(BIN / "rlhf"), str(BIN / "trl")

    def first_step(tool: str) -> Run:
        if tool == "rlhf":
            return run([rlhf, "sft", "good.yaml", "--output_dir", "ours", "--overwrite"], until="step 1/", cwd=folder)
        command = [trl, "sft", "--config", "good.yaml", "--output_dir", "theirs"]
        return run(command, until="'loss'", cwd=folder)

    quick = alternate(
        {
            "rlhf --help": lambda: run([rlhf, "--help"]),
            "rlhf sft --help": lambda: run([rlhf, "sft", "--help"]),
            "rlhf check, wrong recipe": lambda: run([rlhf, "check", "wrong.yaml", "--method", "sft"], cwd=folder),
        },
        times=7,
    )
    slow = alternate(
        {
            "trl sft --help": lambda: run([trl, "sft", "--help"]),
            "rlhf sft, to the first optimizer step": lambda: first_step("rlhf"),
            "trl sft, to the first optimizer step": lambda: first_step("trl"),
        },
        times=5,
    )
    print(f"{'command':<40} {'seconds':>8} {'first line':>11} {'peak MiB':>9}")
    for name, runs in {**quick, **slow}.items():
        seconds = median(runs, "found_s" if "first optimizer" in name else "elapsed_s")
        print(f"{name:<40} {seconds:8.2f} {median(runs, 'first_line_s'):11.2f} {median(runs, 'peak_mib'):9.0f}")
    ours, theirs = (median(slow[f"{tool} sft, to the first optimizer step"], "found_s") for tool in ("rlhf", "trl"))
    print(f"first step, rlhf / trl: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()

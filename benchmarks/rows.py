"""How fast every row is read and surveyed, and in how much memory: `python benchmarks/rows.py`."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from measure import BIN, run

COUNTS = (100_000, 200_000)


def write_rows(path: Path, count: int) -> None:
    """Questions and answers of some 90 words in all, no two alike."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {"instruction": " ".join(draw.choices(words, k=30)), "output": " ".join(draw.choices(words, k=60))}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Survey two files, one twice as long as the other."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        for count in COUNTS:
            rows = Path(folder) / f"{count}.jsonl"
            write_rows(rows, count)
            recipe.write_text(f"method: sft\nmodel_name_or_path: none\ndataset_name: {rows}\n")
            measured = run([str(BIN / "rlhf"), "check", str(recipe), "--rows"])
            print(
                f"{count:,} rows, {rows.stat().st_size / 2**20:.0f} MiB: {measured.elapsed_s:.1f} s, "
                f"{count / measured.elapsed_s:,.0f} rows a second, peak {measured.peak_mib:.0f} MiB"
            )


if __name__ == "__main__":
    main()

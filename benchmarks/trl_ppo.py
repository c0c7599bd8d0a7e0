"""One run of TRL 1.12's PPOTrainer, as a user of it would write it, with its best settings; a process of its own.

Best means: `ACCELERATE_MIXED_PRECISION=bf16`, without which transformers 5 lets its `bf16` do nothing; padding that is
not the end token; one minibatch, the only number it trains rightly with; nothing saved. TRL is the unpacked wheel of
1.12.0 (`pip download --no-deps trl==1.12.0`, `unzip`), the last with a PPOTrainer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import ENVIRONMENT

SKIPPED = 1
"""Rollouts that warm up, and do not count."""


@dataclass(frozen=True)
class Wanted:
    """What is trained; paths are strings, so that it can be handed over as JSON."""

    policy: str
    reward: str
    """A sequence classifier's folder; or the token that is counted, in digits, where the reward is its share of 8."""
    prompts: str
    lora: dict[str, Any] | None
    learning_rate: float
    response: int
    """Tokens, always all of them."""
    episodes: int
    """Of a rollout."""
    parts: int
    """Micro-batches that a rollout is trained in."""
    epochs: int
    rollouts: int
    seed: int
    kl_coef: float = 0.05


def run_trl(wanted: Wanted, trl: Path) -> dict[str, Any]:
    """Train in a process of its own.

    Returns:
        `eps`, the episodes a second in the median, `peak_mib`, and `logs`, what it logged after each rollout.
    """
    environment = {
        "PYTHONPATH": str(trl), "ACCELERATE_MIXED_PRECISION": "bf16", "OMP_NUM_THREADS": str(os.cpu_count()),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        peak = run_quietly([sys.executable, __file__, json.dumps(asdict(wanted)), folder], environment)
        return {**json.loads((Path(folder) / "found.json").read_text()), "peak_mib": peak}


def run_quietly(command: list[str], environment: dict[str, str]) -> float:
    """Run a command to its end; its peak memory in MiB."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**ENVIRONMENT, **environment})
        # The kernel keeps the peak; to look at gigabytes of pages every few milliseconds would slow the process down.
        _, status, used = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(said.read().decode()[-3000:])
    return used.ru_maxrss / 1024


def train(wanted: Wanted, folder: Path) -> None:
    """Train, and write down what came of it."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    assert trl.__version__.startswith("1.12")
    tokenizer = AutoTokenizer.from_pretrained(wanted.policy, padding_side="left")
    texts = [json.loads(line)["text"] for line in Path(wanted.prompts).read_text().splitlines()]
    moments: list[float] = []
    logged: list[dict[str, float]] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            moments.append(time.perf_counter())
            logged.append(dict(logs))

    config = PPOConfig(
        output_dir=str(folder / "trl"), learning_rate=wanted.learning_rate, response_length=wanted.response,
        num_ppo_epochs=wanted.epochs, num_mini_batches=1, per_device_train_batch_size=wanted.episodes // wanted.parts,
        gradient_accumulation_steps=wanted.parts, total_episodes=wanted.rollouts * wanted.episodes, seed=wanted.seed,
        kl_coef=wanted.kl_coef, use_cpu=True, bf16=True, save_strategy="no", report_to="none",
        num_sample_generations=0, temperature=1.0, stop_token=None, adam_epsilon=1e-5,
    )  # fmt: skip
    score = AutoModelForSequenceClassification.from_pretrained
    counts = wanted.reward.isdecimal()
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(wanted.policy, dtype=torch.float32),
        ref_model=None,
        reward_model=token_counter(int(wanted.reward))
        if counts
        else score(wanted.reward, num_labels=1, dtype=torch.float32),
        value_model=score(wanted.policy if counts else wanted.reward, num_labels=1, dtype=torch.float32),
        train_dataset=Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts]}),
        peft_config=LoraConfig(**wanted.lora, task_type="CAUSAL_LM") if wanted.lora else None,
        callbacks=[Watch()],
    )
    trainer.train()
    steps = [after - before for before, after in pairwise(moments)][SKIPPED - 1 :]
    found = {
        "eps": wanted.episodes / statistics.median(steps),
        "logs": [log for log in logged if "objective/scores" in log],
    }
    (folder / "found.json").write_text(json.dumps(found))


def token_counter(token: int) -> Any:
    """A reward model whose score at each position is how often the token came until then, an eighth each, at most 1."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    class Count(torch.nn.Module):
        def forward(self, input_ids: Any, **_: Any) -> Any:
            found = (input_ids == token).cumsum(dim=1).clamp(max=8) / 8
            return BaseModelOutput(hidden_states=(found[..., None],))

    class Counter(torch.nn.Module):
        base_model_prefix = "count"

        def __init__(self) -> None:
            super().__init__()
            self.count, self.score = Count(), torch.nn.Identity()

    return Counter()


if __name__ == "__main__":
    train(Wanted(**json.loads(sys.argv[1])), Path(sys.argv[2]))

"""PPO beside TRL's last: python benchmarks/ppo_vs_trl.py --trl DIR [--rounds N] [--rollouts N] [--modes …] [--json].

DIR holds TRL 1.12.0's wheel unpacked (see trl_ppo.py, which also has its settings). Same environment, model, reward
model, prompts, lengths and epochs; every response has all its tokens, so that the work is the same. The model is a
random Llama of 30 M parameters (hidden 512, 8 layers, vocabulary 4,096); prompts have 96 tokens, responses 64; a
rollout is 32 episodes, trained on 4 times. Every run has a process of its own; the first rollout, which warms up, does
not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import BIN, ENVIRONMENT
from trl_ppo import SKIPPED, Wanted, run_quietly, run_trl

PROMPT, RESPONSE, EPISODES, EPOCHS, VOCABULARY = 96, 64, 32, 4, 4096
LETTERS = [chr(0x4E00 + number) for number in range(VOCABULARY - 2)]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
MODES: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 3e-4, "adapts": True, "value_model": "shared"},
    "lora-separate": {"learning_rate": 3e-4, "adapts": True, "value_model": "separate"},
    "full": {"learning_rate": 3e-5, "adapts": False, "value_model": "shared"},
    "separate": {"learning_rate": 3e-5, "adapts": False, "value_model": "separate"},
}
TITLES = {
    "lora": "LoRA, one base", "lora-separate": "LoRA, separate critic", "full": "all weights, shared trunk",
    "separate": "all weights, separate critic",
}  # fmt: skip


def main() -> None:
    """Print speed and memory of both, mode by mode, and what their policies came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True, env=ENVIRONMENT)
        for mode in asked.modes:
            compare(mode, folder, asked)


def compare(mode: str, folder: Path, asked: argparse.Namespace) -> None:
    """Run both in turn, each round with another seed."""
    ours, theirs = [], []
    for seed in range(asked.rounds):
        ours.append(run_rlhf(mode, folder, seed, asked.rollouts))
        found = run_trl(wanted(mode, folder, seed, asked.rollouts), asked.trl)
        theirs.append({"eps": found["eps"], "peak_mib": found["peak_mib"], **told(found["logs"])})
    pairs = list(zip(ours, theirs, strict=True))
    found = {
        "mode": mode,
        "speed_ratio": round(statistics.median(a["eps"] / b["eps"] for a, b in pairs), 3),
        "memory_ratio": round(statistics.median(a["peak_mib"] / b["peak_mib"] for a, b in pairs), 3),
        **{f"rlhf_{key}": [round(run[key], 3) for run in ours] for key in ("eps", "peak_mib", "gain", "kl")},
        **{f"trl_{key}": [round(run[key], 3) for run in theirs] for key in ("eps", "peak_mib", "gain", "kl")},
        "rlhf_seconds": {key: round(statistics.median(run[key] for run in ours), 2) for key in ours[0] if "/" in key},
    }
    if asked.json:
        print(json.dumps(found), flush=True)
        return
    for tool, runs in (("rlhf", ours), ("trl", theirs)):
        middle = {key: statistics.median(run[key] for run in runs) for key in ("eps", "peak_mib", "gain", "kl")}
        print(
            f"{TITLES[mode]:<30} {tool:<5} {middle['eps']:6.2f} episodes/s {middle['peak_mib']:7,.0f} MiB  "
            f"score {middle['gain']:+.2f} σ at {middle['kl']:.1f} nats"
        )
    print(
        f"{TITLES[mode]:<30} rlhf / trl: {found['speed_ratio']:.2f} of the speed, {found['memory_ratio']:.2f} of the "
        "memory",
        flush=True,
    )


def wanted(mode: str, folder: Path, seed: int, rollouts: int) -> Wanted:
    """The run of TRL's that does the same."""
    return Wanted(
        policy=str(folder / "policy"), reward=str(folder / "reward"), prompts=str(folder / "prompts.jsonl"),
        lora=LORA if MODES[mode]["adapts"] else None, learning_rate=MODES[mode]["learning_rate"], response=RESPONSE,
        episodes=EPISODES, parts=2, epochs=EPOCHS, rollouts=rollouts, seed=seed,
    )  # fmt: skip


# --- ours -------------------------------------------------------------------------------------------------------------


def run_rlhf(mode: str, folder: Path, seed: int, rollouts: int) -> dict[str, float]:
    """One run of `rlhf ppo`."""
    settings = MODES[mode]
    recipe = {
        "model_name_or_path": str(folder / "policy"),
        "reward_model_path": str(folder / ("adapter" if settings["adapts"] else "reward")),
        "dataset_name": str(folder / "prompts.jsonl"),
        "value_model": settings["value_model"],
        "learning_rate": settings["learning_rate"],
        "response_length": RESPONSE,
        "stop_token": None,
        "num_ppo_epochs": EPOCHS,
        "per_device_train_batch_size": EPISODES // 2,
        "gradient_accumulation_steps": 2,
        "total_episodes": rollouts * EPISODES,
        "seed": seed,
        "use_cpu": True,
        "bf16": True,
        "save_strategy": "no",
        "normalize_rewards": False,
    }
    if settings["adapts"]:
        recipe |= {
            "use_peft": True,
            "lora_r": LORA["r"],
            "lora_alpha": LORA["lora_alpha"],
            "lora_target_modules": "all-linear",
        }
    file, output = folder / f"{mode}.yaml", folder / f"{mode}-{seed}"
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    command = [str(BIN / "rlhf"), "ppo", str(file), "--output_dir", str(output)]
    peak = run_quietly(command, {"OMP_NUM_THREADS": str(os.cpu_count())})
    logs = [json.loads(line) for line in (output / "rlhf/metrics.jsonl").read_text().splitlines()]
    rollout_logs = [log for log in logs if "objective/scores" in log]
    parts = ("time/generate", "time/score", "time/reward", "time/train")
    seconds = [sum(log[part] for part in parts) for log in rollout_logs][SKIPPED:]
    return {
        "eps": EPISODES / statistics.median(seconds),
        "peak_mib": peak,
        **told(rollout_logs),
        **{part: statistics.median(log[part] for log in rollout_logs[SKIPPED:]) for part in parts},
    }


def told(logs: list[dict[str, float]]) -> dict[str, float]:
    """What the score has gained since the first rollout, in its standard deviations (the head is scaled to 1)."""
    last = logs[-3:]
    return {
        "gain": statistics.fmean(log["objective/scores"] for log in last) - logs[0]["objective/scores"],
        "kl": statistics.fmean(log["objective/kl"] for log in last),
    }


# --- models -----------------------------------------------------------------------------------------------------------


def make_policy(folder: Path) -> None:
    """An untrained Llama of 30 M parameters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    # A character a token, so that text and tokens are one and the same for both.
    words = {token: number for number, token in enumerate(["<pad>", "</s>", *LETTERS])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("</s>|."), "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>")
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=VOCABULARY, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_models(folder: Path) -> None:
    """A policy, a reward model as an adapter on it and as a model of its own, and prompts."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    make_policy(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    adapted = get_peft_model(model, LoraConfig(**LORA, task_type="SEQ_CLS", modules_to_save=["score"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
        ids = torch.randint(2, VOCABULARY, (64, PROMPT + RESPONSE))
        scores = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        head = adapted.base_model.model.score.modules_to_save["default"].weight
        head /= scores.std()
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    plain_base = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    merged = PeftModel.from_pretrained(plain_base, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(2, VOCABULARY, (512, PROMPT), generator=draw).tolist()
    texts = ["".join(LETTERS[token - 2] for token in row) for row in rows]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


if __name__ == "__main__":
    if "--make" in sys.argv:
        make_models(Path(sys.argv[-1]))
    else:
        main()

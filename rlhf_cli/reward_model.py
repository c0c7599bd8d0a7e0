"""A reward model as others use it: loaded by its folder, checked against its stamp, and asked for scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_quantization_config

from rlhf_cli.adapters import head_names, hold_in_fp32
from rlhf_cli.errors import EnvironmentFault, RecipeError, first_line
from rlhf_cli.machine import gather_parts, own_part
from rlhf_cli.model_source import Source, look_into, look_into_reward_model
from rlhf_cli.models import explain_broken, fingerprint_weights, load_weights
from rlhf_cli.plan import REWARD_MODEL, Machine
from rlhf_cli.render import ensure_chat_template, render_answer
from rlhf_cli.rows import BadRow
from rlhf_cli.run_dir import RunDir
from rlhf_cli.writing import text_hash

Scores = NDArray[np.float32]
CONVERSATIONS, TEXTS = "conversations", "texts"
_BATCH_TOKENS = {"cuda": 32_768, "cpu": 4096}
"""Tokens of a batch, padding included."""


@dataclass(frozen=True)
class RewardModel:
    """A reward model ready to score; an ensemble is one base with several adapters."""

    name: str
    model: Any
    """A PreTrainedModel or PeftModel, or what is called like one."""
    tokenizer: PreTrainedTokenizerBase
    adapters: tuple[str, ...]
    """Names of the members' adapters; empty where the weights themselves were trained."""
    stamp: Mapping[str, Any]
    """What `reward_card.json` says; empty for a model that has none."""
    compute: torch.dtype
    device: str

    @property
    def members(self) -> int:
        """How many scores a text gets."""
        return max(1, len(self.adapters))

    def render(
        self,
        prompt: Any,
        response: Any,
        *,
        beside: Mapping[str, Any] | None = None,
        finished: bool = True,
        cuts: bool = False,
    ) -> list[int]:
        """A prompt and a response as this model was trained to read them.

        A text given to a model of conversations is the turn of a user, and its response the assistant's. With `cuts`
        what is longer than the model reads loses its beginning, else it is refused.

        Raises:
            BadRow: when a conversation is given to a model of plain texts, or the chat template refuses it.
        """
        if self.stamp.get("reads", CONVERSATIONS) == CONVERSATIONS:
            if isinstance(prompt, str):
                prompt = [{"role": "user", "content": prompt}]
            if isinstance(response, str):
                response = [{"role": "assistant", "content": response}]
        elif not isinstance(prompt, str) or not isinstance(response, str):
            raise BadRow("the reward model was trained on plain texts, and this is a conversation")
        tokens = render_answer(self.tokenizer, prompt, response, beside=beside, finished=finished)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if cuts and limit is not None:
            return tokens[-limit:]
        if limit is not None and len(tokens) > limit:
            raise BadRow(f"it has {len(tokens)} tokens, and the model reads {limit}")
        return tokens

    def score(self, texts: Sequence[Sequence[int]], *, shared: bool = True) -> Scores:
        """Score token sequences.

        Args:
            texts: As `render` gives them.
            shared: Whether all processes of a run have the same texts, and share the work.

        Returns:
            Shape (texts, members).
        """
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        scores = np.empty((len(texts), self.members), dtype=np.float32)
        done = self._score_batches(texts, own_part(order) if shared else order)
        for index, values in gather_parts(list(done)) if shared else done:
            scores[index] = values
        return scores

    def _score_batches(self, texts: Sequence[Sequence[int]], order: Sequence[int]) -> Iterator[tuple[int, list[float]]]:
        budget = _BATCH_TOKENS.get(self.device, _BATCH_TOKENS["cpu"])
        batches = [order[start:end] for start, end in pairwise(_bounds([len(texts[index]) for index in order], budget))]
        columns = []
        for adapter in self.adapters or (None,):
            if adapter is not None:
                self.model.set_adapter(adapter)
            columns.append([score for batch in batches for score in self._score_batch([texts[i] for i in batch])])
        for row, index in enumerate(order):
            yield index, [column[row] for column in columns]

    def _score_batch(self, texts: Sequence[Sequence[int]]) -> list[float]:
        length = max(map(len, texts))
        input_ids = torch.full((len(texts), length), self.model.config.get_text_config().pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, text in enumerate(texts):
            input_ids[row, : len(text)] = torch.as_tensor(text)
            attention_mask[row, : len(text)] = 1
        reduced = self.compute != torch.float32
        # Where it is off it is switched off, since it may be asked inside of another one.
        autocast = torch.autocast(self.device, dtype=self.compute if reduced else torch.bfloat16, enabled=reduced)
        with torch.inference_mode(), autocast:
            output = self.model(
                input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device), use_cache=False
            )
        scores: list[float] = output.logits[:, 0].float().tolist()
        return scores


def _bounds(lengths: Sequence[int], budget: int) -> list[int]:
    """Where batches of sequences sorted by length begin and end, so that each has at most so many padded tokens."""
    bounds = [0]
    for index in range(len(lengths)):
        if (index + 1 - bounds[-1]) * lengths[bounds[-1]] > budget and index > bounds[-1]:
            bounds.append(index)
    return [*bounds, len(lengths)] if lengths else [0]


# --- loading ------------------------------------------------------------------------------------------------------


def load_reward_model(
    name: str,
    machine: Machine,
    *,
    quantisation: Mapping[str, Any] | None = None,
    making: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Load a reward model and hold it against its stamp.

    Args:
        name: A run of `rlhf train-reward`, a model folder or a Hub id.
        machine: What it runs on.
        quantisation: Model keys of a recipe such as `load_in_4bit`; None is as it was trained.
        making: The stamp that it is about to get; one that is there already is then not asked.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        RecipeError: when it is a policy, has no trained score, or is not what its stamp says.
        EnvironmentFault: when the Hub cannot be reached.
    """
    name = _local(name)
    source = look_into_reward_model(name)
    stamp = read_stamp(name) if making is None else making
    how = dict(quantisation if quantisation is not None else stamp.get("quantisation") or {})
    compute = str(stamp.get("compute", _default_dtype(machine)))
    if compute == "bfloat16" and not machine.bf16:
        compute = "float32"
    with explain_broken(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        dtype = str(stamp.get("dtype", compute)) if compute != "float32" else compute
        model, adapters = _load(source, {**stamp, "dtype": dtype}, how, machine, trust_remote_code=trust_remote_code)
    ensure_chat_template(tokenizer)
    text_config = model.config.get_text_config()
    if stamp or text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id
    loaded = RewardModel(name, model.eval(), tokenizer, adapters, stamp, getattr(torch, compute), machine.device)
    if stamp and making is None:
        refuse_other(loaded)
    return loaded


def _default_dtype(machine: Machine) -> str:
    return "bfloat16" if machine.device == "cuda" and machine.bf16 else "float32"


def _local(name: str) -> str:
    """The folder of a model; one of the Hub is fetched whole, its stamp and the members of an ensemble with it."""
    path = Path(os.path.expanduser(name))
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return str(path) if path.exists() else name
    try:
        return str(snapshot_download(name, ignore_patterns=["*.bin", "checkpoint-*"]))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"there is no reward model `{name}` here, and the Hub does not give it: {first_line(error)}"
        ) from None


def _load(
    source: Source,
    stamp: Mapping[str, Any],
    quantisation: Mapping[str, Any],
    machine: Machine,
    *,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel | PeftModel, tuple[str, ...]]:
    keys = ModelConfig(**quantisation, dtype=stamp["dtype"])
    quantised = get_quantization_config(keys)
    model, info = load_weights(
        source.base, REWARD_MODEL, quantization=quantised, device=machine.device,
        revision=stamp.get("revision", "main"),
        dtype=keys.dtype, output_loading_info=True,
        trust_remote_code=trust_remote_code, **(stamp.get("model_init_kwargs") or {}),
    )  # fmt: skip
    adapters: tuple[str, ...] = ()
    if source.adapter:
        folders = member_folders(Path(source.adapter))
        _refuse_without_head(folders, model)
        adapters = tuple(f"member-{number}" for number in range(1, len(folders) + 1))
        hold_in_fp32(model, head_names(model))
        model = PeftModel.from_pretrained(model, folders[0], adapter_name=adapters[0])
        for adapter, folder in zip(adapters[1:], folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=adapter)
    elif lacking := [key for key in info["missing_keys"] if key.split(".")[0] in head_names(model)]:
        raise RecipeError(f"`{source.name}` has no trained score: {lacking[0]} is not among its weights")
    return (model if quantised else model.to(machine.device)), adapters


def member_folders(run: Path) -> list[Path]:
    """The folders of an ensemble's adapters; one where it is no ensemble. The first is the run itself."""
    others = (
        sorted((run / "members").glob("*"), key=lambda folder: int(folder.name)) if (run / "members").is_dir() else []
    )
    return [run, *others]


def _refuse_without_head(folders: Sequence[Path], model: PreTrainedModel) -> None:
    for folder in folders:
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as tensors:
            names = list(tensors.keys())
        for head in head_names(model):
            if not any(f".{head}." in name for name in names):
                raise RecipeError(
                    f"the adapter in `{folder}` has no `{head}`, so its scores would come from a head at random",
                    hint="train it with `rlhf train-reward`, which saves the score with the adapter",
                )


# --- the stamp ----------------------------------------------------------------------------------------------------


def what_is_read(rows: Dataset) -> str:
    """Whether a model of these preferences reads conversations or plain texts, as its stamp says under `reads`."""
    return TEXTS if isinstance(rows[0]["row"]["chosen"], str) else CONVERSATIONS


def read_stamp(name: str) -> dict[str, Any]:
    """What `reward_card.json` says of a folder; empty where there is none."""
    try:
        return dict(json.loads(RunDir(Path(name)).reward_card.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}/reward_card.json is damaged: {error}") from None


def identify(name: str, tokenizer: PreTrainedTokenizerBase, *, revision: str) -> dict[str, Any]:
    """What tells one reward model from another: its base, its own weights, its tokenizer and its template."""
    source = look_into(name)
    return {
        "base": {"name": source.base, "id": fingerprint_weights(source.base, revision)} if source.adapter else None,
        "weights": [fingerprint_weights(str(folder)) for folder in member_folders(Path(name))],
        "configurations": [_configuration_hash(folder) for folder in (Path(source.base), *member_folders(Path(name)))],
        "tokenizer": _tokenizer_hash(tokenizer),
        "chat_template": text_hash(str(tokenizer.chat_template)),
        "pad_token": tokenizer.pad_token,
    }


def _configuration_hash(folder: Path) -> str:
    """A hash of what shapes a model, or its adapter; of a base on the Hub, its commit says it."""
    files = [folder / "config.json", folder / "adapter_config.json"]
    return text_hash("".join(file.read_text(encoding="utf-8") for file in files if file.exists()))


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what text becomes: vocabulary, merges and special tokens, but not of how a batch is padded."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: parts[key] for key in parts if key not in ("padding", "truncation")}
    return hashlib.sha256(
        json.dumps([kept, tokenizer.special_tokens_map], sort_keys=True, default=str).encode()
    ).hexdigest()


def refuse_other(loaded: RewardModel) -> None:
    """Refuse a model that is not what its stamp says."""
    now = identify(loaded.name, loaded.tokenizer, revision=loaded.stamp.get("revision", "main"))
    says = {
        "base": "its base is another than the one it was trained on",
        "weights": "its weights have changed since it was stamped",
        "configurations": "its configuration, or its base's, has changed since it was stamped",
        "tokenizer": "its tokenizer is another than the one it was trained with",
        "chat_template": "its chat template is another than the one it was trained with",
        "pad_token": "its padding token is another than in training, and the score is read where padding begins",
    }
    for part, what in says.items():
        was, is_now = loaded.stamp.get(part), now[part]
        if part == "base" and was and is_now:
            was, is_now = was["id"], is_now["id"]
        if was != is_now:
            raise RecipeError(
                f"`{loaded.name}` is not what its reward_card.json says: {what}",
                hint="put back what was there, or train it anew",
            )


# --- scale --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of scores on the stored answers, as they are now and as they were stamped."""

    mean: float
    std: float
    stamped_mean: float
    stamped_std: float

    def as_text(self) -> str:
        """The shift, as it is shown to a person."""
        shift = (self.mean - self.stamped_mean) / self.stamped_std if self.stamped_std else 0.0
        return (
            f"scores on the stored answers: mean {self.mean:+.3f}, standard deviation {self.std:.3f}; as trained "
            f"{self.stamped_mean:+.3f} and {self.stamped_std:.3f}, a shift of {shift:+.2f} σ"
        )


def score_stored_answers(model: RewardModel) -> Scores | None:
    """Scores of the answers stored with it, shape (answers, members); None where none are."""
    file = RunDir(Path(model.name)).stored_answers
    if not file.exists():
        return None
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return model.score([model.render(row["prompt"], row["response"], beside=row) for row in rows])


def measure_scale(model: RewardModel, scores: Scores | None = None) -> Scale | None:
    """Score the stored answers again, since another quantisation shifts scores; None where none are stored."""
    scores = score_stored_answers(model) if scores is None else scores
    if scores is None or "scores" not in model.stamp:
        return None
    stamped, scores = model.stamp["scores"], scores.mean(axis=1)
    return Scale(float(scores.mean()), float(scores.std()), stamped["mean"], stamped["std"])

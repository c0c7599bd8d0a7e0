"""A Llama of a few hundred thousand parameters, made from nothing: `python -m rlhf_cli.demo.tiny FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from rlhf_cli.demo import INSTRUCTIONS

END, PAD = "<|end|>", "<|pad|>"


def build_tiny_model(
    folder: Path,
    texts: Iterable[str],
    *,
    width: int = 64,
    vocabulary: int = 512,
    special_tokens: tuple[str, ...] = (),
    chat_template: str | None = None,
) -> Path:
    """Write an untrained model folder that transformers loads like any other.

    Args:
        folder: Where to.
        texts: What the byte-level BPE learns its merges from.
        width: Of the residual stream; there is a head and a layer for every 32.
        vocabulary: Tokens, the 256 bytes and the special ones included.
        special_tokens: Beside those that end a text and pad it.
        chat_template: Jinja; by default the tokenizer has none, like a base model.

    Returns:
        The folder.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, *special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(special_tokens),
        model_max_length=512,
        chat_template=chat_template,
    )
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=width // 32,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Write the untrained model `tiny/` and the bundled `instructions.jsonl` into a folder."""
    folder = Path(sys.argv[1])
    rows = [json.loads(line) for line in INSTRUCTIONS.read_text(encoding="utf-8").splitlines()]
    build_tiny_model(folder / "tiny", (" ".join(row.values()) for row in rows), width=128, vocabulary=1024)
    (folder / INSTRUCTIONS.name).write_bytes(INSTRUCTIONS.read_bytes())


if __name__ == "__main__":
    main()

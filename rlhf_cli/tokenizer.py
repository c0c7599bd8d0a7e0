"""The tokenizer of a run: its chat template, its end of a text, and what it pads with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.errors import RecipeError
from rlhf_cli.model_source import Source
from rlhf_cli.models import explained_model
from rlhf_cli.recipe import Recipe
from rlhf_cli.render import ensure_chat_template


def load_tokenizer(recipe: Recipe, source: Source, *, pads_apart: bool = False) -> tuple[PreTrainedTokenizerBase, bool]:
    """Load the tokenizer, give it a chat template and a padding token.

    Args:
        recipe: For the tokens and the template it names.
        source: The model.
        pads_apart: Whether the padding token must be another than the one that ends a text, since a reward model reads
            its score at the last token that is not padding.

    Returns:
        The tokenizer, and whether it got our chat template.

    Raises:
        RecipeError: when there is none, or the recipe names tokens it does not have.
    """
    where = recipe.where("model_name_or_path")
    folder = source.adapter if source.adapter and _has_tokenizer(Path(source.adapter)) else source.base
    if Path(folder).is_dir() and not _has_tokenizer(Path(folder)):
        raise RecipeError(f"`{source.name}` has no tokenizer: tokenizer.json is missing", where=where)
    with explained_model(recipe, f"the tokenizer of `{source.name}`", folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=recipe["model_revision"], trust_remote_code=recipe["trust_remote_code"]
        )
    if not tokenizer.is_fast:
        raise RecipeError(f"the tokenizer of `{source.name}` cannot tell where its tokens stand in a text", where=where)
    for key in ("eos_token", "pad_token"):
        if recipe.get(key) is not None:
            if recipe[key] not in tokenizer.get_vocab():
                raise RecipeError(f"the tokenizer has no token `{recipe[key]}`", where=recipe.where(key))
            setattr(tokenizer, key, recipe[key])
    if tokenizer.eos_token is None:
        raise RecipeError("the tokenizer has no end-of-sequence token", where=where, hint="name one with `eos_token`")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own = ensure_chat_template(tokenizer, _recipe_template(recipe, tokenizer))
    if pads_apart:
        _pad_apart(recipe, tokenizer)
    _refuse_broken_template(recipe, tokenizer)
    return tokenizer, own


def _pad_apart(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad with a token that no text ends in.

    transformers reads a reward model's score at the rightmost token other than padding, so with pad = eos it would be
    read one token too early.
    """
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    if recipe.get("pad_token") is not None:
        raise RecipeError(
            f"`pad_token` is `{tokenizer.pad_token}`, which ends every text, so the score would be read before it",
            where=recipe.where("pad_token"),
            hint="remove it: a token that ends no text is chosen",
        )
    token = next(_never_last(tokenizer), None)
    if token is None:
        raise RecipeError(
            "the tokenizer has no token that could pad without being the one that ends a text",
            where=recipe.where("model_name_or_path"),
            hint="name one of its tokens that no answer ends in with `pad_token`",
        )
    tokenizer.pad_token = token


def _never_last(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Tokens that end no text, those made for padding first."""
    vocabulary = tokenizer.get_vocab()
    template = str(tokenizer.chat_template)
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = sorted({*added, *tokenizer.all_special_tokens} & vocabulary.keys(), key=vocabulary.__getitem__)
    unused = [token for token in special if token not in (tokenizer.eos_token, tokenizer.bos_token)]
    yield from (token for token in unused if "pad" in token.lower())
    yield from (token for token in unused if token not in template)
    # Bytes that UTF-8 does not know (RFC 3629), as byte-fallback and as byte-level vocabularies write them.
    yield from (token for token in ("<0xFF>", "<0xF5>", "\u00ff", "\u00f5") if _is_stray_byte(tokenizer, token))
    if tokenizer.bos_token and tokenizer.bos_token != tokenizer.eos_token:
        yield str(tokenizer.bos_token)


def _is_stray_byte(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether a token stands for a byte that is no character by itself, and not for the character it looks like."""
    index = tokenizer.get_vocab().get(token)
    return index is not None and "\ufffd" in tokenizer.decode([index])


def _refuse_broken_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that is not Jinja; one that refuses this conversation may still take the rows."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateSyntaxError as error:
        key = next((key for key in ("chat_template", "chat_template_path") if recipe.get(key)), "model_name_or_path")
        raise RecipeError(
            f"the chat template is no Jinja: line {error.lineno}: {error.message}", where=recipe.where(key)
        ) from None
    except (TemplateError, ValueError, TypeError, KeyError, IndexError):
        return


def _has_tokenizer(folder: Path) -> bool:
    return any(
        (folder / name).exists()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    )


def _recipe_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template that the recipe gives, as text."""
    if recipe.get("chat_template") is not None:
        return str(recipe.get("chat_template"))
    path = recipe.get("chat_template_path")
    if path is None:
        return None
    if Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    if str(path).endswith((".jinja", ".jinja2")):
        raise RecipeError(f"there is no chat template `{path}`", where=recipe.where("chat_template_path"))
    with explained_model(recipe, f"the tokenizer `{path}`", str(path)):
        other = AutoTokenizer.from_pretrained(path, trust_remote_code=recipe["trust_remote_code"])
    template = str(other.chat_template or "")
    lacking = [token for token in other.all_special_tokens if token in template and token not in tokenizer.get_vocab()]
    if not template or lacking:
        what = f"uses tokens that this model does not have: {', '.join(lacking)}" if lacking else "does not exist"
        raise RecipeError(f"the chat template of `{path}` {what}", where=recipe.where("chat_template_path"))
    return template

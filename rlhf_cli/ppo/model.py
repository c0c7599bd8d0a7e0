"""A policy and its value, and the other roles that share its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.kernels import ChunkedLogProbFunction

from rlhf_cli.errors import RecipeError

REFERENCE_ADAPTER = "ref"
"""Name of the frozen copy of an adapter that is trained on."""
_VOCABULARY_TILE = 32_768


@dataclass(frozen=True)
class Batch:
    """Prompts with their responses behind them, padded on the right, and where the response's tokens are foretold.

    Tokens of responses are laid out flat, one episode behind the other, so that nothing of them is padding.
    """

    input_ids: Tensor
    """Shape (episodes, length)."""
    attention_mask: Tensor
    """Shape (episodes, length)."""
    rows: Tensor
    """Which episode each token of a response belongs to, shape (tokens,)."""
    columns: Tensor
    """Where its hidden state stands: one place before the token, shape (tokens,)."""
    targets: Tensor
    """The tokens, shape (tokens,)."""


def make_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> Batch:  # fmt: skip
    """Lay episodes out for one forward pass; structure is known by length, never by a token's id."""
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    input_ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        input_ids[row, : lengths[row]] = torch.tensor([*prompt, *response])
        attention_mask[row, : lengths[row]] = 1
        rows += [row] * len(response)
        columns += range(len(prompt) - 1, lengths[row] - 1)
        targets += response
    flat = (torch.tensor(each, dtype=torch.long).to(device) for each in (rows, columns, targets))
    return Batch(input_ids.to(device), attention_mask.to(device), *flat)


@dataclass(frozen=True)
class Scored:
    """What the model says of the tokens of responses; each of shape (tokens,), in fp32."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


class PolicyWithValue(nn.Module):
    """A policy, and the value of the states it goes through.

    Args:
        policy: A causal language model, with an adapter or without.
        critic: The trunk that values are read from; None is the policy's own.
        temperature: The logits are divided by it.
    """

    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None  # Trainer asks when it has loaded a checkpoint

    def __init__(
        self, policy: PreTrainedModel | PeftModel, *, critic: PreTrainedModel | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        refuse_unusable_adapter(policy)
        self.policy = policy
        self.critic = critic
        self.temperature = temperature
        width = (critic or policy).config.get_text_config().hidden_size
        self.holds_trunk = False
        """Whether the value loss leaves the policy's trunk as it is."""
        # Zeros: no advantage is made up before a reward is seen (Ziegler et al. 2019, lm-human-preferences).
        self.value_head = nn.Linear(width, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def config(self) -> Any:
        """Of the policy."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """Of the policy."""
        return self.causal.generation_config

    @property
    def causal(self) -> PreTrainedModel:
        """The policy's language model, its adapter's layers in it."""
        return self.policy.get_base_model() if isinstance(self.policy, PeftModel) else self.policy

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.value_head.weight.device

    def activation_checkpointing_enable(self, **how: Any) -> None:
        """Keep less for the backward pass, and compute it again."""
        how["activation_checkpointing_kwargs"] = {
            "use_reentrant": False, **(how.get("activation_checkpointing_kwargs") or {}),
        }  # fmt: skip
        for model in (self.causal, self.critic):
            if model is not None:
                model.activation_checkpointing_enable(**how)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, entropy and value at every token of the responses, as `Batch` lays them out."""
        hidden = self._hidden(self.causal.base_model, input_ids, attention_mask, rows, columns)
        log_probs, entropy = token_log_probs(self.causal, hidden, targets, self.temperature)
        if self.critic is not None:
            hidden = self._hidden(self.critic, input_ids, attention_mask, rows, columns)
        elif self.holds_trunk:
            hidden = hidden.detach()
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.value_head(hidden.float()).squeeze(-1)
        return log_probs, entropy, values

    def score(self, batch: Batch) -> Scored:
        """The same as one value."""
        return Scored(*self(**vars(batch)))

    def reference_log_probs(self, batch: Batch, reference: PreTrainedModel | None) -> Tensor:
        """Log-probabilities under the reference, shape (tokens,).

        Args:
            batch: The episodes.
            reference: A model of its own, or None for the policy with its adapter off, or a frozen copy of it on.
        """
        with self.as_reference(reference) as model:
            causal = model.get_base_model() if isinstance(model, PeftModel) else model
            hidden = self._hidden(
                causal.base_model, batch.input_ids, batch.attention_mask, batch.rows, batch.columns
            )  # fmt: skip
            return token_log_probs(causal, hidden, batch.targets, self.temperature)[0]

    @contextmanager
    def as_reference(self, reference: PreTrainedModel | None) -> Iterator[PreTrainedModel | PeftModel]:
        """The reference, for as long as it is asked."""
        if reference is not None:
            yield reference
        elif REFERENCE_ADAPTER in self.policy.peft_config:
            with self.with_adapter(REFERENCE_ADAPTER):
                yield self.policy
        else:
            with self.with_adapter(None):
                yield self.policy

    @contextmanager
    def with_adapter(self, name: str | None) -> Iterator[None]:
        """Have another adapter on, or none."""
        with kept_in_place(self.policy):
            if name is None:
                with self.policy.disable_adapter():
                    yield
            else:
                self.policy.set_adapter(name)
                yield

    @staticmethod
    def _hidden(trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Hidden states that foretell the tokens of the responses, shape (tokens, width); no logits of prompts."""
        output = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden: Tensor = output.last_hidden_state[rows, columns]
        return hidden


def token_log_probs(
    causal: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability of each token and entropy where it was drawn, in tiles, so that no (tokens, vocabulary) is held.

    Args:
        causal: The language model whose head is read.
        hidden: Shape (tokens, width).
        targets: Shape (tokens,).
        temperature: The logits are divided by it.

    Returns:
        Each of shape (tokens,), in fp32.
    """
    head, text = causal.get_output_embeddings(), causal.config.get_text_config()
    log_probs, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, temperature, _VOCABULARY_TILE,
        getattr(text, "final_logit_softcapping", None), _logit_scale(text), ("entropy",),
    )  # fmt: skip
    return log_probs, entropy


def _logit_scale(text: Any) -> float:
    """What a model multiplies its logits by, under the names its kind has for it (as in trl/trainer/utils.py)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(text, name, None) is not None:
            return float(getattr(text, name))
    divisor = getattr(text, "logits_scaling", None)
    return 1.0 if divisor is None else float(divisor) if text.model_type == "hyperclovax" else 1 / float(divisor)


def refuse_unusable_adapter(policy: nn.Module) -> None:
    """Refuse adapters that PPO cannot have off, or whose head is not a plain matrix.

    Raises:
        RecipeError: saying what to change.
    """
    if not isinstance(policy, PeftModel):
        return
    if any(config.is_prompt_learning for config in policy.peft_config.values()):
        raise RecipeError("a prompt-learning adapter adds tokens, which PPO does not count", hint="use LoRA")
    head = policy.get_base_model().get_output_embeddings()
    if isinstance(head, (BaseTunerLayer, ModulesToSaveWrapper)):
        raise RecipeError(
            "the adapter is on the language model head, which PPO reads in tiles",
            hint="leave `lm_head` out of `lora_target_modules` and `lora_modules_to_save`",
        )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, also those that are numbers of a module, so that one policy has one ratio: 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name):
                setattr(module, name, 0.0)


def copy_adapter(policy: PeftModel, name: str) -> None:
    """A frozen copy of the active adapter under another name."""
    own = policy.active_adapter
    with kept_in_place(policy):
        policy.add_adapter(name, policy.peft_config[own])
        tensors = get_peft_model_state_dict(policy, adapter_name=own)
        set_peft_model_state_dict(policy, tensors, adapter_name=name)


@contextmanager
def kept_in_place(policy: PeftModel) -> Iterator[None]:
    """Put back the adapter that is on, and what requires gradients: PEFT changes both when it is asked for others."""
    own = policy.active_adapter
    trained = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        policy.set_adapter(own)
        for parameter in policy.parameters():
            parameter.requires_grad_(id(parameter) in trained)

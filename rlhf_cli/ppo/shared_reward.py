"""A reward model whose adapter and score sit on the policy's own base, so that the base is held once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.errors import RecipeError
from rlhf_cli.ppo.model import PolicyWithValue, disable_dropout, kept_in_place
from rlhf_cli.render import ensure_chat_template
from rlhf_cli.reward_model import RewardModel, member_folders, read_stamp, refuse_other

_HEAD = "score"
"""What transformers calls the head of a decoder that gives scores."""


def share_base(name: str, model: PolicyWithValue, *, compute: torch.dtype) -> RewardModel:
    """Put a reward model's adapters beside the policy's, and hold it against its stamp.

    Args:
        name: A run of `rlhf train-reward` on the policy's base.
        model: The policy, with an adapter.
        compute: The dtype that it computes in.

    Raises:
        RecipeError: when it is not what its stamp says, or does not fit on the policy.
    """
    stamp = read_stamp(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    ensure_chat_template(tokenizer)
    trunk = _Trunk(model, tokenizer)
    names = []
    for number, folder in enumerate(member_folders(Path(name)), 1):
        names.append(f"reward-{len(model.policy.peft_config)}-{number}")
        trunk.add(names[-1], folder)
    disable_dropout(model)  # what was put on comes with its own, and is asked before training begins
    model.eval()
    loaded = RewardModel(name, trunk, tokenizer, tuple(names), stamp, compute, model.device.type)
    if stamp:
        refuse_other(loaded)
    return loaded


class _Trunk:
    """The policy's trunk with a reward model's adapter on and its score behind, called as that model would be."""

    def __init__(self, model: PolicyWithValue, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._heads: dict[str, nn.Linear] = {}
        self._adapter = ""
        self.config = copy.deepcopy(model.config)
        self.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def add(self, name: str, folder: Path) -> None:
        """Put an adapter in, and its score aside."""
        policy = self._model.policy
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        heads = {key: tensor for key, tensor in tensors.items() if f".{_HEAD}." in key}
        if not heads:
            raise RecipeError(f"the adapter in `{folder}` has no `{_HEAD}`, so it gives no scores")
        config = PeftConfig.from_pretrained(folder)
        config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", True
        rest = {key: tensor for key, tensor in tensors.items() if key not in heads}
        with kept_in_place(policy):
            policy.add_adapter(name, config)
            unplaced = set_peft_model_state_dict(policy, rest, adapter_name=name).unexpected_keys
        if unplaced:
            raise RecipeError(f"the adapter in `{folder}` does not fit on the policy: {unplaced[0]} has no place")
        self._heads[name] = self._make_head(heads)

    def _make_head(self, tensors: Mapping[str, Tensor]) -> nn.Linear:
        weight = next(tensor for key, tensor in tensors.items() if key.endswith("weight"))
        bias = next((tensor for key, tensor in tensors.items() if key.endswith("bias")), None)
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        head.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
        return head.float().requires_grad_(False).to(self._model.device)

    def set_adapter(self, name: str) -> None:
        """Which member is asked next."""
        self._adapter = name

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Scores where each text ends, as `logits` of shape (texts, 1)."""
        policy = self._model.policy
        assert isinstance(policy, PeftModel)
        with self._model.with_adapter(self._adapter):
            output = self._model.causal.base_model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            )  # fmt: skip
        last = attention_mask.sum(dim=1) - 1
        hidden = output.last_hidden_state[torch.arange(len(last), device=last.device), last]
        head = self._heads[self._adapter].to(hidden.device)
        return SimpleNamespace(logits=head(hidden))

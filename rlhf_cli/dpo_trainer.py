"""TRL's DPOTrainer on rows that are tokens, with one adapter in its folder and its reference kept for a resume."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import TrainingArguments

from rlhf_cli.data import Encodings, hash_tokens
from rlhf_cli.guards import ChosenGuard
from rlhf_cli.machine import is_first_process, wait_for_all
from rlhf_cli.models import Loaded
from rlhf_cli.run_dir import RunDir
from rlhf_cli.writing import text_hash

_REFERENCE = ["ref_chosen_logps", "ref_rejected_logps"]
_TRAINED = "default"
"""PEFT's name for an adapter that was given none."""


class DPOTrainer(trl.DPOTrainer):
    """TRL's DPOTrainer, whose reference is the model as it was loaded.

    Of full weights that is a copy; of a new adapter, the base with the adapter off; of a continued adapter, a frozen
    copy of the adapter, which TRL makes under the name `ref` and which is not saved.
    """

    def __init__(self, config: TrainingArguments, loaded: Loaded, data: Encodings) -> None:
        model = loaded.model
        adapts = isinstance(model, PeftModel)
        super().__init__(
            model=model,
            ref_model=None if adapts or config.precompute_ref_log_probs else copy.deepcopy(model),
            args=config,
            train_dataset=data.train,
            eval_dataset=data.test,
            processing_class=loaded.tokenizer,
        )
        if adapts and loaded.source.adapter is None:
            model.delete_adapter("ref")
        if adapts:
            model.save_pretrained = partial(model.save_pretrained, selected_adapters=[_TRAINED])
        self.add_callback(ChosenGuard(RunDir(Path(config.output_dir)), config.beta))

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows as they are: they come as tokens."""
        return dataset

    def _rows_name(self, dataset: Dataset) -> str:
        """A hash of the rows, and of what else the log-probabilities depend on."""
        args = self.args
        how = [args.max_length, args.truncation_mode, args.ld_alpha, args.bf16, args.fp16]
        return text_hash(f"{hash_tokens(dataset)} {how}")

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The log-probabilities under the reference, as an earlier start of the same run left them, or computed."""
        folder = RunDir(Path(self.args.output_dir)).reference_folder(
            self._precompute_model_hash, self._rows_name(dataset), name
        )
        wait_for_all()  # no process may find what another is still to write
        if folder.is_dir():
            return concatenate_datasets([dataset, Dataset.load_from_disk(str(folder))], axis=1)
        computed: Dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        if is_first_process():
            draft = folder.with_suffix(".new")
            computed.select_columns(_REFERENCE).save_to_disk(str(draft))
            draft.rename(folder)
        wait_for_all()
        return computed

"""What run.json says of a run: what it is made of, what it runs on, and how it ended."""

from __future__ import annotations

import hashlib
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from rlhf_cli.data import Encoded
from rlhf_cli.errors import DataError, GuardStop, Interrupted, RecipeError, UserError
from rlhf_cli.machine import describe_environment, is_first_process
from rlhf_cli.models import fingerprint_model
from rlhf_cli.prepare import Prepared
from rlhf_cli.run_dir import RunDir, text_hash
from rlhf_cli.terminal import say


@contextmanager
def recorded(prepared: Prepared) -> Iterator[None]:
    """Keep run.json while a run lasts; the first process does it for all."""
    if not is_first_process():
        yield
        return
    run, started = prepared.run, time.time()
    run.crash_file.unlink(missing_ok=True)
    run.update_run(**_facts(prepared), started=started)
    ended: dict[str, Any] = {"status": "failed", "exit_code": 1}
    try:
        yield
        ended = {"status": "done", "exit_code": 0}
    except UserError as error:
        stopped = isinstance(error, (Interrupted, GuardStop))
        ended = {"status": "stopped" if stopped else "failed", "exit_code": error.exit_code, "reason": str(error)}
        raise
    finally:
        try:
            if ended["exit_code"] == 1:
                run.write_crash(traceback.format_exc())
            run.update_run(**ended, ended=time.time(), elapsed_s=round(time.time() - started, 3))
        except OSError as error:
            # On a full disk the record must not hide what filled it.
            say(f"{run.run_file} could not be written: {error.strerror}")


def _facts(prepared: Prepared) -> dict[str, Any]:
    material = prepared.material
    return {
        "status": "running",
        "method": prepared.plan.method,
        "argv": sys.argv,
        "environment": describe_environment(),
        "machine": asdict(prepared.plan.machine),
        "seed": prepared.recipe["seed"],
        "model": asdict(material.source),
        "chat_template": {
            "own": material.own_template,
            "sha256": text_hash(str(material.tokenizer.chat_template)),
        },
        "data": material.rows.sources,
        "fingerprints": fingerprints(prepared),
        "plan": prepared.plan.as_json(),
        "exit_code": None,
        "reason": None,
        "results": None,
    }


def fingerprints(prepared: Prepared) -> dict[str, str]:
    """What must be the same for a run to go on: the weights it starts from, and the tokens it trains on."""
    material = prepared.material
    return {
        "model": fingerprint_model(prepared.recipe, material.source),
        "tokens": _hash_tokens(material.train),
        "test tokens": _hash_tokens(material.test) if material.test else "",
    }


def _hash_tokens(encoded: Encoded) -> str:
    digest = hashlib.sha256()
    for batch in encoded.dataset.with_format("arrow").iter(1000):
        for column in ("input_ids", "labels"):
            lists = batch.column(column).combine_chunks()
            digest.update(np.diff(lists.offsets.to_numpy()).astype(np.int64).tobytes())
            digest.update(lists.flatten().to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()


def refuse_other_material(run: RunDir, prepared: Prepared) -> None:
    """Refuse to go on with other weights or other data than the run began with.

    Raises:
        DataError: when the rows, or the tokens that template and tokenizer make of them, are others.
        RecipeError: when the model the run starts from is another.
    """
    before, now = run.read_run(), fingerprints(prepared)
    hint = "put it back, or train anew with another output_dir"
    if before.get("data") != prepared.material.rows.sources:
        raise DataError("the data has changed since the run began", where=str(run.path), hint=hint)
    kept = before.get("fingerprints", {})
    if kept.get("tokens") != now["tokens"] or kept.get("test tokens") != now["test tokens"]:
        what = "the rows give other tokens than when the run began: its chat template or tokenizer has changed"
        raise DataError(what, where=str(run.path), hint=hint)
    if kept.get("model") != now["model"]:
        name = prepared.material.source.name
        raise RecipeError(f"the model `{name}` has changed since the run began", where=str(run.path), hint=hint)

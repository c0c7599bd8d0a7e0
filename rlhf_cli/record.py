"""What run.json says of a run: what it is made of, what it runs on, and how it ended."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rlhf_cli.errors import GateError, GuardStop, Interrupted, UserError
from rlhf_cli.lineage import write_trained_prompts
from rlhf_cli.machine import describe_environment, is_first_process
from rlhf_cli.prepare import Prepared
from rlhf_cli.resume import fingerprints
from rlhf_cli.terminal import say
from rlhf_cli.writing import text_hash


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
        rows = prepared.material.rows.train.select(prepared.material.train.kept)
        write_trained_prompts(run, (example["row"] for example in rows))
        yield
        ended = {"status": "done", "exit_code": 0}
    except GateError as error:
        ended = {"status": "done", "exit_code": error.exit_code, "reason": str(error)}
        raise
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
        "cwd": os.getcwd(),
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
        "results": prepared.run.read_run().get("results"),
    }

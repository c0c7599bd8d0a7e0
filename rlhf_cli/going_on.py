"""The command that goes on with what this process has begun."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from rlhf_cli.redaction import hide

GOES_ON = "RLHF_GOES_ON"
"""The variable that tells a launched process how its launcher goes on."""
_BY_THEMSELVES = ("run", "demo")
"""Commands that go on when they are called again."""


def command_to_go_on(secrets: Iterable[str] = ()) -> str:
    """What to type after a run was stopped, without what must not be shown."""
    if GOES_ON in os.environ:
        return hide(os.environ[GOES_ON], secrets)
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
    if arguments[:1] and arguments[0] in _BY_THEMSELVES:
        return hide(f"rlhf {shlex.join(_without_redo(arguments))}", secrets)
    return hide(f"rlhf {shlex.join([*arguments, '--resume'])}", secrets)


def _without_redo(arguments: Sequence[str]) -> Iterator[str]:
    """What was to be run again has been begun: asked for once more, it would begin once more."""
    for before, argument in pairwise(["", *arguments]):
        if "--redo" not in (before, argument.split("=")[0]):
            yield argument

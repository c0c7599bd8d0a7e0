"""What a user can get wrong, and the exit code of each.

UserError
├── RecipeError        2   the recipe or the command line
├── GateError          3   a number that was asked for is not reached
├── DataError          4   the rows
├── EnvironmentFault   5   the machine, the disk, the hub, a missing part
├── GuardStop          6   training went wrong, and a guard stopped it
└── Interrupted  130 143   a signal, after a checkpoint was written

Everything else is our own bug: it propagates, and the process ends with 1.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where a file cannot grow: no space, no quota, no larger file."""


@dataclass(frozen=True)
class Problem:
    """One fault: what is wrong, where, and how to mend it."""

    what: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    excerpt: str | None = None
    """The source line, to be shown with a marker under `column`."""
    width: int = 1
    """Characters the marker spans."""
    fix: str | None = None
    """Said behind the marker: the nearest right key or value."""
    severity: str = "error"

    @property
    def where(self) -> str:
        """`file:line:column`, as far as known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)

    def as_text(self) -> str:
        """The problem as it is shown to a person, over one to three lines."""
        head = ": ".join(part for part in (self.severity, self.where, self.what) if part)
        fix = self.fix or ""
        if self.excerpt is None or self.line is None or self.column is None:
            return f"{head}\n  {fix}" if fix else head
        gutter = f"  {self.line} | "
        marker = " " * (len(gutter) + self.column - 1) + "^" * max(1, self.width)
        return f"{head}\n{gutter}{self.excerpt}\n{marker} {fix}".rstrip()

    def as_github(self) -> str:
        """The problem as a GitHub Actions workflow command, which annotates the line in a pull request."""
        message = self.what + (f" ({self.fix})" if self.fix else "")
        for character, escaped in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
            message = message.replace(character, escaped)
        place = {"file": self.file, "line": self.line, "col": self.column}
        properties = ",".join(f"{name}={value}" for name, value in place.items() if value is not None)
        return f"::{self.severity} {properties}::{message}"

    def as_json(self) -> dict[str, object]:
        """The problem as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "width"}


class UserError(Exception):
    """Something the user can mend. Raised anywhere, shown in one place."""

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(what)
        self.problems = list(problems) or [Problem(what=what, file=where)]
        self.hint = hint

    def as_text(self) -> str:
        """The whole message: every problem, then the hint."""
        lines = [problem.as_text() for problem in self.problems]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class RecipeError(UserError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class GateError(UserError):
    """A model is there, but not as good as its recipe asks."""

    exit_code = 3


class DataError(UserError):
    """Rows are missing, unreadable or unusable."""

    exit_code = 4


class EnvironmentFault(UserError):
    """The machine cannot do what the recipe asks: a part, a device, memory, disk or the hub is missing."""

    exit_code = 5


class GuardStop(UserError):
    """Training went wrong, and going on would only have cost more."""

    exit_code = 6


class StageFailed(UserError):
    """A stage of a pipeline failed in processes of its own, and has said why."""

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


class Interrupted(UserError):
    """A signal ended the run; what was trained so far is in a checkpoint if there was time to write one."""

    def __init__(self, signum: int, what: str, *, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.signum = signum
        self.problems = [Problem(what=what, severity=signal.Signals(signum).name)]

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """128 + the signal's number, as shells report it."""
        return 128 + self.signum


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

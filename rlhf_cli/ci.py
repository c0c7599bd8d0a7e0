"""What a CI system reads of an evaluation: JUnit XML, and GitHub's annotations and summary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rlhf_cli.errors import Problem, RecipeError
from rlhf_cli.gates import GateOutcome
from rlhf_cli.terminal import say


def write_junit(file: Path, suite: str, gates: Sequence[GateOutcome], elapsed_s: float) -> None:
    """Write gates as JUnit XML, a test case each; one that says that it ran, where there are none.

    Args:
        file: Where to.
        suite: What the gates are of.
        gates: Met or not.
        elapsed_s: How long the evaluation took.

    Raises:
        RecipeError: when the file cannot be written.
    """
    from junitparser import Failure, JUnitXml, TestCase, TestSuite

    cases = []
    for gate in gates:
        whose = " ".join(part for part in (gate.metric, gate.bound, gate.model, gate.judge) if part)
        case = TestCase(_printable(whose), classname=_printable(suite))
        if not gate.met:
            case.result = [Failure(_printable(gate.text))]
        cases.append(case)
    found = TestSuite(_printable(suite))
    found.add_testcases(cases or [TestCase("evaluated", classname=_printable(suite))])
    found.time = elapsed_s
    whole = JUnitXml()
    whole.add_testsuite(found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole.write(str(file), pretty=True)
    except OSError as error:
        raise RecipeError(f"the JUnit file cannot be written: {error.strerror}", where=str(file)) from None


def _printable(text: str) -> str:
    """A text as XML can hold it."""
    return "".join(character if character >= " " and character.isprintable() else "\ufffd" for character in text)


def annotate(problems: Sequence[Problem], text: str) -> None:
    """Where GitHub runs this, annotate the recipe with the gates that are not met, and add to the job's summary."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for problem in problems:
        say(problem.as_github())
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(f"```\n{text.replace('```', '')}\n```\n")

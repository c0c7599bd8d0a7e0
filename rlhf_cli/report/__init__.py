"""A finished run or evaluation as one page: `report.html`, offline, in which nothing that a model wrote can run."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.errors import EnvironmentFault
from rlhf_cli.terminal import say, say_error


def write_report(folder: Path) -> Path | None:
    """Write `report.html` into the folder of a run or of an evaluation.

    Args:
        folder: Where `rlhf/run.json` or `eval.json` is.

    Returns:
        The page; None where the folder holds neither.

    Raises:
        EnvironmentFault: when no pictures can be drawn here.
    """
    from rlhf_cli.run_dir import EVALUATION_FILE, REPORT_FILE, RunDir
    from rlhf_cli.writing import write_text

    is_evaluation = (folder / EVALUATION_FILE).exists()
    if not is_evaluation and not RunDir(folder).run_file.exists():
        return None
    from rlhf_cli.report.draw import Pen

    with Pen() as pen:
        # These import altair, which takes a third of a second.
        from rlhf_cli.report.evaluation_page import evaluation_page
        from rlhf_cli.report.page import render
        from rlhf_cli.report.run_page import run_page

        page = evaluation_page(folder) if is_evaluation else run_page(RunDir(folder))
        text = render(page, pen)
    path = folder / REPORT_FILE
    write_text(path, text)
    return path


def tell_report(folder: Path) -> None:
    """Write the report and say where it is; where that fails, say so: what it tells of is done all the same."""
    try:
        path = write_report(folder)
    except (EnvironmentFault, OSError) as error:
        say_error(f"warning: no report is written: {error}")
        return
    if path is not None:
        say(f"report: {path}")

"""The commands of `rlhf runs`: arguments in, what is known of runs out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rlhf_cli.terminal import say, width


class ListUnlessTold(TyperGroup):
    """A group of commands whose `list` is meant where none of them is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` before arguments that begin with no command."""
        told = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if told else ["list", *args])


runs_app = typer.Typer(
    name="runs",
    cls=ListUnlessTold,
    help="The runs below a folder: how they ended, what they come from, what differs.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, on stdout.")]
_RUN = "A run folder, or a checkpoint in one."


@runs_app.command("list")
def show_list(
    folder: Annotated[Path, typer.Argument(help="Where to look.", metavar="[FOLDER]")] = Path(),
    as_json: AsJson = False,
) -> None:
    """All runs and evaluations in a folder and below, newest first; `rlhf runs` alone does the same."""
    from rlhf_cli.runs import draw_list, list_runs

    entries = list_runs(folder)
    if as_json:
        typer.echo(json.dumps([entry.as_json() for entry in entries], ensure_ascii=False))
    elif entries:
        typer.echo(draw_list(entries, _columns()))
    else:
        say(f"no runs in {folder.absolute()} and below")


@runs_app.command("show")
def show_run(
    run: Annotated[Path, typer.Argument(help=_RUN, metavar="RUN")],
    as_json: AsJson = False,
) -> None:
    """One run in full: what it comes from, its data, what came out, and how to do it again."""
    from rlhf_cli.run_details import describe_run
    from rlhf_cli.runs import choose_run

    details = describe_run(choose_run(run))
    typer.echo(json.dumps(details.as_json(), ensure_ascii=False) if as_json else details.as_text(_columns()))


@runs_app.command("diff")
def show_differences(
    a: Annotated[Path, typer.Argument(help=_RUN, metavar="A")],
    b: Annotated[Path, typer.Argument(help=_RUN, metavar="B")],
    as_json: AsJson = False,
) -> None:
    """What two runs differ in: settings, versions, data, and what came out of each."""
    from rlhf_cli.differences import compare_runs
    from rlhf_cli.runs import choose_run

    found = compare_runs(choose_run(a), choose_run(b))
    typer.echo(json.dumps(found.as_json(), ensure_ascii=False, default=str) if as_json else found.as_text())


def _columns() -> int | None:
    """What a line may take; where stdout is read by a program, as much as it likes."""
    return width() if sys.stdout.isatty() else None

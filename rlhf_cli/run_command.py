"""The command `rlhf run`: arguments in, the pipeline run, its outcome shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_cli.arguments import split_stage_arguments
from rlhf_cli.errors import Problem, RecipeError, UserError
from rlhf_cli.freshness import Need
from rlhf_cli.pipeline import Seen, Wishes, check_commands, plan_pipeline, run_pipeline
from rlhf_cli.pipeline_file import Pipeline, read_pipeline
from rlhf_cli.processes import plan_launch
from rlhf_cli.run_dir import RunDir
from rlhf_cli.terminal import put, say_error, width

if TYPE_CHECKING:
    from rlhf_cli.plan import Plan


def run(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="The pipeline file.", metavar="PIPELINE")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, with plans, and stop.")] = False,
    redo: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run it again; may be given again.")] = None,
    keep: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Take its folder as it is.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Let each stage say all it does alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the outcome to stdout as JSON.")] = False,
    num_processes: Annotated[int | None, typer.Option(help="Run each stage as so many processes, one a GPU.")] = None,
    accelerate_config: Annotated[
        str | None, typer.Option(help="multi_gpu, zero2, zero3, fsdp2, or a file of `accelerate config`.")
    ] = None,
) -> None:
    """Run the stages of a pipeline; what has not changed is not run again.

    Any key of a stage can be given here too and wins over the file: `--ppo.kl_coef 0.1` or `ppo.kl_coef=0.1`.
    """
    path, overrides = split_stage_arguments([pipeline, *context.args])
    checked = read_pipeline(path, overrides)
    for warning in (warning for stage in checked.stages for warning in stage.recipe.warnings):
        say_error(warning.as_text())
    check_commands(checked)
    wishes = Wishes(
        redo=_names(checked, redo, "--redo"),
        keep=_names(checked, keep, "--keep"),
        launch=plan_launch(num_processes, accelerate_config),
        verbose=verbose,
        tell=None if as_json else put,
    )
    if dry_run:
        seen, plans = plan_pipeline(checked, wishes)
        put(json.dumps(_as_json(seen, plans), default=str) if as_json else _as_text(seen, plans))
        return
    outcomes: list[dict[str, Any]] = []
    problems: list[Problem] = []
    try:
        for outcome in run_pipeline(checked, wishes):
            outcomes.append(outcome.as_json())
    except BaseException as error:  # who reads the JSON must not take a crash, or a signal, for success
        problems = error.problems if isinstance(error, UserError) else [Problem(f"{type(error).__name__}: {error}")]
        raise
    finally:
        if as_json:
            told = [problem.as_json() for problem in problems]
            put(json.dumps({"pipeline": str(path), "stages": outcomes, "ok": not told, "problems": told}))


def _names(pipeline: Pipeline, given: list[str] | None, option: str) -> frozenset[str]:
    known = [stage.name for stage in pipeline.stages]
    for name in given or []:
        if name not in known:
            raise RecipeError(f"{option} {name}: there is no such stage", hint=f"one of {', '.join(known)}")
    return frozenset(given or [])


def _as_text(seen: list[Seen], plans: dict[str, Plan]) -> str:
    """What would be done, a stage after the other, with plans indented below."""
    names = max(len(each.stage.name) for each in seen)
    room = width()
    blocks = []
    for number, each in enumerate(seen, 1):
        stage = each.stage
        reads = f", reads {', '.join(stage.needs)}" if stage.needs and each.judgement.need is not Need.WAIT else ""
        head = f"[{number}/{len(seen)}] {stage.name:<{names}}  {stage.recipe.method} → {stage.folder}{reads}"
        does = {Need.NOTHING: "", Need.RUN: "to run: ", Need.GO_ON: "to go on: ", Need.WAIT: "waits: "}
        lines = [head, f"  {does.get(each.judgement.need, 'unclear: ')}{each.judgement.why}"]
        if stage.name in plans:
            text = plans[stage.name].as_text(room - 4 if room else None)
            lines += [f"    {line}" for line in text.split("\n")]
        elif memory := _planned_memory(each):
            lines.append(f"    memory  {memory}")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def _planned_memory(seen: Seen) -> str:
    """Of a run that is there, what its plan said."""
    peak = ((RunDir(seen.stage.folder).read_run().get("plan") or {}).get("memory") or {}).get("peak_gib")
    return f"about {peak:.2f} GiB" if isinstance(peak, (int, float)) else ""


def _as_json(seen: list[Seen], plans: dict[str, Plan]) -> dict[str, Any]:
    return {
        "stages": [
            {
                "stage": each.stage.name,
                "method": each.stage.recipe.method,
                "output_dir": str(each.stage.folder),
                "reads": each.stage.needs,
                "need": each.judgement.need.value,
                "why": each.judgement.why,
                "plan": plans[each.stage.name].as_json() if each.stage.name in plans else None,
            }
            for each in seen
        ]
    }

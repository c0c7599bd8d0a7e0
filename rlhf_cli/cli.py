"""Commands: arguments in, work called, outcome shown."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli import __version__
from rlhf_cli.arguments import split_arguments, without_launch_options
from rlhf_cli.check import check_recipe
from rlhf_cli.ci import annotate, write_junit
from rlhf_cli.demo_command import demo
from rlhf_cli.errors import Problem, RecipeError, UserError
from rlhf_cli.eval_recipe import EVALUATION
from rlhf_cli.gates import gate_error
from rlhf_cli.launch import end_with_launcher, launch
from rlhf_cli.methods import METHODS
from rlhf_cli.methods.base import Method
from rlhf_cli.processes import adopt_slurm, plan_launch, take_one_gpu
from rlhf_cli.recipe import apply_environment, read_recipe
from rlhf_cli.run_command import run
from rlhf_cli.run_dir import RunDir, output_dir_of, refuse_unusable
from rlhf_cli.runs_app import runs_app
from rlhf_cli.schema import load_schema, method_names
from rlhf_cli.terminal import printable, say, say_error
from rlhf_cli.writing import finite

app = typer.Typer(
    name="rlhf",
    help="RLHF you can trust, from one recipe file, on one GPU or many.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FORWARDING = {
    "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h", "--help"],
}  # fmt: skip


def main() -> None:
    """Run the command line; every error a user can mend ends here."""
    # On a CPU bitsandbytes warns, at import, of an optional kernel that it then does without.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    end_with_launcher()
    adopt_slurm()
    try:
        app(prog_name="rlhf")
    except UserError as error:
        say_error(error.as_text(), every_process=True)
        if os.environ.get("RLHF_DEBUG"):
            traceback.print_exc()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)


def _complete_recipe(incomplete: str) -> list[str]:
    """Recipe files and folders that start like what was typed."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() or path.suffix in (".yaml", ".yml")]
    names = sorted(f"{path}/" if path.is_dir() else str(path) for path in found)
    return [name for name in names if name.startswith(incomplete)]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlhf-cli {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


RecipeFile = Annotated[str, typer.Argument(help="The recipe file.", metavar="RECIPE", autocompletion=_complete_recipe)]


# --- training ---------------------------------------------------------------------------------------------------


def _add_training_command(method: Method) -> None:
    def command(
        context: typer.Context,
        recipe: RecipeFile,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Move the run that is there aside.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, and stop.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Write the outcome to stdout as JSON.")] = False,
        num_processes: Annotated[int | None, typer.Option(help="Train as so many processes, one a GPU.")] = None,
        accelerate_config: Annotated[
            str | None, typer.Option(help="multi_gpu, zero2, zero3, fsdp2, or a file of `accelerate config`.")
        ] = None,
    ) -> None:
        if resume and overwrite:
            raise RecipeError("--resume and --overwrite exclude each other")
        path, overrides = split_arguments([recipe, *context.args], method.command)
        checked = read_recipe(path, method=method.command, overrides=overrides)
        _show_warnings(checked.warnings)
        apply_environment(checked)
        planned = plan_launch(num_processes, accelerate_config)
        if planned and not dry_run:
            refuse_unusable(RunDir(output_dir_of(checked)), checked, resume=resume, overwrite=overwrite)
            ended = launch([sys.executable, "-m", "rlhf_cli", *without_launch_options(sys.argv[1:])], planned)
            raise typer.Exit(ended.code)
        take_one_gpu()
        say(f"{method.command} {path}: {len(checked.values)} keys, all good; loading torch, transformers and TRL")
        from rlhf_cli.prepare import prepare
        from rlhf_cli.train import train

        if dry_run:
            refuse_unusable(RunDir(output_dir_of(checked)), checked, resume=resume, overwrite=overwrite)
            plan = prepare(checked, method, planned.variables if planned else None).plan
            typer.echo(json.dumps(plan.as_json(), default=str) if as_json else plan.as_text())
            if not plan.fits:
                say_error(plan.warning())
            return
        run = train(checked, method, resume=resume, overwrite=overwrite)
        if as_json:
            typer.echo(json.dumps(run.read_run()))

    command.__doc__ = (
        f"{method.summary}.\n\nAny key of the recipe can be given here too and wins over the file: "
        "`--learning_rate 1e-5`, `--learning-rate 1e-5` or `learning_rate=1e-5`."
    )
    app.command(method.command, context_settings=_FORWARDING)(command)


def _show_warnings(warnings: Sequence[Problem]) -> None:
    for warning in warnings:
        say_error(warning.as_text())


for _method in METHODS:
    _add_training_command(_method)


# --- judging ------------------------------------------------------------------------------------------------------


@app.command(EVALUATION.command, context_settings=_FORWARDING)
def evaluate(
    context: typer.Context,
    recipe: RecipeFile,
    as_json: Annotated[bool, typer.Option("--json", help="Write the outcome to stdout as JSON.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the gates here, as JUnit XML.")] = None,
) -> None:
    """Compare policies on held-out prompts, or judge a reward model; gates set the exit code.

    Any key of the recipe can be given here too and wins over the file.
    """
    started = time.monotonic()
    path, overrides = split_arguments([recipe, *context.args], EVALUATION.command)
    checked = read_recipe(path, method=EVALUATION.command, overrides=overrides)
    _show_warnings(checked.warnings)
    EVALUATION.check(checked)
    apply_environment(checked)
    say(f"{EVALUATION.command} {path}: {len(checked.values)} keys, all good; loading torch and transformers")
    from rlhf_cli.evaluate import evaluate as judge

    found = judge(checked)
    error = gate_error(found.failed_gates, where=checked.where("gates")) if found.failed_gates else None
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(finite(found.outcome), default=str) if as_json else found.text)
        if junit is not None:
            write_junit(junit, str(path), found.gates, time.monotonic() - started)
        annotate(error.problems if error else [], found.text)
    if error:
        raise error


app.command(context_settings=_FORWARDING)(run)
app.command()(demo)


@app.command()
def score(
    reward_model: Annotated[str, typer.Argument(help="A run folder, a model folder or a Hub id.", metavar="RM")],
    file: Annotated[str, typer.Argument(help="Rows with prompt and response, or chosen and rejected; - is stdin.")],
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Rows without a score are no error.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
    ] = False,
) -> None:
    """Rewards for the prompts and responses of a file, one JSON object a line."""
    if out is not None and out.exists():
        raise RecipeError("the file is there already", where=str(out), hint="name another with `--out`")
    say(f"loading {reward_model}")
    from rlhf_cli.scoring import score_rows

    score_rows(reward_model, file, out, skip_bad_rows=skip_bad_rows, trust_remote_code=trust_remote_code)


# --- recipes ----------------------------------------------------------------------------------------------------


@app.command()
def check(
    recipes: Annotated[
        list[str], typer.Argument(help="Recipe files.", metavar="FILE…", autocompletion=_complete_recipe)
    ],
    method: Annotated[str | None, typer.Option(help="The method, where a recipe does not state it.")] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Read every row too: duplicates, leaks, lengths; needs no model.")
    ] = False,
    data: Annotated[
        bool, typer.Option("--data", help="The same, and their tokens, with one row as the model sees it.")
    ] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Plan the run, and say whether it fits into memory.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="The same, and train two steps to hold the estimate against.")
    ] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Show every value and the line it comes from.")] = False,
    form: Annotated[str, typer.Option("--format", help="human, json or github.")] = "human",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Check recipes, without a GPU and without loading a model."""
    form = "json" if as_json else form
    if form not in ("human", "json", "github"):
        raise RecipeError(f"--format cannot be {form}", hint="one of human, json, github")
    if method is not None and method not in method_names():
        raise RecipeError(f"unknown method `{method}`", hint=f"one of {', '.join(method_names())}")
    asked = {"rows": rows or data, "tokens": data, "fit": fit or probe, "probe": probe}
    wanted = frozenset(name for name, is_wanted in asked.items() if is_wanted)
    outcomes = [check_recipe(name, method, wanted, form=form, resolved=resolved) for name in recipes]
    worst = max(code for _, code in outcomes)
    if form == "json":
        typer.echo(json.dumps({"ok": worst == 0, "recipes": [outcome for outcome, _ in outcomes]}, ensure_ascii=False))
    raise typer.Exit(worst)


@app.command()
def schema(
    method: Annotated[str, typer.Argument(help="The method.", autocompletion=method_names)],
    search: Annotated[str | None, typer.Option(help="Only keys whose name or help has this word.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON Schema, for editors.")] = False,
) -> None:
    """The keys a recipe may have."""
    if method not in method_names():
        raise RecipeError(f"unknown method `{method}`", hint=f"one of {', '.join(method_names())}")
    whole = load_schema(method)
    if as_json:
        typer.echo(json.dumps(whole, indent=1, ensure_ascii=False))
        return
    word = (search or "").lower()
    found = {
        key: entry
        for key, entry in whole["properties"].items()
        if word in key or word in entry.get("description", "").lower()
    }
    # A word in a name says more than a word in a help text.
    for key in sorted(found, key=lambda key: (word not in key, key)):
        typer.echo(_describe_key(key, found[key]))
    if not found:
        raise RecipeError(f"no key of {method} has `{search}` in its name or help")


def _describe_key(key: str, entry: dict[str, Any]) -> str:
    import textwrap

    kind = entry.get("type", "any")
    values = entry.get("enum") or ([kind] if isinstance(kind, str) else kind)
    head = f"{key}: {' | '.join(str(value) for value in values)}"
    if "default" in entry:
        head += f"  (default {json.dumps(entry['default'])})"
    body = textwrap.fill(entry.get("description", ""), width=96, initial_indent="    ", subsequent_indent="    ")
    return f"{head}\n{body}"


@app.command()
def init(
    method: Annotated[str | None, typer.Argument(help="The method.", autocompletion=method_names)] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; with --from, the folder.")] = None,
    model: Annotated[str, typer.Option(help="A Hub id or a model folder.")] = "Qwen/Qwen3-0.6B",
    data: Annotated[str | None, typer.Option(help="A data file, a folder or a Hub id.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="demo: a whole project, as the demo is laid out.")
    ] = None,
) -> None:
    """Write a first recipe, or with `--from demo` a first project."""
    if source is not None:
        _init_project(source, method, out or Path(), model)
        return
    wanted = next((entry for entry in (*METHODS, EVALUATION) if entry.command == method), None)
    if wanted is None:
        what = f"unknown method `{method}`" if method else "no method given"
        raise RecipeError(what, hint=f"one of {', '.join(method_names())}")
    path = out or Path(f"{method}.yaml")
    if path.exists():
        raise RecipeError("the file is there already", where=str(path), hint="name another with `--out`")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        wanted.starter.format(path=path, model=model, data=data or wanted.starter_data, output=f"runs/{path.stem}"),
        encoding="utf-8",
    )
    say(f"wrote {path}")
    say_error(f"hint: rlhf check {path} --data, then rlhf {method} {path}")


def _init_project(source: str, method: str | None, folder: Path, model: str) -> None:
    if source != "demo" or method is not None:
        raise RecipeError("a project is begun with `--from demo` alone", hint="rlhf init --from demo --out FOLDER")
    from rlhf_cli.demo.start import start_project

    start_project(folder, model)
    say(f"wrote a pipeline, its recipes, and rows to put your own in the place of, into {folder}/")
    say_error(f"hint: rlhf run {folder / 'pipeline.yaml'} --dry-run")


app.add_typer(runs_app)


# --- the rest -----------------------------------------------------------------------------------------------------


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON, on stdout.")] = False) -> None:
    """What this machine can do: devices, dtypes, optional parts, versions."""
    say("loading torch")
    from rlhf_cli.machine import examine

    report = examine()
    typer.echo(json.dumps(report) if as_json else "\n".join(f"{name:<16} {value}" for name, value in report.items()))


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="A run folder, a model folder or a Hub id.", metavar="RUN")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given again.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts: one a line, or rows with a prompt.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="The model it was trained from, beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Answers from a run, with the model it started from beside it."""
    if not prompt and prompts is None:
        raise RecipeError("nothing to answer", hint="give `--prompt TEXT` or `--prompts FILE`")
    say(f"loading {run}")
    from rlhf_cli.answers import Asking
    from rlhf_cli.generate import answer_prompts, read_prompts
    from rlhf_cli.rows import as_user

    questions = [*([as_user(text)] for text in prompt or []), *(read_prompts(prompts) if prompts else [])]
    asking = Asking(max_new_tokens, temperature, seed, batch_size)
    answers = answer_prompts(run, questions, asking, baseline=baseline)
    for answer in answers:
        typer.echo(json.dumps(answer, ensure_ascii=False) if as_json else _answer_text(answer))


def _answer_text(answer: dict[str, str]) -> str:
    return "\n".join(f"{name:<9} {printable(text).strip()}" for name, text in answer.items()) + "\n"

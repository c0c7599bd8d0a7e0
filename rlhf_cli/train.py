"""The story of one training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import create_repo, upload_folder
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rlhf_cli.card import write_card
from rlhf_cli.checkpoints import CompleteCheckpoints, StopOnSignal
from rlhf_cli.data import Encodings
from rlhf_cli.errors import EnvironmentFault, GateError, GuardStop, Interrupted, RecipeError
from rlhf_cli.faults import explained_faults, refuse_full_disk
from rlhf_cli.gates import failed_gates, gate_error
from rlhf_cli.going_on import command_to_go_on
from rlhf_cli.grading import grade
from rlhf_cli.guards import FiniteGuard
from rlhf_cli.machine import first_process_first, free_memory, is_first_process, leave_processes, quietly, settle_on_cpu
from rlhf_cli.methods.base import Method
from rlhf_cli.models import Loaded, load_model, trained_in_fp32
from rlhf_cli.plan import REWARD_MODEL, Plan
from rlhf_cli.prepare import Prepared, prepare
from rlhf_cli.progress import Watch
from rlhf_cli.recipe import Recipe
from rlhf_cli.record import recorded
from rlhf_cli.report import tell_report
from rlhf_cli.report_card import ReportCard
from rlhf_cli.resume import refuse_other_outcome, refuse_other_run
from rlhf_cli.run_dir import (
    REPORT_FILE,
    RunDir,
    move_rank_log,
    output_dir_of,
    refuse_unusable,
    step_of,
    take_run_dir,
    write_recipe,
)
from rlhf_cli.terminal import say, say_error, width
from rlhf_cli.trial import HUB_ERRORS, explained_refusals

_NOT_FOR_THE_HUB = ["_*", "checkpoint-*", "members/*/checkpoint-*", "rlhf/lock", "rlhf/logs/*", "rlhf/incomplete/*"]


def train(
    recipe: Recipe,
    method: Method,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop: StopOnSignal | None = None,
) -> RunDir:
    """Train what the recipe says.

    Args:
        recipe: A checked recipe.
        method: How to train.
        resume: Go on from the newest complete checkpoint in output_dir.
        overwrite: Move a run that is there aside first.
        stop: Knows afterwards of a signal that came too late to stop the run.

    Returns:
        The run folder.

    Raises:
        UserError: for everything the user can mend; `exit_code` says of what kind.
    """
    with ExitStack() as held:
        stop = held.enter_context(stop or StopOnSignal())
        if is_first_process():
            refuse_unusable(RunDir(output_dir_of(recipe)), recipe, resume=resume, overwrite=overwrite)
        prepared = prepare(recipe, method)
        plan, run = prepared.plan, prepared.run
        refuse_full_disk(run, plan)
        if resume and _is_finished(run, plan):
            refuse_other_outcome(prepared)
            say(f"{run.path} is finished already; there is nothing to resume")
            if not (run.path / REPORT_FILE).exists():  # it was ended in between
                _report(prepared)
            _refuse_missed_gates(run, recipe)
            return run
        with first_process_first(plan.machine):
            if is_first_process():
                held.enter_context(take_run_dir(run, recipe, overwrite=overwrite))
            trained = _take_up(prepared) if resume else 0
            if is_first_process():
                write_recipe(run, recipe, plan.public_settings())
            move_rank_log(run)
        _announce(plan)
        with _reported(prepared), recorded(prepared), explained_faults(run, plan), quietly():
            _train_members(prepared, method, stop, trained=trained, resume=resume)
            card = _grade(prepared, stop) if plan.trains == REWARD_MODEL else None
            failed = card.failed_gates if card is not None else []
            if plan.setting("push_to_hub") and is_first_process() and not failed:
                _push(prepared)
            leave_processes()
            if failed:
                raise gate_error(failed, where=recipe.where("gates"), hint=f"the model is in {run.path}")
    return run


@contextmanager
def _reported(prepared: Prepared) -> Iterator[None]:
    """Make a run that has come to its end into a page, whatever its gates and guards say of it."""
    try:
        yield
    except (GateError, GuardStop):
        _report(prepared)
        raise
    _report(prepared)


def _report(prepared: Prepared) -> None:
    if prepared.recipe["report"] and is_first_process():
        tell_report(prepared.run.path)


def _announce(plan: Plan) -> None:
    say(plan.as_text(width()))
    if not plan.fits:
        say_error(plan.warning())
    if plan.machine.device == "cpu":
        settle_on_cpu()


def _take_up(prepared: Prepared) -> int:
    """See that the run that is there is this one, and how many of its models are trained."""
    run = prepared.run
    before = run.read_run()
    if not before:
        say(f"{run.path} holds no run yet: starting from the beginning")
        return 0
    refuse_other_run(prepared)
    if before.get("status") == "done" and not run.checkpoints():
        raise RecipeError(
            f"{run.path} is finished and holds no checkpoint to go on from",
            hint="start a new run with its model as `model_name_or_path`",
        )
    longer = int(before.get("steps_done") or 0) < prepared.plan.steps
    return 0 if longer else int(before.get("members_trained") or 0)


def _train_members(prepared: Prepared, method: Method, stop: StopOnSignal, *, trained: int, resume: bool) -> None:
    """Train the run's model, or those members of its ensemble that are not trained yet."""
    members = prepared.members(method)
    for number, member in enumerate(members, 1):
        if number <= trained:
            continue
        if len(members) > 1:
            say(f"member {number} of {len(members)}")
        _train_member(method, member, stop, resume=resume)
        if is_first_process():
            prepared.run.update_run(members_trained=number)
        if stop.signum is not None and number < len(members):
            raise _stopped(stop, prepared)


def _train_member(method: Method, prepared: Prepared, stop: StopOnSignal, *, resume: bool) -> None:
    """Train one model and save it: the run's only one, or a member of its ensemble."""
    plan, material = prepared.plan, prepared.material
    prepared.run.own.mkdir(parents=True, exist_ok=True)
    with first_process_first(plan.machine):
        checkpoint = _resume_point(prepared.run) if resume else None
    free_memory()  # of the member before
    loaded = load_model(prepared.recipe, plan, material.source, material.tokenizer)
    trainer = _build_trainer(method, prepared, loaded, stop)
    stop.wait_for_steps()
    if checkpoint is not None and step_of(checkpoint) >= plan.steps:
        _restore(trainer, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.signum is not None and trainer.state.global_step < plan.steps:
        raise _stopped(stop, prepared, trainer.state.global_step)
    _save(trainer, prepared)


def _resume_point(run: RunDir) -> Path | None:
    """The checkpoint to go on from; metrics logged after it are cut off."""
    checkpoint = run.newest_checkpoint()
    if is_first_process():
        run.cut_metrics(checkpoint)
    say(f"resuming from {checkpoint}" if checkpoint else "no complete checkpoint: starting from the beginning")
    return checkpoint


def _grade(prepared: Prepared, stop: StopOnSignal) -> ReportCard | None:
    """Make the report card of the reward model that was saved, and show it."""
    run = prepared.run
    goes_on = command_to_go_on(run.secrets)
    stop.act_at_once(f"stopped; the model is saved in {run.path}, and `{goes_on}` makes its report card")
    card = grade(prepared)
    if card is None:
        say_error(
            "warning: no pairs are held out, so nothing is known of this reward model\n"
            "hint: hold some out with `test_split_size: 0.1` and `split_by: prompt`"
        )
    else:
        say(card.as_text())
        if is_first_process():
            run.update_run(report=card.as_json())
    _write_card(prepared, run.read_run().get("results") or {})
    return card


def _refuse_missed_gates(run: RunDir, recipe: Recipe) -> None:
    """Hold the report card that is there against the gates as they are now."""
    numbers = (run.read_run().get("report") or {}).get("numbers")
    if numbers and (failed := failed_gates(recipe["gates"], numbers)):
        raise gate_error(failed, where=recipe.where("gates"), hint=f"the model is in {run.path}")


def _is_finished(run: RunDir, plan: Plan) -> bool:
    record = run.read_run()
    return record.get("status") == "done" and int(record["steps_done"]) >= plan.steps


def _build_trainer(method: Method, prepared: Prepared, loaded: Loaded, stop: StopOnSignal) -> Trainer:
    """The method's trainer, watched, stoppable, and with what it trains in fp32."""
    plan = prepared.plan
    material = prepared.material
    data = Encodings(material.train.dataset, material.test.dataset if material.test else None)
    with explained_refusals(prepared.recipe), trained_in_fp32(loaded.model):
        trainer = method.build_trainer(prepared.config, loaded, data)
    # TRL writes a card at every save, and before a push: of a local base it says that it is called None.
    trainer.create_model_card = lambda **_: _write_card(prepared, prepared.run.read_run().get("results") or {})
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    trainer.add_callback(Watch(prepared.run))
    trainer.add_callback(CompleteCheckpoints(prepared.recipe["save_total_limit"]))
    trainer.add_callback(stop)
    reaction = prepared.recipe["guards"].get("nan", "stop")
    if reaction != "off":
        trainer.add_callback(FiniteGuard(trainer, prepared.run, stops=reaction == "stop"))
    if len(trainer.train_dataset) != plan.train.examples:
        raise RuntimeError(f"planned {plan.train.examples} examples, the trainer made {len(trainer.train_dataset)}")
    return trainer


def _restore(trainer: Trainer, checkpoint: Path) -> None:
    """Take up a run whose last step is trained but whose model was not saved.

    `train(resume_from_checkpoint=…)` would train one step more: it asks whether it is done only after a step.
    """
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    trainer.state.is_world_process_zero = trainer.is_world_process_zero()
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()


def _save(trainer: Trainer, prepared: Prepared) -> None:
    """Write the model, evaluate a last time, and leave state, results and card under the names HF gives them."""
    trainer.save_model(_internal_call=True)  # else it pushes at once, before results and card are there
    history, step = trainer.state.log_history, trainer.state.global_step
    summary: dict[str, Any] = next((entry for entry in reversed(history) if "train_runtime" in entry), {})
    trainer.save_metrics("train", {key: value for key, value in summary.items() if key != "step"})
    results: dict[str, Any] = {}
    if prepared.material.test is not None:
        # An evaluation of the last step holds, unless another step's model was put in its place.
        changed = trainer.args.load_best_model_at_end
        done = [entry for entry in history if entry["step"] == step and "eval_runtime" in entry and not changed]
        results = {key: value for key, value in (done[-1] if done else trainer.evaluate()).items() if key != "step"}
        trainer.save_metrics("eval", results)
    trainer.save_state()
    if is_first_process():
        prepared.run.update_run(steps_done=step, results=results)
    _write_card(prepared, results)


def _push(prepared: Prepared) -> None:
    """Put the run folder on the Hub, without checkpoints."""
    run, settings = prepared.run.path, prepared.plan.setting
    name = settings("hub_model_id") or run.absolute().name
    try:
        repository = create_repo(name, private=settings("hub_private_repo"), exist_ok=True)
        upload_folder(
            repo_id=repository.repo_id,
            folder_path=run,
            revision=settings("hub_revision"),
            commit_message=f"rlhf {prepared.plan.method}",
            ignore_patterns=_NOT_FOR_THE_HUB,
        )
    except HUB_ERRORS as error:
        raise EnvironmentFault(
            f"the model is trained and saved in {run}, but the Hub does not take it: {error}",
            hint=f"hf upload {name} {run}",
        ) from error


def _write_card(prepared: Prepared, results: Mapping[str, Any]) -> None:
    if is_first_process():
        material = prepared.material
        write_card(
            prepared.run.path,
            prepared.plan,
            model=asdict(material.source),
            sources=material.rows.sources,
            results=results,
        )


def _stopped(stop: StopOnSignal, prepared: Prepared, step: int | None = None) -> Interrupted:
    """What a signal leaves: a checkpoint in the middle of training, or models that are trained."""
    run, steps = prepared.run, prepared.plan.steps
    left = f"stopped; what is trained is saved in {run.path}"
    if step is not None:
        left = f"stopped after step {step} of {steps}; {run.path}/checkpoint-{step} is written"
    return Interrupted(int(stop.signum or 0), left, hint=command_to_go_on(run.secrets))

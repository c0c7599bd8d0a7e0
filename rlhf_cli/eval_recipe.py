"""The recipe of an evaluation: its keys, and which of them go together."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_cli.command import Command
from rlhf_cli.errors import Problem, RecipeError
from rlhf_cli.gates import EVALUATION_GATES, METRICS
from rlhf_cli.recipe import Recipe


def config_classes() -> tuple[type, ...]:
    """Where the keys of its data come from."""
    from trl.scripts.utils import DatasetMixtureConfig

    return (DatasetMixtureConfig,)


def models_of(recipe: Recipe) -> dict[str, str]:
    """The policies that are compared, by name; one that is not named is called like its folder.

    Raises:
        RecipeError: when two are called alike.
    """
    given = recipe["models"] or {}
    if isinstance(given, dict):
        return {str(name): os.path.expanduser(path) for name, path in given.items()}
    names = [Path(path).name for path in given]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"two of `models` are called `{max(names, key=names.count)}`",
            where=recipe.where("models"),
            hint="write names for them: `models: {sft: runs/1/model, ppo: runs/2/model}`",
        )
    return dict(zip(names, map(os.path.expanduser, given), strict=True))


def check_evaluation(recipe: Recipe) -> None:
    """Check what no schema says of the keys of an evaluation.

    Raises:
        RecipeError: with every problem found.
    """
    problems = _check_policies(recipe) if recipe["models"] else _check_reward_model(recipe)
    if problems:
        raise RecipeError("; ".join(problem.what for problem in problems), problems=problems)


def _check_policies(recipe: Recipe) -> list[Problem]:
    models = models_of(recipe)
    found = []
    for key in ("baseline", "reference", "frontier"):
        if recipe[key] is not None and recipe[key] not in models:
            fix = f"one of {', '.join(models)}"
            found.append(recipe.problem(key, f"`{key}` is `{recipe[key]}`, which is not one of `models`", fix))
    if not any(recipe[key] for key in ("reward_model_path", "reward_funcs", "verdicts_file")) and len(models) > 1:
        what = "nobody judges: there is no `reward_model_path`, `reward_funcs` or `verdicts_file`"
        found.append(recipe.problem("models", what, "add one, best a judge that no model was trained against"))
    found += _check_frontier(recipe)
    for gate in recipe["gates"]:
        if gate["metric"] in METRICS:
            what = f"`{gate['metric']}` is a number of a reward model, and this compares `models`"
            found.append(recipe.problem("gates", what, "such as win_rate, reward_difference or kl"))
        if gate.get("model", next(iter(models))) not in models:
            what = f"a gate asks for the model `{gate['model']}`, which is not one of `models`"
            found.append(recipe.problem("gates", what, f"one of {', '.join(models)}"))
    return found


def _check_frontier(recipe: Recipe) -> list[Problem]:
    """What draws reward against KL needs answers that are sampled, and KL from the baseline."""
    found = []
    if recipe["best_of_n"] is not None and recipe["frontier"] is None:
        what = "`best_of_n` stands beside a frontier, and there is none"
        found.append(recipe.problem("best_of_n", what, "add `frontier: MODEL`, or remove it"))
    if recipe["frontier"] is not None and recipe["reference"] not in (None, recipe["baseline"]):
        what = "a frontier starts at the baseline, so that KL must be measured from there"
        found.append(recipe.problem("reference", what, "remove `reference`"))
    asks_kl = [gate["metric"] for gate in recipe["gates"] if gate["metric"] in ("kl", "kl_per_token")]
    if recipe["temperature"] == 0 and (recipe["frontier"] is not None or asks_kl):
        what = "`temperature: 0` takes the likeliest tokens, which tell no KL"
        found.append(recipe.problem("temperature", what, "1 draws from the policy itself"))
    return found


def _check_reward_model(recipe: Recipe) -> list[Problem]:
    found = []
    if not isinstance(recipe["reward_model_path"], str):
        fix = "one reward model, or `models` that several are to judge"
        found.append(recipe.problem("reward_model_path", "there is nothing to judge", fix))
    for key in _POLICIES_ONLY:
        if recipe[key] not in (None, recipe.schema["properties"][key]["default"]):
            what = f"`{key}` is of a comparison of policies, and there are no `models`"
            found.append(recipe.problem(key, what, "add `models: {NAME: PATH, …}`"))
    for gate in recipe["gates"]:
        if gate["metric"] not in METRICS or gate.keys() & {"model", "judge"}:
            what = f"a gate asks for `{gate['metric']}` of a policy, and this judges a reward model"
            found.append(recipe.problem("gates", what, f"one of {', '.join(METRICS)}"))
    return found


_POLICIES_ONLY = (
    "baseline", "reference", "reward_funcs", "verdicts_file", "training_rewards", "frontier", "best_of_n",
    "perplexity_file", "max_prompts", "stop_token_id",
)  # fmt: skip
_NAME = {"type": ["string", "null"], "default": None}
_NAMES = {"type": ["string", "array", "null"], "items": {"type": "string"}, "default": None}

EVALUATION = Command(
    command="eval",
    check=check_evaluation,
    summary="Compare policies on held-out prompts, or judge a reward model; gates set the exit code",
    config_classes=config_classes,
    required=(("models", "reward_model_path"), ("dataset_name", "datasets")),
    shared=("method", "extends", "env", "columns", "layout", "split_by", "skip_bad_rows", "report"),
    keys={
        "models": {
            "type": ["object", "array", "null"],
            "items": {"type": "string"},
            "additionalProperties": {"type": "string"},
            "minItems": 1,
            "minProperties": 1,
            "default": None,
            "description": "The policies that are compared: `{sft: runs/sft, ppo: runs/ppo}`, or a list of run "
            "folders, model folders and Hub ids.",
        },
        "baseline": {**_NAME, "description": "The model that the others are held against; null is the first."},
        "reference": {**_NAME, "description": "The model that KL is measured from; null is the baseline."},
        "reward_model_path": {
            **_NAMES,
            "description": "The reward model that is judged; with `models`, one or several that judge their answers: "
            "runs of `rlhf train-reward`, model folders or Hub ids.",
        },
        "reward_funcs": {
            **_NAMES,
            "description": "Python functions that judge answers: `file.py:function` or `package.module:function`, or a "
            "list of them, called as those of `rlhf ppo` are.",
        },
        "verdicts_file": {
            **_NAME,
            "description": "What people said: rows with `prompt`, `model_a`, `model_b` and `winner`, which is model_a, "
            "model_b or tie.",
        },
        "training_rewards": {
            **_NAMES,
            "description": "Reward models and functions that the models were trained against, so that they are no "
            "evidence; null is what the run folders say.",
        },
        "frontier": {
            **_NAME,
            "description": "The model whose run's checkpoints are compared as well: reward against KL, and the best of "
            "them, by the first judge it was not trained against, is marked in its folder.",
        },
        "best_of_n": {
            "type": ["integer", "null"],
            "minimum": 2,
            "default": None,
            "description": "Answers of the baseline to each prompt, the best of which stands beside the frontier.",
        },
        "perplexity_file": {
            **_NAME,
            "description": "A text file on which perplexity is measured: what alignment costs elsewhere.",
        },
        "response_length": {"type": "integer", "minimum": 1, "default": 256, "description": "Tokens at most."},
        "temperature": {
            "type": "number",
            "minimum": 0,
            "default": 1.0,
            "description": "1 draws answers from the policy itself; KL is that of what is drawn, without bias. 0 takes "
            "the likeliest token, and tells no KL.",
        },
        "stop_token_id": {
            "type": ["integer", "array", "null"],
            "items": {"type": "integer", "minimum": 0},
            "minimum": 0,
            "default": None,
            "description": "Tokens that end an answer, beside the end tokens of tokenizer and model; as in training.",
        },
        "max_prompts": {
            "type": ["integer", "null"],
            "minimum": 1,
            "default": None,
            "description": "Of the held-out prompts, so many at random; null takes all.",
        },
        "per_device_eval_batch_size": {
            "type": ["integer", "null"],
            "minimum": 1,
            "default": None,
            "description": "Prompts that are answered at a time; null is as many as a fifth of memory has room for.",
        },
        "dataset_name": {
            "type": ["string", "null"],
            "default": None,
            "description": "The prompts, or the preferences: a data file, a folder or a Hub id.",
        },
        "dataset_config": {
            "type": ["string", "null"],
            "default": None,
            "description": "Configuration of a dataset of the Hub.",
        },
        "dataset_test_split": {
            "type": "string",
            "default": "test",
            "description": "The split to judge on. A file that is not split is judged on whole.",
        },
        "dataset_train_split": {
            "type": "string",
            "default": "train",
            "description": "The split that `test_split_size` holds rows out of.",
        },
        "test_split_size": {
            "type": ["integer", "number", "null"],
            "exclusiveMinimum": 0,
            "default": None,
            "description": "Judge only on the rows that a training run of the same data, `test_split_size`, "
            "`split_by`, `seed`, `drop_ties` and `skip_bad_rows` held out.",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 42, "description": "Of held-out rows and of resampling."},
        "drop_ties": {
            "type": "boolean",
            "default": False,
            "description": "Leave pairs out that compare nothing: equal answers, or a margin of 0.",
        },
        "load_in_4bit": {
            "type": "boolean",
            "default": False,
            "description": "Load the base in 4 bits, whatever it was trained in; the shift of its scores is shown.",
        },
        "load_in_8bit": {
            "type": "boolean",
            "default": False,
            "description": "The same in 8 bits.",
        },
        "trust_remote_code": {
            "type": "boolean",
            "default": False,
            "description": "Let code that comes with the model run.",
        },
        "gates": EVALUATION_GATES,
        "output_dir": {
            "type": ["string", "null"],
            "default": None,
            "description": "Where `eval.json`, answers and report go; without it, nowhere but to the screen.",
        },
    },
    starter="""\
# Compares a run with the model it started from, on prompts it was not trained on.   rlhf eval {path}
method: eval
models:
  base: {model}
  trained: runs/ppo
baseline: base
reward_model_path: runs/judge    # best one that nothing was trained against
dataset_name: {data}
max_prompts: 200
gates:
  - {{metric: win_rate, min: 0.51, bound: ci_low}}
output_dir: {output}
""",
    starter_data="trl-lib/ultrafeedback-prompt",
)

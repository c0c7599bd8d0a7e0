"""Reading a pipeline: what stages inherit and name, and everything wrong with a file told at once, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.pipeline_file import Pipeline, is_pipeline, read_pipeline
from rlhf_cli.recipe import read_recipe
from tests.golden_files import assert_golden

SFT = "{model_name_or_path: base, dataset_name: rows.jsonl}"
PAIRS = "{model_name_or_path: base, dataset_name: pairs.jsonl}"


def stages(**nodes: str) -> str:
    return "stages:\n" + "".join(f"  {name.replace('_', '-')}: {node}\n" for name, node in nodes.items())


def on(reference: str, *more: str) -> str:
    return "{" + ", ".join((f'model_name_or_path: "{reference}"', "dataset_name: pairs.jsonl", *more)) + "}"


# --- what is wrong --------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[str, ...]] = {
    "unknown-stage": (stages(sft=SFT, dpo=on("${sfft}")),),
    "itself": (stages(sft=SFT, dpo=on("${dpo}")),),
    "itself-without-a-reference": ("output_dir: out\n" + stages(sft=SFT, dpo=on("out/dpo/checkpoint-4")),),
    "circle": (stages(sft="{model_name_or_path: '${dpo}', dataset_name: rows.jsonl}", dpo=on("${sft}")),),
    "circle-of-three": (
        stages(sft="{model_name_or_path: '${train-reward}', dataset_name: rows.jsonl}", dpo=on("${sft}"),
               train_reward=on("${dpo}/checkpoint-4")),
    ),
    "later": (stages(dpo=on("${sft}"), sft=SFT),),
    "later-without-a-reference": ("output_dir: out\n" + stages(dpo=on("./out/sft"), sft=SFT),),
    "one-folder": (stages(sft=SFT, dpo=on("base", "output_dir: ./runs/p//sft")),),
    "folder-made-of-another": (stages(sft=SFT, dpo=on("base", 'output_dir: "${sft}-dpo"')),),
    "nested-folders": (stages(sft=SFT, dpo=on("base", "output_dir: runs/p/sft/dpo")),),
    "folder-of-the-pipeline": ("output_dir: out\n" + stages(sft=SFT, rlhf=PAIRS[:-1] + ", method: dpo}",
                               dpo=on("base", "output_dir: out")),),
    "unknown-key": (stages(sft=SFT, dpo="\n    model_name_or_path: base\n    dataset_name: pairs.jsonl\n    lr: 1"),),
    "faults-in-two-stages": (stages(sft=SFT[:-1] + ", learning_rat: 1}", train_reward=PAIRS,
                             dpo=on("base", "beta: -1", "seed: none")),),
    "default-of-no-stage": (f"defaults: {{kl_coef: 0.1, output_dir: x, learning_rat: 1}}\n{stages(sft=SFT)}",),
    "unknown-top-level-key": ("stage: {}\nouput_dir: x\n" + stages(sft=SFT),),
    "no-stages": ("output_dir: out\nstages: {}\n",),
    "stage-that-is-a-number": (stages(sft=SFT, dpo="3"),),
    "stage-that-is-empty": (stages(sft=""),),
    "name-that-is-no-folder": (stages(sft=SFT) + f"  ../dpo: {PAIRS}\n",),
    "environment-of-two-minds": (
        stages(sft=SFT[:-1] + ", env: {A_KEY: secret-one}}", dpo=on("base", "env: {A_KEY: secret-two, B: 1}")),
    ),
    "ordinary-recipe": ("method: sft\nmodel_name_or_path: base\ndataset_name: rows.jsonl\n",),
    "missing-method": (stages(first=SFT),),
    "unknown-method": (stages(sft=SFT[:-1] + ", method: stf}"),),
    "redo-nobody": (stages(sft=SFT), "--redo", "nobody"),
    "keep-nobody": (stages(sft=SFT), "--keep", "stf"),
    "override-of-no-stage": (stages(sft=SFT, dpo=on("base")), "--stf.seed", "1"),
    "override-without-a-stage": (stages(sft=SFT, dpo=on("base")), "seed=1"),
    "wrong-override": (stages(sft=SFT), "sft.seed=-1"),
    "eval-without-a-judge": (stages(sft=SFT, eval="{models: {a: '${sft}', b: base}, dataset_name: rows.jsonl}"),),
}  # fmt: skip
EACH = """
import contextlib, io, json, os, sys, time
from rlhf_cli import cli

outcomes = {}
for name, arguments in json.load(sys.stdin).items():
    os.chdir(name)
    sys.argv = ["rlhf", "run", "p.yaml", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    outcomes[name] = [code, out.getvalue(), err.getvalue(), time.process_time()]
    os.chdir("..")
print(json.dumps([outcomes, sorted({"torch", "transformers", "trl", "datasets"} & {*sys.modules})]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """What each bad file is answered with, and what heavy was imported; in one process, which starts as fast as any."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (text, *_) in BAD.items():
        (folder / name).mkdir()
        (folder / name / "p.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", EACH], cwd=folder, capture_output=True, text=True, check=False,
        input=json.dumps({name: arguments for name, (_, *arguments) in BAD.items()}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, *json.loads(done.stdout)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_explained(case: str, told: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, outcomes, _ = told
    code, out, err, _ = outcomes[case]
    assert (code, out) == (2, ""), err
    assert_golden(f"pipeline/{case}.txt", err, folder=folder / case)
    assert sorted(path.name for path in (folder / case).iterdir()) == ["p.yaml"]
    assert "secret" not in err


def test_a_bad_file_is_told_at_once_and_without_torch(told: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, outcomes, heavy = told
    assert heavy == []
    ends = [seconds for *_, seconds in outcomes.values()]  # of one core, which others may slow down
    assert ends[0] < 1
    assert max(end - start for start, end in pairwise(ends)) < 0.5


# --- what is read ---------------------------------------------------------------------------------------------------


def read(folder: Path, text: str, *overrides: tuple[str, str]) -> Pipeline:
    (folder / "p.yaml").write_text(text)
    return read_pipeline(folder / "p.yaml", overrides)


def test_a_stage_has_what_it_extends_under_what_it_says_and_defaults_under_both(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model_name_or_path: base\ndataset_name: rows.jsonl\nseed: 1\nmax_steps: 1\n")
    pipeline = read(
        tmp_path,
        "defaults: {seed: 0, max_steps: 0, learning_rate: 0.5, kl_coef: 0.3}\nstages:\n"
        "  sft: base.yaml\n"
        "  ppo: {extends: base.yaml, seed: 2, reward_model_path: '${sft}', learning_rate: 0.25}\n",
        ("ppo.max-steps", "9"),
        ("ppo.use_peft", "true"),
    )
    sft, ppo = pipeline.stages
    assert (sft.recipe.method, ppo.recipe.method) == ("sft", "ppo")
    assert sft.recipe.values == {
        "seed": 1, "max_steps": 1, "learning_rate": 0.5, "model_name_or_path": "base", "dataset_name": "rows.jsonl",
        "output_dir": "runs/p/sft", "method": "sft",
    }  # fmt: skip
    named = {key: ppo.recipe.values[key] for key in ("seed", "max_steps", "learning_rate", "kl_coef", "use_peft")}
    assert named == {"seed": 2, "max_steps": 9, "learning_rate": 0.25, "kl_coef": 0.3, "use_peft": True}
    assert ppo.recipe.where("kl_coef") == f"{tmp_path}/p.yaml:1"
    assert ppo.recipe.where("dataset_name") == f"{tmp_path}/base.yaml:2"
    assert ppo.recipe.where("max_steps") == "command line"


def test_a_stage_as_a_recipe_of_its_own_says_the_same(tmp_path: Path) -> None:
    text = f"defaults: {{seed: 5, max_seq_length: 64}}\n{stages(sft=SFT, dpo=on('${sft}/checkpoint-4'))}"
    for stage in read(tmp_path, text, ("dpo.beta", "0.5")).stages:
        (tmp_path / "alone.yaml").write_text(stage.recipe.text or "")
        alone = read_recipe(tmp_path / "alone.yaml")
        assert alone.method == stage.recipe.method
        assert {**alone.values, "method": ""} == {**stage.recipe.values, "method": ""}
        assert alone.values["max_length"] == 64


def test_older_names_of_keys_are_defaults_of_those_that_have_them(tmp_path: Path) -> None:
    text = "defaults: {max_seq_length: 64, init_kl_coef: 0.5, do_train: true}\n"
    judged = "{models: {a: '${sft}'}, dataset_name: rows.jsonl}"
    sft, ppo, judge = read(
        tmp_path, text + stages(sft=SFT, ppo=on("${sft}", "reward_funcs: a.py:f"), eval=judged)
    ).stages
    assert (sft.recipe.get("max_length"), sft.recipe.get("kl_coef")) == (64, None)
    assert (ppo.recipe.get("max_length"), ppo.recipe.get("kl_coef")) == (64, 0.5)
    assert judge.recipe.values.keys() & {"max_length", "max_seq_length", "kl_coef", "init_kl_coef"} == set()


def test_a_stage_that_says_it_under_an_older_name_wins_over_a_default(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "defaults: {max_length: 1024, seed: 1}\n" + stages(sft=SFT[:-1] + ", max_seq_length: 2048}", train_reward=PAIRS)
    )
    found = read_pipeline(tmp_path / "p.yaml")
    assert [stage.recipe["max_length"] for stage in found.stages] == [2048, 1024]
    (tmp_path / "p.yaml").write_text(
        "defaults: {max_seq_length: 1024}\n" + stages(sft=SFT[:-1] + ", max_length: 2048}", train_reward=PAIRS)
    )
    found = read_pipeline(tmp_path / "p.yaml")
    assert [stage.recipe["max_length"] for stage in found.stages] == [2048, 1024]


def test_whose_checkpoints_are_read_is_known(tmp_path: Path) -> None:
    judged = "{method: eval, models: ['${%s}'], dataset_name: rows.jsonl, frontier: %s}"
    (tmp_path / "p.yaml").write_text(
        stages(
            sft=SFT, train_reward=on("${sft}/checkpoint-4"), dpo=on("${train-reward}"), judged=judged % ("dpo", "dpo")
        )
    )
    assert [stage.saves for stage in read_pipeline(tmp_path / "p.yaml").stages] == [True, False, True, False]


@pytest.mark.parametrize(
    "named", ["${sft}", "${ sft }", "out/sft", "./out//sft/", "${sft}/checkpoint-2", "ABSOLUTE/out/sft"]
)
def test_a_stage_reads_those_whose_folders_it_names(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "output_dir: out\n" + stages(sft=SFT, dpo=on(named.replace("ABSOLUTE", str(tmp_path)), "run_name: ~nobody"))
    sft, dpo = read(tmp_path, text).stages
    assert (sft.needs, dpo.needs) == ((), ("sft",))
    assert "${" not in dpo.recipe["model_name_or_path"]


def test_a_stage_may_have_any_name_that_can_be_a_folder(tmp_path: Path) -> None:
    names = ("1", "2b", "no", "A-b_c")
    text = "stages:\n" + "".join(f"  {name}: {SFT[:-1]}, method: sft}}\n" for name in names)
    assert [stage.folder for stage in read(tmp_path, text).stages] == [Path("runs/p", name) for name in names]


def test_a_stage_with_a_dash_can_be_overridden(tmp_path: Path) -> None:
    from rlhf_cli.arguments import split_stage_arguments

    _, overrides = split_stage_arguments(["p.yaml", "--train-reward.max-steps", "3"])
    text = stages(**{"train-reward": PAIRS})
    assert read(tmp_path, text, *overrides)["train-reward"].recipe["max_steps"] == 3


def test_a_pipeline_is_told_from_a_recipe(tmp_path: Path) -> None:
    for text, answer in ((stages(sft=SFT), True), (SFT, False), ("[", False)):
        (tmp_path / "p.yaml").write_text(text)
        assert is_pipeline(tmp_path / "p.yaml") is answer
    assert not is_pipeline(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="no such recipe"):
        read_pipeline(tmp_path / "nowhere.yaml")

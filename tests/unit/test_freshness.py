"""What an outcome is made from, and when it has to be made again."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf_cli.basis import Basis, FileHashes, find_basis
from rlhf_cli.errors import EnvironmentFault, RecipeError
from rlhf_cli.freshness import Judgement, Need, State
from rlhf_cli.pipeline_file import Stage, read_pipeline
from rlhf_cli.run_dir import RunDir
from rlhf_cli.stage_line import describe_stage

SECRET = "hf_" + "Kq7" * 8


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base, an adapter on it, rows and a judge, named as they stand in the folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "adapter", "package"):
        Path(name).mkdir()
    Path("base/config.json").write_text("{}")
    Path("base/model.safetensors").write_text("weights")
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    Path("rows.jsonl").write_text("{}\n")
    Path("rewards.py").write_text("def f(**_): return []\n")
    Path("package/__init__.py").write_text("raise RuntimeError('imported')\n")
    Path("package/judges.py").write_text("from . import helper\nimport numpy\ndef f(**_): return []\n")
    Path("package/helper.py").write_text("def help(): return []\n")
    monkeypatch.syspath_prepend(tmp_path)


def stage(method: str = "sft", **keys: object) -> Stage:
    values = {"method": method, "model_name_or_path": "base", "dataset_name": "rows.jsonl", **keys}
    Path("p.yaml").write_text(json.dumps({"output_dir": "out", "stages": {"it": values}}))
    return read_pipeline(Path("p.yaml")).stages[0]


def basis(method: str = "sft", **keys: object) -> Basis:
    return find_basis(stage(method, **keys).recipe, FileHashes(), more={}, leave_out=frozenset())


# --- hashes ---------------------------------------------------------------------------------------------------------


def test_a_hash_follows_content_and_not_time() -> None:
    hashes, file = FileHashes(), Path("rows.jsonl")
    first = hashes.of_file(file)
    hashes.known[str(file.absolute())][3] = "known"
    assert hashes.of_file(file) == "known"  # not read again
    os.utime(file, (1, 1))
    assert hashes.of_file(file) == first
    assert FileHashes(json.loads(json.dumps(hashes.known))).of_file(file) == first


def test_new_content_of_the_same_size_and_time_is_noticed() -> None:
    hashes, file = FileHashes(), Path("rows.jsonl")
    first, before = hashes.of_file(file), file.stat()
    time.sleep(0.02)  # the clock of file systems ticks a few hundred times a second
    file.write_text("[]\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert hashes.of_file(file) != first


def test_of_a_run_what_readers_of_its_model_see_is_hashed() -> None:
    for name in ("checkpoint-4", "members/2/checkpoint-4", "rlhf/samples"):
        Path("base", name).mkdir(parents=True)
        Path("base", name, "model.safetensors").touch()
    for name in ("README.md", "training_args.bin", "report.html", "notes.md", "rlhf/run.json", ".hidden.json"):
        Path("base", name).touch()
    for name in ("members/2/model.safetensors", "rlhf/held_out.jsonl", "tokenizer.json", "chat_template.jinja"):
        Path("base", name).touch()
    assert sorted(FileHashes().of_files(Path("base"))) == [
        "chat_template.jinja", "config.json", "members/2/model.safetensors", "model.safetensors",
        "rlhf/held_out.jsonl", "tokenizer.json",
    ]  # fmt: skip


# --- the basis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "method", "keys"),
    [
        ("rows.jsonl", "sft", {}),
        ("base/model.safetensors", "sft", {}),
        ("base/model.safetensors", "sft", {"model_name_or_path": "adapter"}),
        ("adapter/adapter_config.json", "sft", {"model_name_or_path": "adapter"}),
        ("rows.jsonl", "sft", {"dataset_name": None, "datasets": [{"path": "rows.jsonl"}]}),
        ("rewards.py", "ppo", {"reward_funcs": ["rewards.py:f"]}),
        ("package/judges.py", "ppo", {"reward_funcs": "package.judges:f"}),
        ("package/helper.py", "ppo", {"reward_funcs": "package.judges:f"}),
        ("package/__init__.py", "ppo", {"reward_funcs": "package.judges:f"}),
        ("package/helper.py", "ppo", {"reward_funcs": "uses_helper.py:f"}),
        ("base/model.safetensors", "eval", {"models": {"a": "base"}, "model_name_or_path": None}),
        ("base/rows.jsonl", "sft", {"dataset_name": "base"}),
        ("rows:v2/rows.csv", "sft", {"dataset_name": "rows:v2"}),
        ("parts/a.jsonl", "sft", {"datasets": [{"path": "json", "data_files": "parts/*.jsonl"}]}),
        ("parts/a.jsonl", "sft", {"datasets": [{"path": "links", "data_dir": "current"}]}),
        ("base/checkpoint-2/model.safetensors", "eval", {"models": {"a": "base"}, "frontier": "a"}),
    ],
)
def test_what_a_recipe_names_is_a_part(changed: str, method: str, keys: dict[str, object]) -> None:
    keys = {key: value for key, value in keys.items() if value is not None}
    left_out = {"model_name_or_path"} if method == "eval" else {"dataset_name"} if "datasets" in keys else set()
    for name in ("base/rows.jsonl", "rows:v2/rows.csv", "parts/a.jsonl", "base/checkpoint-2/model.safetensors"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    Path("links").mkdir()
    Path("links/current").symlink_to("../parts")
    Path("uses_helper.py").write_text("def f(**_):\n    from package.helper import help\n    return help()\n")
    values = {"model_name_or_path": "base", "dataset_name": "rows.jsonl", **keys}
    values = {key: value for key, value in values.items() if key not in left_out}
    Path("p.yaml").write_text(json.dumps({"stages": {"it": {"method": method, **values}}}))

    def now() -> Basis:
        recipe = read_pipeline(Path("p.yaml")).stages[0].recipe
        return find_basis(recipe, FileHashes(), more={}, leave_out=frozenset())

    before = now()
    assert now() == before
    file = Path(changed)
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "r": 2}) if changed.startswith("adapter") else content + " ")
    assert now() != before
    assert len(now().changes_since(before)) == 1
    assert not now().changes_since(before)[0].startswith("`")


def test_older_names_and_keys_without_effect_make_no_difference() -> None:
    assert basis(max_length=64, lr_scheduler_type="cosine") == basis(max_seq_length=64, lr_scheduler_type="cosine")
    for keys in (
        {"logging_steps": 3},
        {"save_steps": 3},
        {"report": False},
        {"output_dir": "else"},
        {"env": {"A": "b"}},
    ):
        assert basis(**keys) == basis()
    for keys in ({"seed": 3}, {"max_steps": 3}, {"num_train_epochs": 2}):
        assert basis(**keys).changes_since(basis()) == [f"`{next(iter(keys))}`"]


def test_among_which_models_the_best_is_chosen_makes_a_difference() -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "test_split_size": 0.1}
    assert basis(**best, save_steps=4).changes_since(basis(**best, save_steps=8)) == ["`save_steps`"]


def test_a_basis_holds_no_secret() -> None:
    found = basis(hub_token=SECRET, env={"api_key": SECRET}, model_init_kwargs={"token": SECRET}, run_name=SECRET)
    assert SECRET not in json.dumps(asdict(found))


def test_checkpoints_that_somebody_reads_are_a_part() -> None:
    def read(**keys: object) -> Basis:
        return find_basis(stage(**keys).recipe, FileHashes(), more={}, leave_out=frozenset(), saves=True)

    assert read(save_steps=3).changes_since(read()) == ["`save_steps`"]
    assert read(save_total_limit=3).changes_since(read()) == ["`save_total_limit`"]


def test_a_damaged_adapter_or_one_on_itself_is_only_hashed() -> None:
    """What is wrong with it is said by who loads it."""
    for text in ('{"base_model_name_or_path": "adapter"}', "{", "[]"):
        Path("adapter/adapter_config.json").write_text(text)
        assert sorted(basis(model_name_or_path="adapter").files) == ["adapter", "rows.jsonl"]


def test_text_that_cannot_be_a_path_is_no_file() -> None:
    found = basis(chat_template="{{ messages }}" * 400, run_name="~nobody/x", eos_token="a\0b", pad_token="~~")
    assert sorted(found.files) == ["base", "rows.jsonl"]
    assert stage(output_dir="~no-such-person/x").folder == Path("~no-such-person/x")


def test_a_name_that_is_no_utf_8_is_kept() -> None:
    Path("rows").mkdir()
    Path(os.fsdecode(b"rows/caf\xe9.jsonl")).write_text("{}\n")
    state = State(RunDir(Path("out")))
    found = find_basis(stage(dataset_name="rows").recipe, state.hashes, more={}, leave_out=frozenset())
    state.begin(stage(), found, Judgement(Need.RUN, "not run yet"))
    kept = State(RunDir(Path("out")))
    assert kept.made["it"].basis == found
    assert kept.hashes.known == state.hashes.known


def test_a_stage_says_what_is_known_of_it() -> None:
    run = RunDir(Path("told"))
    run.own.mkdir(parents=True)
    number: dict[str, float | None] = {"value": 1.0, "ci_low": 0.5, "ci_high": 1.0}
    for change, told in (
        ({}, "held-out accuracy 1.00 [0.50, 1.00]"),
        ({"ci_low": None, "ci_high": None}, "held-out accuracy 1.00"),
        ({"value": None}, "held-out accuracy unknown"),
    ):
        numbers = {"accuracy": {**number, **change}}
        run.run_file.write_text(json.dumps({"steps_done": 3, "report": {"numbers": numbers}}))
        assert describe_stage(run.path) == f"3 steps  {told}"


# --- what became of a stage -----------------------------------------------------------------------------------------


class World:
    """A stage that writes one file, and its state as the next command reads it."""

    def __init__(self) -> None:
        self.stage = stage()

    @property
    def state(self) -> State:
        return State(RunDir(Path("out")))

    def judge(self, *, redo: bool = False, **keys: object) -> tuple[Need, str]:
        judgement = self.state.judge(self.stage, basis(**keys), redo=redo)
        return judgement.need, judgement.why

    def begin(self, **keys: object) -> State:
        state = self.state
        state.begin(self.stage, basis(**keys), state.judge(self.stage, basis(**keys)))
        (self.stage.folder / "rlhf").mkdir(parents=True, exist_ok=True)
        (self.stage.folder / "rlhf/run.json").write_text('{"status": "running"}')
        (self.stage.folder / "rlhf/metrics.jsonl").touch()
        return state

    def make(self, **keys: object) -> None:
        state = self.begin(**keys)
        (self.stage.folder / "model.safetensors").write_text("weights")
        (self.stage.folder / "config.json").write_text("{}")
        state.finish(self.stage, basis(**keys), elapsed_s=1.0)


def test_a_stage_is_run_gone_on_with_and_left_alone() -> None:
    world = World()
    assert world.judge() == (Need.RUN, "not run yet")
    world.begin()
    assert world.judge() == (Need.GO_ON, "interrupted")
    assert world.judge(seed=1) == (Need.RUN, "changed: `seed`")
    world.make()
    assert world.judge() == (Need.NOTHING, "unchanged")
    assert world.judge(redo=True) == (Need.RUN, "asked for with --redo")
    assert world.judge(seed=1, max_steps=4) == (Need.RUN, "changed: `max_steps`, `seed`")
    assert world.state.judge(world.stage, None).need is Need.WAIT
    assert not list(Path("out").glob("it.old*"))
    world.make(seed=1)
    assert (Path("out/it.old-1/model.safetensors").exists(), world.judge(seed=1)[0]) == (True, Need.NOTHING)


def test_a_stage_that_ended_while_it_was_moved_aside_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.make()

    def die(folder: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_cli.freshness.move_aside", die)
    with pytest.raises(KeyboardInterrupt):
        world.make(seed=1)
    assert world.judge(seed=1) == (Need.RUN, "interrupted")
    assert Path("out/it/model.safetensors").exists()


def test_a_project_that_was_moved_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    World().make()
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    shutil.rmtree(tmp_path)
    monkeypatch.chdir(tmp_path.with_name("moved"))
    assert World().judge() == (Need.NOTHING, "unchanged")


def test_a_folder_that_is_not_as_it_was_left_is_asked_about_or_made_again() -> None:
    world = World()
    world.make()
    model, text = Path("out/it/model.safetensors"), "in out/it"
    model.write_text("others.")
    assert world.judge() == (Need.ASK, f"model.safetensors {text} was changed since it ended")
    Path("out/it/added.json").touch()
    assert world.judge() == (Need.ASK, f"added.json, model.safetensors {text} were changed since it ended")
    model.unlink()
    assert world.judge() == (Need.RUN, f"model.safetensors {text} is gone")
    shutil.rmtree("out/it")
    assert world.judge() == (Need.RUN, "out/it is gone")


def test_a_foreign_folder_is_never_moved() -> None:
    world = World()
    Path("out/it").mkdir(parents=True)
    Path("out/it/notes.txt").write_text("mine")
    assert world.judge() == (Need.ASK, "out/it holds what this pipeline has not made")
    with pytest.raises(RecipeError, match="so it is left alone"):
        world.judge(redo=True)
    assert [path.name for path in Path("out").iterdir()] == ["it"]


@pytest.mark.parametrize("kept", ["{", "[]", '{"stages": {}}', '{"stages": {"it": {}}, "hashes": {}}'])
def test_a_damaged_state_is_told(kept: str) -> None:
    Path("out/rlhf").mkdir(parents=True)
    Path("out/rlhf/pipeline.json").write_text(kept)
    with pytest.raises(EnvironmentFault, match="what became of the stages cannot be read"):
        State(RunDir(Path("out")))

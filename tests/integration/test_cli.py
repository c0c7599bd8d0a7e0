"""The command line as a user meets it: help, streams, exit codes, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import __version__
from rlhf_cli.generate import read_prompts
from tests.golden_files import assert_golden

COMMANDS = [
    "",
    "sft",
    "train-reward",
    "dpo",
    "eval",
    "score",
    "check",
    "schema",
    "init",
    "doctor",
    "generate",
    "runs",
    "run",
    "demo",
]
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "bitsandbytes")


def run_process(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as from a shell."""
    return subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, tmp_path: Path) -> None:
    done = run_process(*command.split(), "-h", COLUMNS="100", TERM="dumb")
    assert done.returncode == 0
    assert done.stderr == ""
    text = "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"
    assert_golden(f"help/{command or 'rlhf'}.txt", text, folder=tmp_path)


def test_version() -> None:
    assert run_process("--version").stdout == f"rlhf-cli {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code"), [(("stf",), 2), (("sft",), 2), (("check", "x.yaml", "--format", "xml"), 2)]
)
def test_usage_errors_go_to_stderr(arguments: tuple[str, ...], code: int) -> None:
    done = run_process(*arguments)
    assert done.returncode == code
    assert done.stderr
    assert not done.stdout


@pytest.mark.parametrize("arguments", [("check", "recipe.yaml"), ("schema", "sft"), ("sft", "-h"), ("sft", "no.yaml")])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: sft\nmodel_name_or_path: m\ndataset_name: d\nlr: 1\n")
    code = (
        "import sys, atexit\nfrom rlhf_cli.cli import main\n"
        f"sys.argv = ['rlhf', *{list(arguments)!r}]\n"
        f"atexit.register(lambda: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules]))\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_stdout_has_results_and_stderr_has_talk(write_recipe: Callable[..., Path], rlhf: Callable[..., Any]) -> None:
    path = str(write_recipe(lr=1e-5))
    done = rlhf("check", path, "--method", "sft", "--format", "json")
    assert done.code == 2
    assert done.err == ""
    answer = json.loads(done.out)
    assert answer["ok"] is False
    (problem,) = answer["recipes"][0]["problems"]
    assert (problem["line"], problem["column"], problem["fix"]) == (9, 1, "did you mean `learning_rate`?")
    github = rlhf("check", path, "--method", "sft", "--format", "github")
    assert github.out == f"::error file={path},line=9,col=1::unknown key `lr` (did you mean `learning_rate`?)\n"


def test_check_takes_many_files_and_the_worst_code_counts(
    write_recipe: Callable[..., Path], rlhf: Callable[..., Any]
) -> None:
    good, bad = write_recipe("good.yaml", method="sft"), write_recipe("bad.yaml", method="sft", lora_rr=1)
    assert rlhf("check", str(good)).code == 0
    done = rlhf("check", str(good), str(bad))
    assert done.code == 2
    assert "ok " in done.err
    assert "did you mean `lora_r`?" in done.err


def test_check_without_a_method_says_how_to_name_one(
    write_recipe: Callable[..., Path], rlhf: Callable[..., Any]
) -> None:
    done = rlhf("check", str(write_recipe()))
    assert done.code == 2
    assert "add `method: …`, one of dpo, eval, ppo, sft, train-reward, or pass `--method`" in done.err


def test_resolved_names_the_line_of_every_value(write_recipe: Callable[..., Path], rlhf: Callable[..., Any]) -> None:
    base = write_recipe("base.yaml", learning_rate=0.5)
    top = write_recipe("top.yaml", **{**dict.fromkeys(_keys(base)), "extends": "base.yaml", "max_steps": 7})
    done = rlhf("check", str(top), "--method", "sft", "--resolved")
    assert "learning_rate: 0.5" in done.out
    lines = {line.split(":")[0]: line.rpartition("# ")[2] for line in done.out.splitlines()}
    assert lines["learning_rate"].startswith(f"{base}:")
    assert lines["max_steps"].startswith(f"{top}:")


def _keys(path: Path) -> list[str]:
    return [line.split(":")[0] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipe.yaml", "--learning_rate", "0.5"),
        ("recipe.yaml", "--learning-rate", "0.5"),
        ("recipe.yaml", "--learning-rate=0.5"),
        ("recipe.yaml", "learning_rate=0.5"),
        ("--learning_rate", "0.5", "recipe.yaml"),
        ("--packing", "recipe.yaml", "learning_rate=0.5"),
        ("--use_peft", "1", "recipe.yaml", "learning_rate=0.5", "--load_in_4bit", "0"),
        ("recipe.yaml", "learning_rate=0.5", "--lora_target_modules", "[q_proj, v_proj]", "--packing"),
    ],
)
def test_any_key_can_be_given_on_the_command_line(
    arguments: tuple[str, ...], write_recipe: Callable[..., Path], rlhf: Callable[..., Any]
) -> None:
    write_recipe()
    done = rlhf("sft", *arguments, "--dry-run", "--json")
    assert done.code == 0, done.err
    settings = json.loads(done.out)["settings"]
    assert settings["learning_rate"] == 0.5
    assert settings.get("packing", False) is ("--packing" in arguments)
    assert settings.get("lora_target_modules") in (None, ["q_proj", "v_proj"])


def test_init_writes_a_recipe_that_passes(rlhf: Callable[..., Any], tmp_path: Path, tiny_base: Path) -> None:
    assert rlhf("init", "sft", "--out", "first.yaml", "--model", str(tiny_base), "--data", "rows.jsonl").code == 0
    assert rlhf("check", "first.yaml").code == 0
    again = rlhf("init", "sft", "--out", "first.yaml")
    assert again.code == 2
    assert "the file is there already" in again.err


def test_an_initial_recipe_trains(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path, tiny_base: Path
) -> None:
    write_recipe()  # for its rows
    assert rlhf("init", "sft", "--model", str(tiny_base), "--data", "rows.jsonl").code == 0
    done = rlhf("sft", "sft.yaml", "--max_length", "128")
    assert done.code == 0, done.err
    assert (tmp_path / "runs/sft/adapter_model.safetensors").exists()


def test_schema_search_puts_names_first(rlhf: Callable[..., Any]) -> None:
    done = rlhf("schema", "sft", "--search", "learning")
    assert done.out.startswith("learning_rate: number  (default 2e-05)\n    The initial learning rate for AdamW.\n")
    assert rlhf("schema", "sft", "--search", "qqqq").code == 2
    schema = json.loads(rlhf("schema", "sft", "--json").out)
    assert schema["properties"]["packing_strategy"]["enum"] == ["bfd", "bfd_split", "wrapped"]
    assert "cosine" in schema["properties"]["lr_scheduler_type"]["enum"]


def test_check_data_shows_what_carries_loss(rlhf: Callable[..., Any], write_recipe: Callable[..., Path]) -> None:
    done = rlhf("check", str(write_recipe()), "--method", "sft", "--data")
    assert done.code == 0, done.err
    assert "40 rows as alpaca" in done.out
    assert "⟦" in done.out
    answer = done.out[done.out.index("⟦") + 1 : done.out.rindex("⟧")].split("⟧:")[-1].rpartition("⟦")[2]
    assert answer.endswith("<|end|>")
    data = json.loads(rlhf("check", "recipe.yaml", "--method", "sft", "--data", "--json").out)
    found = data["recipes"][0]["data"]["tokens"]
    assert found["counts"]["train"]["read"] == 40
    assert "".join(text for text, _ in found["example"]).count("###") == 2


def test_check_rows_needs_neither_model_nor_torch(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(model_name_or_path="./nowhere", test_split_size=0.1)
    script = (
        "import sys; from rlhf_cli import cli\n"
        "try: cli.app(['check', sys.argv[1], '--method', 'sft', '--rows', '--format', 'json'])\n"
        "finally: print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("[]\n")
    [outcome] = json.loads(done.stdout)["recipes"]
    assert outcome["data"]["rows"] == {"train": 36, "test": 4}
    assert outcome["data"]["findings"] == []


def test_check_rows_shows_what_was_found_before_it_refuses(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], rows_file: Path
) -> None:
    lines = rows_file.read_text().splitlines()
    rows_file.write_text("\n".join([*lines, lines[0], '{"instruction": ""}']) + "\n")
    done = rlhf("check", str(write_recipe()), "--method", "sft", "--rows")
    assert done.code == 4
    assert "1 duplicate rows (" in done.out
    assert "rows.jsonl:41)" in done.out
    assert "rows.jsonl:42: the column output of alpaca is missing" in done.err


def test_check_data_finds_oddities_of_tokenizer_and_text(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], rows_file: Path, tiny_chat: Path
) -> None:
    row = {"instruction": "Say <|im_end|> twice.", "output": "<|im_end|><|im_end|>"}
    rows_file.write_text(rows_file.read_text() + json.dumps(row) + "\n")
    recipe = write_recipe(model_name_or_path=str(tiny_chat), max_length=24)
    done = rlhf("check", str(recipe), "--method", "sft", "--data", "--format", "json")
    tokens = json.loads(done.out)["recipes"][0]["data"]["tokens"]
    counts = {finding["name"]: finding["count"] for finding in tokens["findings"]}
    assert counts["tokenizer with pad = eos"] == 1
    assert counts["rows that spell a special token"] == 1
    assert counts["truncated rows"] == tokens["counts"]["train"]["truncated"] > 0


def test_doctor_names_device_and_versions(rlhf: Callable[..., Any]) -> None:
    report = json.loads(rlhf("doctor", "--json").out)
    assert report["device"].startswith(("cpu", "cuda", "mps"))
    assert report["trl"].startswith("1.16")


def test_generate_asks_rows_of_any_layout(
    rlhf: Callable[..., Any], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"instruction": "Add", "context": "2+2", "response": "4"},
        {"instruction": "Add", "context": "", "response": "?"},
    ]
    (tmp_path / "dolly.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.jsonl").write_text('"What is it?"\n"And that?"\n')
    (tmp_path / "plain.jsonl").write_text('{"prompt": "A bee", "completion": " buzzes."}\n')
    asked = [as_asked(prompt) for prompt in read_prompts(tmp_path / "dolly.jsonl")]
    assert asked == ["Add\n\n2+2", "Add"]
    assert [as_asked(prompt) for prompt in read_prompts(tmp_path / "texts.jsonl")] == ["What is it?", "And that?"]
    assert read_prompts(tmp_path / "plain.jsonl") == ["A bee"]
    done = rlhf("generate", str(tiny_base), "--prompts", "dolly.jsonl", "--max-new-tokens", "4", "--json")
    assert done.code == 0, done.err
    assert [json.loads(line)["prompt"] for line in done.out.splitlines()] == asked
    (tmp_path / "bad.jsonl").write_text('{"prompt": null}\n{"prompt": [{"content": "x"}]}\n')
    bad = rlhf("generate", str(tiny_base), "--prompts", "bad.jsonl")
    assert bad.code == 4
    assert "bad.jsonl:1: " in bad.err
    assert "bad.jsonl:2: " in bad.err


def as_asked(prompt: Any) -> str:
    [turn] = prompt
    assert turn["role"] == "user"
    return str(turn["content"])


def test_generate_samples_at_a_temperature(rlhf: Callable[..., Any], tiny_base: Path) -> None:
    def ask(*arguments: str) -> str:
        done = rlhf("generate", str(tiny_base), "--prompt", "x", "--max-new-tokens", "16", *arguments)
        assert done.code == 0, done.err
        return str(done.out)

    assert ask() == ask()
    warm = ask("--temperature", "1.5", "--seed", "1")
    assert warm == ask("--temperature", "1.5", "--seed", "1")
    assert len({ask(), warm, ask("--temperature", "1.5", "--seed", "2")}) == 3


def test_generate_refuses_what_it_cannot_ask(rlhf: Callable[..., Any], tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Wie heißt du?\n".encode("latin-1"))
    foreign = rlhf("generate", str(tiny_base), "--prompts", "latin.txt")
    assert (foreign.code, "latin.txt: the file is not UTF-8" in foreign.err) == (4, True), foreign.err
    assert rlhf("generate", str(tiny_base)).code == 2
    assert rlhf("generate", "org/nowhere", "--prompt", "x").code == 5
    no_baseline = rlhf("generate", str(tiny_base), "--prompt", "x", "--baseline")
    assert no_baseline.code == 2
    assert "does not say what it was trained from" in no_baseline.err


def test_recipes_are_completed(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe("alpha.yaml")
    done = run_process(cwd=tmp_path, _RLHF_COMPLETE="complete_bash", COMP_WORDS="rlhf sft al", COMP_CWORD="2")
    assert "alpha.yaml" in done.stdout


def test_a_real_process_stops_on_ctrl_c_with_130(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    import signal
    import time

    write_recipe(max_steps=5000, save_strategy="no")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_cli", "sft", "recipe.yaml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    seen = [process.stderr.readline()]
    while "step 1/" not in seen[-1] and seen[-1]:
        seen.append(process.stderr.readline())
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    with process.stderr:
        rest = process.stderr.read()
    assert process.wait(timeout=30) == 130, rest
    assert "--resume" in rest

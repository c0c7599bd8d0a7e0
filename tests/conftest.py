"""Real tiny models, real rows, and the command line run as a user would, in a forked process.

Importing TRL takes seconds, so the test process does it once; each run forks from it. A fork is a process of its own:
it is killed, stopped by signals and read for its exit code like any other.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch in a new thread of a forked process finds no thread pool

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)  # before any fork: a pool of threads does not survive one
    import trl.trainer.sft_trainer

    import rlhf_cli.findings
    import rlhf_cli.generate
    import rlhf_cli.train
    from rlhf_cli import cli
    from rlhf_cli.demo import INSTRUCTIONS
    from rlhf_cli.demo.tiny import build_tiny_model

gc.collect()
gc.freeze()  # what TRL has left need not be looked through again by every fork

assert trl.trainer.sft_trainer
assert rlhf_cli.findings
assert rlhf_cli.generate
assert rlhf_cli.train

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Outcome:
    """What a finished command left behind."""

    code: int
    """The exit code; negative for the signal that killed it."""
    out: str
    err: str
    elapsed_s: float


class Command:
    """A running `rlhf …`."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, memory: int | None = None) -> None:
        self._logs = [folder / f".{name}-{time.monotonic_ns()}" for name in ("stdout", "stderr")]
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            if memory is not None:
                held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
            _run_child(arguments, folder, self._logs)

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def err(self) -> str:
        return self._logs[1].read_text() if self._logs[1].exists() else ""

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        limit = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > limit:
                self.send(signal.SIGKILL)
                raise TimeoutError(self.err())
            time.sleep(0.005)

    def wait(self, timeout_s: float = 120) -> Outcome:
        limit = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > limit:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(self.err())
            time.sleep(0.005)
        out, err = (log.read_text() for log in self._logs)
        for log in self._logs:
            log.unlink()
        return Outcome(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self._started)


def _run_child(arguments: tuple[str, ...], folder: Path, logs: list[Path]) -> None:
    code = 1
    try:
        os.chdir(folder)
        for number, log in enumerate(logs, 1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        warnings.resetwarnings()
        sys.argv = ["rlhf", *arguments]
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may touch the home folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.delenv("RLHF_DEBUG", raising=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start `rlhf …` in the test's folder; with `memory`, it may take that many bytes more than it holds already."""
    commands: list[Command] = []

    def run(*arguments: str, memory: int | None = None) -> Command:
        commands.append(Command(arguments, tmp_path, memory))
        return commands[-1]

    yield run
    for command in commands:
        try:
            command.send(signal.SIGKILL)
            os.waitpid(command.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.fixture
def rlhf(start: Callable[..., Command]) -> Callable[..., Outcome]:
    """Run `rlhf …` in the test's folder, to its end."""
    return lambda *arguments: start(*arguments).wait()


@pytest.fixture(scope="session")
def instructions() -> list[dict[str, str]]:
    """The bundled question and answer rows."""
    return [json.loads(line) for line in INSTRUCTIONS.read_text().splitlines()]


def _texts() -> list[str]:
    return [" ".join(json.loads(line).values()) for line in INSTRUCTIONS.read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained base model without a chat template."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_tiny_model(tmp_path_factory.mktemp("models") / "base", _texts())


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained chat model whose template has no generation marks, and whose pad token is its end token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = build_tiny_model(
            tmp_path_factory.mktemp("models") / "chat",
            _texts(),
            special_tokens=("<|im_start|>", "<|im_end|>"),
            chat_template=CHATML,
        )
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path, instructions: list[dict[str, str]]) -> Path:
    """Forty rows, Alpaca's columns."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in instructions[:40]))
    return path


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_base: Path, rows_file: Path) -> Callable[..., Path]:
    """Write a recipe that trains the tiny base model for a few steps; keys given replace or, as None, remove."""

    def write(name: str = "recipe.yaml", **keys: Any) -> Path:
        values: dict[str, Any] = {
            "model_name_or_path": str(tiny_base),
            "dataset_name": str(rows_file),
            "max_length": 64,
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "output_dir": "run",
            **keys,
        }
        values.setdefault("report", False)
        path = tmp_path / name
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in values.items() if value is not None]
        path.write_text("".join(lines))
        return path

    return write


@pytest.fixture
def pairs_file(tmp_path: Path, instructions: list[dict[str, str]]) -> Path:
    """Forty preferences in conversations: of two answers to a question, the one to another question is the worse."""
    rows = [
        {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "chosen": [{"role": "assistant", "content": row["output"]}],
            "rejected": [{"role": "assistant", "content": other["output"]}],
        }
        for row, other in zip(instructions[:40], instructions[40:80], strict=True)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def write_pairs_recipe(write_recipe: Callable[..., Path], pairs_file: Path) -> Callable[..., Path]:
    """The same recipe on preferences."""
    return lambda name="pairs.yaml", **keys: write_recipe(name, **{"dataset_name": str(pairs_file), **keys})


REWARDS = """
def share_of_e(completions, **columns):
    texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [text.count("e") / max(1, len(text)) for text in texts]
"""


@pytest.fixture
def write_ppo_recipe(
    write_recipe: Callable[..., Path], tmp_path: Path, instructions: list[dict[str, str]]
) -> Callable[..., Path]:
    """A recipe of two rollouts of eight episodes, each trained on twice, on the questions of ten rows."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    prompts = "".join(json.dumps({"prompt": row["instruction"]}) + "\n" for row in instructions[:10])
    (tmp_path / "prompts.jsonl").write_text(prompts)
    shared = {
        "dataset_name": "prompts.jsonl", "reward_funcs": "rewards.py:share_of_e", "max_length": None, "max_steps": None,
        "response_length": 12, "num_ppo_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "total_episodes": 16,
    }  # fmt: skip
    return lambda name="ppo.yaml", **keys: write_recipe(name, **{**shared, **keys})


@pytest.fixture
def longer_is_better(tmp_path: Path, instructions: list[dict[str, str]]) -> Path:
    """Eighty preferences whose chosen answer says more, whatever it says."""
    rows = []
    for index in range(80):
        answers = [instructions[index + 80 * number]["output"] for number in range(4)]
        rows.append({"prompt": instructions[index]["instruction"], "chosen": " ".join(answers), "rejected": answers[1]})
    messages = [
        {"prompt": [{"role": "user", "content": row["prompt"]}],
         **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}}
        for row in rows
    ]  # fmt: skip
    path = tmp_path / "longer.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in messages))
    return path

"""Keys and parts whose effect is easily lost: each is looked at where it shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig

from rlhf_cli.data import encode_rows
from rlhf_cli.demo.tiny import build_tiny_model
from rlhf_cli.machine import quietly
from rlhf_cli.measure import Batch, measure_model
from rlhf_cli.methods import METHODS
from rlhf_cli.methods.base import trained
from rlhf_cli.models import load_model
from rlhf_cli.plan import POLICY
from rlhf_cli.prepare import prepare
from rlhf_cli.processes import take_one_gpu
from rlhf_cli.recipe import read_recipe
from rlhf_cli.render import Tokens
from rlhf_cli.writing import write_text

BATCH = Batch(rows=1, tokens=8, packed=False, compute=torch.float32, device="cpu")


def run_process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the libraries read these variables as they are imported."""
    return subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *arguments],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("launched", "visible", "left"),
    [(False, None, "0"), (False, "2,3", "2"), (False, "", ""), (True, "2,3", "2,3"), (True, None, None)],
)
def test_one_process_takes_one_gpu(
    launched: bool, visible: str | None, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2" if launched else None), ("CUDA_VISIBLE_DEVICES", visible)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("RLHF_MARKER", "1")
    take_one_gpu()
    now = os.environ.get("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that what was set is undone
    assert now == left


def test_check_data_shows_no_control_characters(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], rows_file: Path
) -> None:
    rows_file.write_text(json.dumps({"prompt": "a \x1b[2J b", "completion": "c \x1b]0;x\x07 d"}) + "\n")
    outcome = rlhf("check", str(write_recipe()), "--method", "sft", "--data")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out + outcome.err
    assert "\\x1b" in outcome.out


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "before"


def test_rows_are_encoded_by_as_many_processes_as_asked(write_recipe: Callable[..., Path]) -> None:
    class Renderer:
        def encode(self, row: Any) -> Tokens:
            return Tokens(input_ids=[os.getpid()], labels=[1])

    rows = Dataset.from_list([{"row": number, "where": f"a:{number}"} for number in range(8)])
    for wanted, expected in ((None, {os.getpid()}), (2, 2)):
        recipe = read_recipe(write_recipe(dataset_num_proc=wanted), method="sft")
        with quietly():
            encoded = encode_rows(rows, Renderer(), recipe)  # type: ignore[arg-type]
        seen = {example["input_ids"][0] for example in encoded.dataset}
        assert expected in (seen, len(seen))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_and_arguments_reach_the_model(
    attention: str, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(use_cpu=True, attn_implementation=attention, model_init_kwargs={"num_hidden_layers": 1})
    recipe = read_recipe(path, method="sft")
    prepared = prepare(recipe, METHODS[0])
    model = load_model(recipe, prepared.plan, prepared.material.source, prepared.material.tokenizer).model
    assert model.config._attn_implementation == attention
    assert len(model.model.layers) == 1
    size = measure_model(recipe, trained(POLICY, recipe, prepared.material.source), "float32", BATCH)
    assert size.trainable == sum(parameter.numel() for parameter in model.parameters())
    assert size.layers == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_planned_as_large_as_they_are(
    bits: int, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(
        write_recipe(use_cpu=True, use_peft=True, dtype="bfloat16", **{f"load_in_{bits}bit": True}), method="sft"
    )
    prepared = prepare(recipe, METHODS[0])
    model = load_model(recipe, prepared.plan, prepared.material.source, prepared.material.tokenizer).model
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    planned = measure_model(recipe, trained(POLICY, recipe, prepared.material.source), "bfloat16", BATCH).frozen_bytes
    # The scales of the blocks are no parameters: up to an eighth on top.
    assert frozen <= planned <= 1.15 * frozen


def two_revisions(cache: Path) -> None:
    """A Hub cache with two revisions of one model, of two and of one layer."""
    for number, revision in enumerate(("main", "small")):
        commit = str(number) * 40
        folder = cache / "models--org--tiny"
        build_tiny_model(folder / "snapshots" / commit, ["one text"])
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        if revision == "small":
            config = folder / "snapshots" / commit / "config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))


@pytest.mark.slow
def test_a_revision_is_the_one_that_trains(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    two_revisions(tmp_path / "cache")
    write_recipe(model_name_or_path="org/tiny", model_revision="small", max_steps=1, save_strategy="no")
    done = run_process(tmp_path, "sft", "recipe.yaml", HF_HUB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert AutoConfig.from_pretrained(tmp_path / "run").num_hidden_layers == 1


OWN_CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_of_a_model_runs_only_where_it_is_trusted(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path, tiny_base: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "mine")
    (tmp_path / "mine/mine.py").write_text(OWN_CODE)
    config = json.loads((tiny_base / "config.json").read_text())
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": classes}
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    write_recipe(model_name_or_path="./mine", max_steps=1, save_strategy="no")
    home = {"HF_HOME": str(tmp_path / "hf")}
    refused = rlhf("sft", "recipe.yaml")
    assert refused.code == 2, refused.err
    trusted = run_process(tmp_path, "sft", "recipe.yaml", "--trust_remote_code", **home)
    assert trusted.returncode == 0, trusted.stderr


# --- the Hub ------------------------------------------------------------------------------------------------------


class FakeHub(BaseHTTPRequestHandler):
    """Lets a repository be made, and takes no file."""

    asked: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(self.path)
        made = self.path == "/api/repos/create"
        body = json.dumps(
            {"url": f"http://{self.headers['Host']}/org/x", "name": "org/x"} if made else {"error": "no"}
        ).encode()
        self.send_response(200 if made else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (FakeHub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_that_the_hub_refuses_is_saved(
    hub: tuple[str, list[str]], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    url, asked = hub
    write_recipe(max_steps=1, save_strategy="no", push_to_hub=True, hub_model_id="org/x", hub_strategy="end")
    done = run_process(
        tmp_path, "sft", "recipe.yaml", "--hub_token", "hf_" + "x" * 20, HF_ENDPOINT=url, HF_HUB_OFFLINE="0"
    )
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "the model is trained and saved in run" in done.stderr
    assert (tmp_path / "run/model.safetensors").exists()
    assert [path for path in asked if "create" not in path]


@pytest.mark.slow
def test_a_hub_out_of_reach_ends_a_run_before_it_trains(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_recipe(push_to_hub=True, hub_model_id="org/x", hub_token="hf_" + "x" * 20)
    done = run_process(tmp_path, "sft", "recipe.yaml", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/rlhf/metrics.jsonl").exists()


def test_an_evaluation_leaves_4_bit_weights_with_a_gradient(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained below a 4-bit layer learns through it, also after the first pass without gradients."""
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(write_recipe(use_cpu=True, use_peft=True, load_in_4bit=True), method="sft")
    prepared = prepare(recipe, METHODS[0])
    model = load_model(recipe, prepared.plan, prepared.material.source, prepared.material.tokenizer).model
    embeddings = model.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model.train()
        model(input_ids=torch.arange(8)[None]).logits.float().square().mean().backward()
        gradients.append(embeddings.weight.grad.clone())
        model.eval()
        with torch.no_grad():
            model(input_ids=torch.arange(8)[None])
    assert torch.equal(*gradients)

"""The README's example of PPO without the command line, run as it stands on a model that is here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_example_trains(tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    small = 'PPOConfig("ppo", max_steps=5, response_length=4, use_cpu=True, report_to="none", disable_tqdm=True)'
    code = (
        found.group(1).replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_chat)).replace('PPOConfig("ppo")', small)
    )
    assert "max_steps=5" in code
    space: dict[str, object] = {}
    exec(code, space)
    trainer = space["trainer"]
    log = next(log for log in trainer.state.log_history if "objective/scores" in log)
    assert -4 <= log["objective/scores"] <= -1
    assert log["objective/kl"] == 0
    told = README.read_text()
    assert [name for name in log if "/" in name and not name.startswith("rewards/") and f"`{name}`" not in told] == []

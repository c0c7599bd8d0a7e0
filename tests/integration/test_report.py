"""The page of a run or an evaluation: whole, harmless, and readable in a real browser."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.report import write_report
from tests.browser import CHROMIUM, WHY_NOT, open_browser

EVIL = "<script>document.title='pwned'</script></style></script>\"'><img src=x onerror=\"document.title='pwned'\">"
ODD = "\x00\x1b[31m\ud800\u202e\uffff"


class Page(HTMLParser):
    """What a reader's program finds on a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action"):
                self.addresses.append(str(value))
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.words += data

    def check(self, *sections: str) -> None:
        assert set(sections) <= set(self.ids), set(sections) - set(self.ids)
        assert len(self.ids) == len(set(self.ids)), "ids are said twice"
        assert self.tags["script"] == 1
        assert self.tags["style"] == 1
        assert not self.handlers
        assert all(address.startswith(("#", "data:")) for address in self.addresses), self.addresses
        assert "url(http" not in self.html
        assert "default-src 'none'" in self.html
        assert not re.search(r"#0102[0-9a-f]{2}", self.html), "a colour was left unchosen"
        assert len(self.html.encode()) < 2_000_000


HELD_OUT = {"eval_strategy": "steps", "eval_steps": 2, "test_split_size": 8, "report": True}


@pytest.mark.parametrize(
    ("method", "keys", "words"),
    [
        ("sft", {"eval_on_start": True}, ["On 8 held-out rows the loss goes from", "before training", "Learning rate"]),
        ("train-reward", {"max_steps": 2}, ["“The longer answer wins”", "Why it is not good", "Junk that scores"]),
        ("dpo", {}, ["Of 8 held-out pairs", "Rewards of both answers", "likelihood displacement"]),
        ("ppo", {"test_split_size": 4}, ["On 4 held-out prompts", "KL from the reference", "Clipped tokens"]),
    ],
)  # fmt: skip
def test_every_kind_of_run_ends_in_a_page(  # noqa: PLR0917
    method: str,
    keys: dict[str, Any],
    words: list[str],
    rlhf: Callable[..., Any],
    write_recipe: Callable[..., Path],
    write_pairs_recipe: Callable[..., Path],
    write_ppo_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write = {"sft": write_recipe, "ppo": write_ppo_recipe}.get(method, write_pairs_recipe)
    done = rlhf(method, str(write(**{**HELD_OUT, **keys})))
    assert done.code == 0, done.err
    assert done.err.rstrip().endswith("report: run/report.html")
    page = Page(tmp_path / "run" / "report.html")
    page.check(
        "verdict", "training", "recipe", "data", "environment", "again", *(["card"] if method == "train-reward" else [])
    )
    for each in words:
        assert each in page.words, each
    assert f"rlhf {method} " in page.words
    assert ("samples" in page.ids) == (method == "ppo")
    assert page.tags["figure"] >= 4
    assert page.html.count("<svg viewBox") == page.tags["figure"]
    assert "done" in page.words
    assert "<strong><code>run</code></strong>" in page.html, "output_dir is no default"
    assert re.search(r"<td[^>]*><code>adam_beta1</code>", page.html), "a default is not shown"


def test_a_run_that_misses_a_gate_or_is_stopped_has_a_page_and_one_that_asks_for_none_has_none(
    rlhf: Callable[..., Any],
    write_pairs_recipe: Callable[..., Path],
    write_ppo_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    gates = [{"metric": "accuracy", "min": 1.0, "bound": "ci_low"}]
    recipe = write_pairs_recipe(max_steps=1, test_split_size=8, report=True, gates=gates, output_dir="gated")
    missed = rlhf("train-reward", str(recipe))
    assert missed.code == 3
    page = Page(tmp_path / "gated" / "report.html")
    assert "done, but a gate was not met" in page.words
    assert "gate accuracy (ci_low) asks min 1" in page.words
    keys = {
        "learning_rate": 0.05,
        "stop_at_kl": 0.5,
        "num_ppo_epochs": 1,
        "total_episodes": 80,
        "output_dir": "stopped",
    }
    stopped = rlhf("ppo", str(write_ppo_recipe(**keys, report=True)))
    assert stopped.code == 6
    assert "report: stopped/report.html" in stopped.err
    assert "beyond `stop_at_kl: 0.5`" in Page(tmp_path / "stopped" / "report.html").words
    assert rlhf("ppo", str(write_ppo_recipe(output_dir="silent"))).code == 0
    assert not (tmp_path / "silent" / "report.html").exists()


def test_a_page_that_cannot_be_drawn_is_told_of_and_the_run_is_done_all_the_same(
    rlhf: Callable[..., Any], write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "vl_convert.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    done = rlhf("sft", str(write_recipe(report=True)))
    assert done.code == 0
    assert "warning: no report is written: charts cannot be drawn here" in done.err
    assert json.loads((tmp_path / "run" / "rlhf" / "run.json").read_text())["status"] == "done"


# --- evaluations ----------------------------------------------------------------------------------------------------


def estimate(value: float, by: float = 0.1) -> dict[str, Any]:
    return {"value": value, "ci_low": value - by, "ci_high": value + by, "n": 60, "groups": 60}


def write_evaluation(folder: Path, *, prompts: int = 60, others: tuple[str, ...] = ("ppo", EVIL)) -> Path:
    """An evaluation of policies as `rlhf eval` leaves it, with hostile texts in every place that others write."""
    folder.mkdir()
    noise = random.Random(0)
    models = ["sft", *others]
    lines = []
    for number in range(prompts):
        answers = {
            name: {
                "response": f"answer {number} of a model {'x ' * noise.randint(1, 9)}{EVIL}{ODD}",
                "tokens": noise.randint(5, 60), "finished": number % 3 > 0, "kl": 3.0,
                "scores": {"rm": noise.gauss(0, 1), f"gold {EVIL}": noise.gauss(1, 1)},
            }
            for name in models
        }  # fmt: skip
        prompt = [{"role": EVIL, "content": f"{number} {EVIL}{ODD}"}] if number % 2 else f"{number} {EVIL}{ODD}"
        lines.append(json.dumps({"prompt": prompt, "answers": answers}))
    (folder / "answers.jsonl").write_text("\n".join(lines))
    contests = [
        {"model": name, "baseline": "sft", "judge": judge, "prompts": prompts, "wins": 40, "ties": 2, "losses": 18,
         "win_rate": estimate(0.68), "p": 0.004, "p_adjusted": 0.008, "length_controlled": None,
         "difference": estimate(0.4), "outcome": "better", "sentence": "better"}
        for name in others for judge in ("rm", f"gold {EVIL}")
    ]  # fmt: skip
    points = [
        {"name": f"checkpoint-{step}", "step": step, "kl": estimate(kl), "scores": {},
         "difference": {"rm": estimate(kl / 4), f"gold {EVIL}": estimate(0.5 - (kl - 4) ** 2 / 30)}}
        for step, kl in ((10, 1.0), (20, 4.0), (30, 9.0))
    ]  # fmt: skip
    found = {
        "kind": "policies", "baseline": "sft", "reference": None, "prompts": prompts, "left_out": 1,
        "sampling": {"response_length": 64, "temperature": 1.0, "seed": 42},
        "models": {
            name: {"path": f"runs/{name}", "numbers": {"tokens": estimate(31), "distinct_1": estimate(0.4)},
                   "rewards": {"rm": estimate(0.5)}, "openings": [[f"Well {EVIL}", 0.4]],
                   "trained_prompts": 7 if name == "ppo" else None}
            for name in models
        },
        "judges": [{"name": "rm", "kind": "reward model", "trained": ["ppo"]},
                   {"name": f"gold {EVIL}", "kind": "function", "trained": []}],
        "contests": contests,
        "verdicts": [{"model": "ppo", "outcome": "better", "sentence": f"ppo beats sft {EVIL}{ODD}"}],
        "frontier": {"run": "ppo", "judges": {"training": "rm", "held_out": f"gold {EVIL}"}, "points": points,
                     "best_of_n": [{"n": n, "kl": n / 9, "scores": {"rm": n / 4}} for n in (1, 2, 4)],
                     "best": "checkpoint-20"},
        "gates": [{"metric": "win_rate", "model": "ppo", "judge": "rm", "text": f"gate {EVIL}", "met": False}],
        "data": [{"name": f"prompts {EVIL}.jsonl", "layout": "prompt", "rows": 61}],
        "environment": {"python": "3.11"}, "argv": ["/bin/rlhf", "eval", f"r {EVIL}.yaml"],
        "recipe": {"method": "eval", "output_dir": EVIL}, "warnings": [f"a warning {EVIL}"],
    }  # fmt: skip
    (folder / "eval.json").write_text(json.dumps(found))
    return folder


def test_an_evaluation_of_policies_has_a_page_on_which_nothing_runs(tmp_path: Path) -> None:
    path = write_report(write_evaluation(tmp_path / "judged"))
    assert path == tmp_path / "judged" / "report.html"
    page = Page(path)
    page.check("verdict", "outcome", "scores", "samples", "numbers", "recipe", "data", "environment", "again")
    assert page.tags["img"] == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800]", page.html)
    for words in (
        "a warning <script>", "Win rate against sft", "hollow",
        "checkpoint-20", "✗ not met", "How answers begin", "Spearman", "better on", "40 of 60 answers",
    ):  # fmt: skip
        assert words in page.words, words
    assert page.words.index("a warning <script>") < page.words.index("Who wins"), "what spoils all numbers comes first"
    assert page.html.count("<article") == 40


def test_an_evaluation_with_one_model_and_no_judge_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    models = {"sft": {"numbers": {"tokens": estimate(3)}}}
    found = {"kind": "policies", "baseline": "sft", "prompts": 1, "models": models,
             "judges": [], "contests": [], "verdicts": [], "frontier": None, "gates": []}  # fmt: skip
    (folder / "eval.json").write_text(json.dumps(found))
    (folder / "answers.jsonl").write_text(
        json.dumps({"prompt": "p", "answers": {"sft": {"response": "r", "tokens": 1}}})
    )
    Page(write_report(folder) or Path()).check("verdict", "samples", "numbers")


def test_an_evaluation_of_a_reward_model_has_its_card(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], pairs_file: Path, tmp_path: Path
) -> None:
    assert rlhf("train-reward", str(write_pairs_recipe(max_steps=1, output_dir="rm"))).code == 0
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(f"reward_model_path: rm\ndataset_name: {pairs_file}\noutput_dir: judged\n")
    done = rlhf("eval", str(recipe))
    assert done.code == 0, done.err
    assert "report: judged/report.html" in done.err
    page = Page(tmp_path / "judged" / "report.html")
    page.check("verdict", "card", "environment")
    assert "40 held-out pairs" in page.words
    assert page.tags["figure"] >= 4
    assert rlhf("eval", str(recipe), "--report", "false", "--output_dir", "silent").code == 0
    assert not (tmp_path / "silent" / "report.html").exists()


def test_a_folder_that_holds_nothing_has_no_page(tmp_path: Path) -> None:
    assert write_report(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_page_of_a_damaged_run_tells_what_is_left(tmp_path: Path) -> None:
    own = tmp_path / "run" / "rlhf"
    own.mkdir(parents=True)
    (own / "run.json").write_text(json.dumps({"status": "failed", "method": "ppo", "reason": EVIL, "exit_code": 1}))
    (own / "metrics.jsonl").write_text('{"step": 1, "objective/scores": null}\n{"step": 2, "objec')
    page = Page(write_report(tmp_path / "run") or Path())
    page.check("verdict")
    assert "failed" in page.words
    assert "<script>document.title" in page.words


def test_a_fork_of_a_process_that_drew_can_draw(tmp_path: Path) -> None:
    write_report(write_evaluation(tmp_path / "one", prompts=5))
    write_evaluation(tmp_path / "two", prompts=5)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(write_report(tmp_path / "two") is None)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
def test_a_real_browser_shows_the_page_and_runs_nothing_on_it(tmp_path: Path) -> None:
    page = write_report(write_evaluation(tmp_path / "judged"))
    assert page is not None
    measure = "[...document.querySelectorAll('figure > svg')].map(e => [e.getBoundingClientRect().width, \
        e.getBoundingClientRect().height, e.querySelectorAll('path,line,rect').length])"
    light = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure > svg text')).fill"
    colours = {}
    with open_browser(tmp_path / "profile") as browser:
        for width, dark in ((1200, False), (1200, True), (400, False), (400, True)):
            browser.show(page, width=width, dark=dark)
            assert browser.ask("document.title").startswith("ppo")
            assert browser.ask("document.images.length") == 0
            charts = browser.ask(measure)
            assert len(charts) >= 10
            assert all(min(each) > 0 for each in charts), charts
            assert browser.ask("document.documentElement.scrollWidth") <= width
            colours[dark] = [sum(map(int, re.findall(r"\d+", browser.ask(each))[:3])) for each in (light, ink)]
        assert colours[False][0] > 600, "the paper is light by day"
        assert colours[True][0] < 200, "and dark by night"
        assert colours[False][1] < colours[True][1], "charts follow"
        browser.press("j")
        assert browser.ask("document.activeElement === document.querySelector('.sample')")
        browser.press("j")
        browser.press("k")
        assert browser.ask("document.activeElement === document.querySelector('.sample')")
        order = "[...document.querySelectorAll('.sample')].map(e => Number(e.dataset.length))"
        assert browser.ask(order) != sorted(browser.ask(order))
        browser.ask(
            "{const s = document.querySelector('select'); s.value = '-length'; s.dispatchEvent(new Event('change'))}"
        )
        assert browser.ask(order) == sorted(browser.ask(order))
        assert not browser.complaints, browser.complaints

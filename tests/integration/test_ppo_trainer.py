"""The PPOTrainer from Python: its numbers against a slow reference, and what they may not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from rlhf_cli.errors import RecipeError
from rlhf_cli.machine import detect_machine
from rlhf_cli.ppo import PPOConfig, PPOTrainer
from rlhf_cli.ppo.experience import Rollout
from rlhf_cli.ppo.model import PolicyWithValue, disable_dropout, make_batch
from rlhf_cli.ppo.rewards import Answer, FunctionReward, ModelReward, Rewards, Scale, load_function
from rlhf_cli.ppo.shared_reward import share_base
from rlhf_cli.reward_model import load_reward_model


def lora(*target: str) -> LoraConfig:
    """A new configuration each time: PEFT writes the model's name into it."""
    return LoraConfig(r=4, target_modules=list(target) or "all-linear", task_type="CAUSAL_LM")


def share_of_e(completions: list[str], **_: Any) -> list[float]:
    return [text.count("e") / max(1, len(text)) for text in completions]


@pytest.fixture
def trainer_of(tiny_chat: Path, tmp_path: Path, instructions: list[dict[str, str]]) -> Callable[..., PPOTrainer]:
    """A trainer of the chat model whose padding is its end token, which stands in its prompts too."""

    def build(*, model: Any = None, peft_config: Any = None, reward_funcs: Any = share_of_e, **keys: Any) -> PPOTrainer:
        tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
        policy = model or AutoModelForCausalLM.from_pretrained(tiny_chat, dtype=torch.float32)
        settings = {
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "response_length": 10,
            "total_episodes": 8, "num_ppo_epochs": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no",
            "disable_tqdm": True, "stop_token_id": list(range(40, 90)), **keys,
        }  # fmt: skip
        chat = AutoTokenizer.from_pretrained(tiny_chat).chat_template
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": row["instruction"]}], tokenize=False,
                                          chat_template=chat, add_generation_prompt=True)
            for row in instructions[:6]
        ]  # fmt: skip
        return PPOTrainer(
            policy,
            PPOConfig(output_dir=str(tmp_path / "out"), **settings),
            reward_funcs=reward_funcs,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return build


def rollout_of(trainer: PPOTrainer) -> Rollout:
    rollout = trainer.experience.collect(trainer.train_dataset, 0, kl_coef=trainer.kl_coef, processes=1)
    trainer._rollout = rollout
    trainer._cut(rollout)
    return rollout


def slow_log_probs(model: Any, prompt: list[int], response: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and hidden states of a response, one episode by itself, over all logits."""
    output = model(torch.tensor([[*prompt, *response]]), output_hidden_states=True)
    span = slice(len(prompt) - 1, -1)
    log_probs = (output.logits[0, span] / temperature).log_softmax(-1)
    return log_probs.gather(1, torch.tensor(response)[:, None])[:, 0], output.hidden_states[-1][0, span]


def stir(model: PolicyWithValue, seed: int) -> None:
    """Move everything that trains, so that policy and reference differ and values are not 0."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_number_is_that_of_a_slow_reference(
    temperature: float, trainer_of: Callable[..., PPOTrainer], tiny_chat: Path
) -> None:
    """From the papers, episode by episode and token by token: KL, rewards, advantages, returns, losses, clips."""
    settings = {
        "temperature": temperature, "kl_coef": 0.3, "gamma": 0.98, "lam": 0.9, "missing_eos_penalty": 0.7,
        "cliprange": 0.1, "cliprange_value": 0.05, "vf_coef": 0.2, "dual_clip": 2.0, "num_mini_batches": 1,
        "reward_clip_range": 0.5,
    }  # fmt: skip
    trainer = trainer_of(**settings)
    model, reference = trainer.model, AutoModelForCausalLM.from_pretrained(tiny_chat, dtype=torch.float32)
    stir(model, 1)
    rollout = rollout_of(trainer)
    advantages, returns, kls = [], [], []
    for episode in rollout.episodes:
        policy, hidden = slow_log_probs(model.policy, episode.prompt_ids, episode.response_ids, temperature)
        before, _ = slow_log_probs(reference, episode.prompt_ids, episode.response_ids, temperature)
        values = model.value_head(hidden)[:, 0].tolist()
        kl = (policy - before).tolist()
        score = min(0.5, max(-0.5, share_of_e([episode.text])[0])) - 0.7 * (not episode.finished)
        rewards = [-0.3 * each for each in kl]
        rewards[-1] += score
        values.append(0.0)
        running, found = 0.0, []
        for t in reversed(range(len(kl))):
            running = rewards[t] + 0.98 * values[t + 1] - values[t] + 0.98 * 0.9 * running
            found.insert(0, running)
        advantages += found
        returns += [a + v for a, v in zip(found, values, strict=False)]
        kls.append(sum(kl))
        assert episode.log_probs == pytest.approx(policy.detach().numpy(), abs=1e-5)
        assert episode.values == pytest.approx(values[:-1], abs=1e-5)
    assert rollout.metrics["objective/kl"] == pytest.approx(np.mean(kls), abs=1e-5)
    white = (np.array(advantages) - np.mean(advantages)) / math.sqrt(np.var(advantages) + 1e-8)
    assert np.concatenate([each.advantages for each in rollout.episodes]) == pytest.approx(white, abs=1e-4)
    assert np.concatenate([each.returns for each in rollout.episodes]) == pytest.approx(returns, abs=1e-5)

    check_the_update(trainer, rollout, white, returns, temperature)


def check_the_update(trainer: PPOTrainer, rollout: Rollout, white: Any, returns: Any, temperature: float) -> None:
    """The losses of the second epoch, at weights that have moved, so that the ratio is not 1 any more."""
    model = trainer.model
    stir(model, 2)
    trainer._statistics.begin_rollout()
    losses = []
    for micro in range(2, 4):  # the second epoch
        losses.append(float(trainer.compute_loss(model, trainer._prepare_inputs({"micro_step": micro})).detach()))
    policy_loss, value_loss, clipped, value_clipped, count, place = 0.0, 0.0, 0, 0, len(white), 0
    for episode in rollout.episodes:
        now, hidden = slow_log_probs(model.policy, episode.prompt_ids, episode.response_ids, temperature)
        values = model.value_head(hidden)[:, 0].tolist()
        for t, log_prob in enumerate(now.tolist()):
            ratio, advantage = math.exp(log_prob - episode.log_probs[t]), white[place]
            plain, held = -advantage * ratio, -advantage * min(1.1, max(0.9, ratio))
            loss = max(plain, held)
            is_clipped = held > plain
            if advantage < 0 and loss > -2 * advantage:
                loss, is_clipped = -2 * advantage, True
            policy_loss, clipped = policy_loss + loss, clipped + is_clipped
            old = float(episode.values[t])
            near = old + min(0.05, max(-0.05, values[t] - old))
            off, off_near = (values[t] - returns[place]) ** 2, (near - returns[place]) ** 2
            value_loss, value_clipped = value_loss + max(off, off_near) / 2, value_clipped + (off_near > off)
            place += 1
    assert sum(losses) == pytest.approx((policy_loss + 0.2 * value_loss) / count, abs=1e-4)
    told = trainer._statistics.latest
    assert told["policy/clipfrac_avg"] == pytest.approx(clipped / count, abs=2 / count)
    assert told["val/clipfrac_avg"] == pytest.approx(value_clipped / count, abs=2 / count)
    assert told["loss/policy_avg"] == pytest.approx(policy_loss / count, abs=1e-4)
    assert told["loss/value_avg"] == pytest.approx(value_loss / count, abs=1e-4)
    assert clipped > 0
    assert value_clipped > 0


def gradients(trainer: PPOTrainer, micro_steps: int) -> dict[str, Tensor]:
    trainer.model.zero_grad()
    for micro in range(micro_steps):
        trainer.compute_loss(trainer.model, trainer._prepare_inputs({"micro_step": micro})).backward()
    return {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}


def test_the_gradient_does_not_depend_on_how_a_minibatch_is_cut(trainer_of: Callable[..., PPOTrainer]) -> None:
    """Of responses of unequal length: a mean over micro-batches of their means would."""
    found = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        keys = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "entropy_coef": 0.1}
        trainer = trainer_of(peft_config=lora(), **keys)
        stir(trainer.model, 1)
        rollout = rollout_of(trainer)
        assert len({len(episode.response_ids) for episode in rollout.episodes}) > 2
        found.append(gradients(trainer, accumulation))
    assert found[0].keys() == found[1].keys()
    assert max(float(each.abs().max()) for each in found[0].values()) > 1e-3
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert torch.allclose(gradient, other[name], atol=1e-6), name


def test_padding_is_neither_seen_nor_scored(trainer_of: Callable[..., PPOTrainer]) -> None:
    """Alone or beside longer ones, with the end token in prompts, in responses and as padding."""
    trainer = trainer_of()
    stir(trainer.model, 1)
    end = trainer.processing_class.eos_token_id
    assert end == trainer.processing_class.pad_token_id
    prompts = [[3, end, 4, 5], [end, 6], [7, 8, 9, 10, 11, end, 12]]
    responses = [[13, end], [end], [14, 15, 16, 17, 18]]
    device = torch.device("cpu")
    together = trainer.model.score(make_batch(prompts, responses, device))
    start = 0
    for prompt, response in zip(prompts, responses, strict=True):
        alone = trainer.model.score(make_batch([prompt], [response], device))
        for name in ("log_probs", "entropy", "values"):
            assert getattr(alone, name).shape == (len(response),)
            part = getattr(together, name)[start : start + len(response)]
            assert torch.allclose(part, getattr(alone, name), atol=1e-5), name
        start += len(response)


def test_the_reference_is_what_the_policy_was(trainer_of: Callable[..., PPOTrainer], tiny_chat: Path) -> None:
    """A new adapter off, a trained one copied, weights copied; and asking it leaves the policy as it is."""
    taught = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_chat, dtype=torch.float32), lora())
    with torch.no_grad():
        for name, parameter in taught.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    batch = make_batch([[3, 4, 5], [6]], [[7, 8], [9, 10, 11]], torch.device("cpu"))
    for keys in ({}, {"peft_config": lora()}, {"model": taught}):
        trainer = trainer_of(**keys)
        model = trainer.model
        with torch.no_grad():
            before = model.score(batch).log_probs
            trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            stir(model, 3)
            after = model.score(batch).log_probs
            found = model.reference_log_probs(batch, trainer.experience.reference)
            assert torch.equal(found, before)
            assert not torch.allclose(after, before, atol=1e-3)
            assert torch.equal(model.score(batch).log_probs, after)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trains
        assert not any(".ref." in name or ".base_layer." in name for name in trains)


def test_early_stopping_leaves_steps_out_and_the_next_rollout_is_trained_again(
    trainer_of: Callable[..., PPOTrainer],
) -> None:
    """No weight moves in a step that is left out, Adam's momentum included."""
    trainer = trainer_of(
        target_kl=1e-9, num_ppo_epochs=4, total_episodes=16, learning_rate=1e-2, logging_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    seen: list[float] = []
    step = trainer.create_optimizer().step

    def watched(*args: Any, **keys: Any) -> Any:
        result = step(*args, **keys)
        seen.append(float(sum(p.detach().double().abs().sum() for p in trainer.model.parameters())))
        return result

    trainer.optimizer.step = watched
    trainer.train()
    assert len(seen) == 8
    # The ratio is 1 in a rollout's first step, so its second is the first that can say that it is enough.
    assert seen[0] != seen[1]
    assert seen[1] == seen[2] == seen[3]
    assert seen[3] != seen[4]
    assert seen[4] != seen[5]
    assert seen[5] == seen[6] == seen[7]


def test_while_the_value_warms_up_the_policy_stays(trainer_of: Callable[..., PPOTrainer]) -> None:
    trainer = trainer_of(value_warmup_rollouts=1, learning_rate=1e-2, peft_config=lora(), kl_coef=0.0)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters() if each.requires_grad}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]) == name.startswith("policy."), name


def test_the_value_may_learn_faster(trainer_of: Callable[..., PPOTrainer]) -> None:
    trainer = trainer_of(value_learning_rate=0.5, learning_rate=0.0, num_ppo_epochs=1, kl_coef=0.0)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, each in trainer.model.named_parameters() if not torch.equal(each, before[name])}
    assert moved == {"value_head.weight", "value_head.bias"}


def test_every_kind_of_dropout_is_off() -> None:
    config = OPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2, dropout=0.5,
        word_embed_proj_dim=32, attention_dropout=0.5, activation_dropout=0.5, layerdrop=0.5,
        max_position_embeddings=64,
    )  # fmt: skip
    model = OPTForCausalLM(config).train()
    disable_dropout(model)
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_shared_reward_model_scores_as_one_of_its_own(
    rlhf: Callable[..., Any], write_pairs_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    """Two members, on the base of a policy that has moved; and the policy does not notice."""
    keys = {
        "use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.3, "ensemble_size": 2, "bf16": False,
        "test_split_size": 0.25, "split_by": "prompt", "learning_rate": 1e-2,
    }  # fmt: skip
    assert rlhf("train-reward", str(write_pairs_recipe(**keys)), "--output_dir", "rm").code == 0
    own = load_reward_model(str(tmp_path / "rm"), detect_machine(use_cpu=True))
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PolicyWithValue(get_peft_model(base, lora()))
    stir(model, 5)
    batch = make_batch([[3, 4, 5]], [[7, 8]], torch.device("cpu"))
    before = model.score(batch).log_probs.detach()
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shared = share_base(str(tmp_path / "rm"), model, compute=torch.float32)
    questions = [[{"role": "user", "content": text}] for text in ("2+2?", "Who is there?", "Say it again, Sam.")]
    texts = [shared.render(question, answer) for question in questions for answer in ("four", "nobody at all")]
    assert texts == [own.render(question, answer) for question in questions for answer in ("four", "nobody at all")]
    assert shared.members == 2
    assert np.abs(shared.score(texts) - own.score(texts)).max() < 1e-6
    assert torch.equal(model.score(batch).log_probs, before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trains

    answers = [Answer(question, "four", [1], finished=True, columns={}) for question in questions]
    raw = own.score([own.render(question, "four") for question in questions])
    mean = ModelReward(shared, Scale())
    normal = (raw - mean.mean) / mean.std
    assert mean.mean.shape == (2,)
    assert mean.judge(answers).rewards == pytest.approx(normal.mean(axis=1), abs=1e-4)
    least = ModelReward(shared, Scale(ensemble="min"))
    assert least.judge(answers).rewards == pytest.approx(normal.min(axis=1), abs=1e-4)
    wary = ModelReward(shared, Scale(ensemble="mean_minus_std", std_coef=2.0))
    wanted = normal.mean(axis=1) - 2 * normal.std(axis=1)
    assert wary.judge(answers).rewards == pytest.approx(wanted, abs=1e-4)


ANSWERS = [Answer("a", "x", [1], finished=True, columns={"answer": "4"}), Answer("b", "y", [2, 3], True, {})]


def ask(function: Any) -> np.ndarray:
    return FunctionReward(function).judge(ANSWERS).rewards


def test_functions_are_called_as_by_grpo() -> None:
    asked: dict[str, Any] = {}

    def keep(**arguments: Any) -> list[float | None]:
        asked.update(arguments)
        return [1, None]

    async def later(completions: list[str], **_: Any) -> list[float]:
        return [2.0 for _ in completions]

    assert ask(keep).tolist() == [1, 0]
    assert asked == {
        "prompts": ["a", "b"], "completions": ["x", "y"], "completion_ids": [[1], [2, 3]], "answer": ["4", None],
        "trainer_state": None,
    }  # fmt: skip
    assert ask(later).tolist() == [2, 2]
    assert ask(lambda **_: np.array([0.5, 1.5])).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, float("nan")], "must return finite numbers, got the number nan"),
        ([1.0, "good"], "must return finite numbers, got text"),
        (0.5, "must return a list of numbers, got the number 0.5"),
        (None, "must return a list of numbers, got nothing"),
    ],
)
def test_what_is_no_reward_is_refused(values: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        ask(lambda **_: values)


def test_a_function_that_raises_is_told_with_its_line() -> None:
    with pytest.raises(RecipeError, match="raised ZeroDivisionError") as caught:
        ask(lambda **_: [1 / 0])
    assert "test_ppo_trainer.py:" in caught.value.as_text()


def test_a_function_that_was_edited_is_imported_anew_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_edited.py").write_text("VALUE = 1.0\n")
    (tmp_path / "edited.py").write_text("from helper_of_edited import VALUE\ndef f(**_): return [VALUE]\n")
    for reference in (f"{tmp_path}/edited.py:f", "edited:f"):
        (tmp_path / "helper_of_edited.py").write_text("VALUE = 1.0\n")
        first = load_function(reference)
        assert load_function(reference)._function is first._function  # the same module, not a second one
        (tmp_path / "helper_of_edited.py").write_text("VALUE = 22.0\n")
        assert load_function(reference)._function() == [22.0]
        assert first._function() == [1.0]


def test_functions_that_are_not_there_are_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def good(**_): return []\n")
    assert load_function(f"{file}:good").name == "good"
    assert load_function("math:sqrt").name == "sqrt"
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    for reference, said in (
        (f"{file}:bad", "has no function `bad`"), ("nowhere.py:f", "there is no file"), ("good", "is no function"),
        ("no.such.module:f", "cannot be imported"), (f"{broken}:f", "cannot be imported: ModuleNotFoundError"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=said):
            load_function(reference)


def test_rewards_are_weighted_and_clipped(tmp_path: Path) -> None:
    config = PPOConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, reward_weights=[1.0, -2.0], reward_clip_range=3.0
    )
    rewards = Rewards([FunctionReward(lambda **_: [1, 2], "one"), FunctionReward(lambda **_: [3, 0], "two")], config)
    scores, parts = rewards.judge(ANSWERS)
    assert scores.tolist() == [-3, 2]
    assert parts == [{"one": 1, "two": 3}, {"one": 2, "two": 0}]
    with pytest.raises(RecipeError, match="`reward_weights` has 2 numbers, and there are 1 rewards"):
        Rewards(rewards.rewards[:1], config)
    with pytest.raises(RecipeError, match="no reward to learn from"):
        Rewards([], config)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_that_cannot_be_used_are_refused(tiny_chat: Path) -> None:
    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_chat, dtype=torch.float32)

    with pytest.raises(RecipeError, match="language model head"):
        PolicyWithValue(get_peft_model(model(), lora("lm_head", "q_proj")))
    with pytest.raises(RecipeError, match="prompt-learning"):
        PolicyWithValue(get_peft_model(model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)))
    assert PolicyWithValue(get_peft_model(model(), lora("q_proj")))

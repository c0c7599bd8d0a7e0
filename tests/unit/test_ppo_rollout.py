"""Sampling, order, and how a rollout is cut: what must not depend on batches, processes or restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

from rlhf_cli.ppo.cache import make_cache
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.ppo.experience import prompt_order
from rlhf_cli.ppo.rollout import (
    Episode,
    ModelGenerator,
    Sampling,
    draw_noise,
    from_tensors,
    in_batches,
    to_tensors,
)
from rlhf_cli.ppo.update import cut_minibatches

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
CPU = torch.device("cpu")


def sampling(**changed: Any) -> Sampling:
    return Sampling(**{
        "response_length": 12, "temperature": 1.0, "stops": frozenset(), "sequences": 4, "seed": 3, **changed,
    })  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def answers(model: Any, **changed: Any) -> list[list[int]]:
    generator = ModelGenerator(model, sampling(**changed), CPU)
    return [ids for ids, _ in generator.generate(PROMPTS, range(len(PROMPTS)))]


def test_a_response_does_not_depend_on_its_batch(model: Any) -> None:
    whole = answers(model)
    assert answers(model, sequences=1) == whole
    assert answers(model, sequences=3) == whole
    assert answers(model, seed=4) != whole
    alone = ModelGenerator(model, sampling(), CPU).generate([PROMPTS[2]], [2])
    assert alone[0][0] == whole[2]


def test_positions_that_are_learnt_are_counted_without_padding() -> None:
    """GPT-2 adds a vector for each position, so padding that is counted would show."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    assert answers(model) == answers(model, sequences=1)


def test_a_response_ends_at_its_stop_and_nothing_of_it_is_lost(model: Any) -> None:
    """Where sequences leave the batch, the others go on as if they were alone."""
    free = answers(model)
    stops = frozenset({free[0][4], free[2][1]})
    for stopped, whole in zip(answers(model, stops=stops), free, strict=True):
        ends = [position for position, token in enumerate(whole) if token in stops]
        assert stopped == (whole[: ends[0] + 1] if ends else whole)


def test_the_log_probability_is_that_of_a_plain_forward_pass(model: Any) -> None:
    for temperature in (1.0, 0.5):
        found = ModelGenerator(model, sampling(temperature=temperature), CPU).generate(PROMPTS, range(4))
        for prompt, (response, log_probs) in zip(PROMPTS, found, strict=True):
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            wanted = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
            assert torch.allclose(torch.from_numpy(log_probs), wanted, atol=1e-5)


def test_tokens_come_as_often_as_they_are_likely(model: Any) -> None:
    """Ten thousand first tokens against the distribution they are drawn from."""
    count = 10_000
    generator = ModelGenerator(model, sampling(response_length=1, sequences=2000), CPU)
    drawn = [ids[0] for ids, _ in generator.generate([[5, 6, 7]] * count, range(count))]
    likely = model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1).detach().numpy().astype(np.float64)
    seen = np.bincount(drawn, minlength=len(likely))
    expected = likely * count
    common = expected > 5
    statistic = ((seen - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations of chi squared


def test_nothing_of_a_generation_config_leaks_in(model: Any) -> None:
    before = answers(model)
    kept = model.generation_config.to_dict()
    model.generation_config.update(repetition_penalty=1.9, top_k=1, min_p=0.9, temperature=0.1)
    try:
        assert answers(model) == before
    finally:
        model.generation_config.update(**{name: kept[name] for name in ("repetition_penalty", "top_k", "min_p")})


def test_without_noise_the_likeliest_token_is_taken(model: Any) -> None:
    (found, _), *_ = ModelGenerator(model, sampling(response_length=5), CPU).generate([[5, 6, 7]], None)
    ids = [5, 6, 7]
    for _ in range(5):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found == ids[3:]


def test_the_roomy_cache_holds_what_transformers_would(model: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    outputs = []
    for cache in (make_cache(model.config, 6), DynamicCache(config=model.config)):
        first = model(ids, past_key_values=cache, use_cache=True).logits
        cache.reorder_cache(torch.tensor([1]))
        outputs.append((first, model(torch.tensor([[13]]), past_key_values=cache, use_cache=True).logits))
        assert cache.get_seq_length() == 5
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs)


def test_noise_is_keyed_by_seed_and_episode() -> None:
    assert (draw_noise(1, 2, 8) == draw_noise(1, 2, 8)).all()
    assert (draw_noise(1, 2, 16)[:8] == draw_noise(1, 2, 8)).all()
    assert (draw_noise(1, 3, 8) != draw_noise(1, 2, 8)).all()
    assert (draw_noise(2, 2, 8) != draw_noise(1, 2, 8)).all()
    many = np.concatenate([draw_noise(0, number, 10) for number in range(2000)])
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01


def test_every_prompt_comes_once_a_round_and_few_prompts_go_round_and_round() -> None:
    first, second = prompt_order(10, range(10), 0), prompt_order(10, range(10, 20), 0)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert prompt_order(10, range(5, 15), 0) == first[5:] + second[:5]
    assert prompt_order(2, range(5), 0)[:2] in ([0, 1], [1, 0])


@pytest.mark.parametrize(("minibatches", "accumulation", "processes"), [(1, 2, 1), (2, 1, 2), (4, 3, 1)])
def test_every_episode_is_trained_on_once_an_epoch(
    minibatches: int, accumulation: int, processes: int, tmp_path: Path
) -> None:
    config = PPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        num_mini_batches=minibatches, num_ppo_epochs=3, use_cpu=True, report_to="none",
    )  # fmt: skip
    count = config.local_episodes * processes
    lengths = list(range(count, 0, -1))
    steps = cut_minibatches(lengths, config, 5)
    assert len(steps) == config.steps_a_rollout
    for epoch in range(3):
        members = [
            index
            for step in steps[epoch * minibatches : (epoch + 1) * minibatches]
            for micro in step
            for index in micro
        ]
        assert sorted(members) == list(range(count))
    assert all(len(step) == accumulation * processes for step in steps)
    assert steps == cut_minibatches(lengths, config, 5)
    assert minibatches == 1 or steps != cut_minibatches(lengths, config, 6)


def test_a_rollout_comes_back_as_it_was_kept() -> None:
    rows = [np.array([1.5, -2.0], np.float32), np.array([0.25], np.float32)]
    episodes = [
        Episode(7 + index, -1, [1, 2, 3][: index + 1], [4, 5][: len(row)], finished=True, log_probs=row, values=-row,
                advantages=2 * row, returns=row + 1)
        for index, row in enumerate(rows)
    ]  # fmt: skip
    for before, after in zip(episodes, from_tensors(to_tensors(episodes)), strict=True):
        assert (before.number, before.prompt_ids, before.response_ids) == (
            after.number, after.prompt_ids, after.response_ids,
        )  # fmt: skip
        for name in ("log_probs", "values", "advantages", "returns"):
            assert (getattr(before, name) == getattr(after, name)).all()


def test_batches_stay_within_their_tokens() -> None:
    lengths = [3, 9, 1, 4, 8, 2, 20]
    batches = list(in_batches(lengths, 16))
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 16

"""Rollouts: what a batch holds, several updates of it, groups without spread, and going on exactly."""

import json
import logging
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from test_dpo import tiny
from tiny_lm import tiny_config

from lmxlab.core.lora import apply_lora
from lmxlab.core.taps import reading
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_config
from lmxlab.training import Trainer
from lmxlab.training.grpo import GRPO, group_advantages
from lmxlab.training.logprobs import token_logprobs
from lmxlab.training.rollouts import MOST_IDLE_ROUNDS, RolloutMonitor, Rollouts
from lmxlab.training.sampling import Prompt, token_reward

PROMPTS = [mx.array([3, 4, 5]), mx.array([[7, 8]]), mx.array([8, 9, 1, 2])]


def longer(prompt: mx.array, whole: mx.array) -> float:
    return float(whole.size - prompt.size)


def rollouts(model: Any = None, prompts: Any = None, **options: Any) -> Rollouts:
    model = tiny() if model is None else model
    settings: dict[str, Any] = {"prompts_per_round": 3, "group_size": 4, "max_tokens": 8, "stop_tokens": [5, 6]}
    reward = options.pop("reward", longer)
    return Rollouts(model, prompts or PROMPTS * 10, token_reward(reward), ref_model=model, **{**settings, **options})


def test_a_batch_holds_what_was_written_scored_and_compared() -> None:
    model = tiny()
    source = rollouts(model)
    tokens, mask, advantages, rewards, sampled, reference = next(source)
    assert tokens.shape[0] == 12 and tokens.shape[1] % 32 == 0 and mask.shape == (12, tokens.shape[1] - 1)
    for i, completion in enumerate(source.completions):
        prompt, n = PROMPTS[i // 4].flatten().tolist(), completion.tokens.size
        assert tokens[i].tolist()[: len(prompt) + n] == prompt + completion.tokens.tolist()
        assert np.flatnonzero(mask[i]).tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + n))
        assert rewards[i].item() == n == mask[i].sum().item()
    np.testing.assert_allclose(advantages, group_advantages(rewards, mx.arange(12) // 4), atol=1e-6)
    now = token_logprobs(model, tokens) * mask
    np.testing.assert_allclose(sampled, now, atol=1e-5)
    np.testing.assert_allclose(reference, now, atol=1e-5)
    loss = GRPO()(model, tokens, mask, advantages, rewards, sampled, reference)
    assert float(loss.metrics["ratio"] / loss.counted) == pytest.approx(1, abs=1e-5)
    assert float(loss.metrics["kl"] / loss.counted) == pytest.approx(0, abs=1e-6)


def test_padding_stays_within_the_positions_that_a_model_has() -> None:
    mx.random.seed(0)
    model = LanguageModel(gpt_config(vocab_size=32, d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=11))
    batch = next(rollouts(model))
    assert batch[0].shape == (12, 12)  # the last token is not read
    assert math.isfinite(float(GRPO()(model, *batch).total))


def test_what_a_round_tells_is_measured_on_its_completions() -> None:
    source = rollouts(reward=lambda prompt, whole: float(prompt.size == 4) * whole.size)
    next(source)
    grouped = source.rewards.reshape(3, 4)
    flat = grouped.std(axis=1) == 0
    assert flat[:2].all() and not flat[2]  # one group in three tells the model something
    assert source.told["flat_groups"] == pytest.approx(flat.mean()) and source.flat_groups == 2 and source.groups == 3
    assert source.told["reward_std"] == pytest.approx(grouped.std(axis=1, ddof=1).mean())
    assert source.told["unended"] == np.mean([not c.ended for c in source.completions])
    logprobs = np.concatenate([np.array(c.logprobs) for c in source.completions])
    assert source.told["entropy"] == pytest.approx(-logprobs.mean(), rel=1e-5)


def test_a_group_without_spread_carries_no_gradient() -> None:
    source = rollouts(reward=lambda prompt, whole: 0.1, beta=0.0)
    _, _, advantages, *_ = next(source)
    assert not advantages.any() and source.told["flat_groups"] == 1


def test_groups_without_spread_and_completions_without_end_can_be_left_out() -> None:
    reward = lambda prompt, whole: float(prompt.size == 4) * whole.size  # noqa: E731
    tokens = next(rollouts(reward=reward, skip_flat=True))[0]
    assert tokens.shape[0] == 4 and (tokens[:, :4] == PROMPTS[2]).all()
    source = rollouts(skip_unended=True)
    kept = next(source)[0].shape[0]
    assert kept == sum(completion.ended for completion in source.completions) < 12
    with pytest.raises(UserError, match=f"{MOST_IDLE_ROUNDS} rounds in a row gave nothing"):
        next(rollouts(prompts=PROMPTS * 60, reward=lambda prompt, whole: 1.0, skip_flat=True, max_tokens=1))


def test_each_completion_is_used_so_many_times_in_parts_that_are_shuffled() -> None:
    source = rollouts(updates=2, batch_size=5)
    batches = [next(source) for _ in range(6)]
    assert [len(batch[0]) for batch in batches] == [5, 5, 2] * 2
    first, second = (mx.concatenate([batch[0] for batch in batches[i : i + 3]]).tolist() for i in (0, 3))
    assert sorted(first) == sorted(second) and first != second
    assert sorted(mx.concatenate([batch[0] for batch in [next(source) for _ in range(3)]]).tolist()) != sorted(first)


def test_the_sampling_policy_stays_while_the_model_moves() -> None:
    model = tiny()
    source = rollouts(model, updates=2)
    before = next(source)
    model.update(tree_map(lambda a: a * 1.1, model.parameters()))
    after = next(source)
    assert all(mx.array_equal(one, other) for one, other in zip(before, after, strict=True))
    tokens, mask, *_, sampled, _ = after
    assert float(mx.abs(token_logprobs(model, tokens) * mask - sampled).max()) > 0.01


def test_the_reference_of_a_model_with_adapters_is_the_model_without_them() -> None:
    model, base = tiny(), tiny()
    apply_lora(model, 4, 8.0, ["attention", "ffn"])
    model.update(tree_map(lambda a: a + 0.2, model.trainable_parameters()))
    tokens, mask, _, _, sampled, reference = next(rollouts(model))
    np.testing.assert_allclose(reference, token_logprobs(base, tokens) * mask, atol=1e-5)
    assert float(mx.abs(sampled - reference).max()) > 0.01


def test_micro_batches_make_the_step_of_the_whole_round() -> None:
    told, models = [], []
    for parts in (1, 3):
        model = tiny()
        source = rollouts(model, batch_size=12 // parts)
        config = tiny_config(max_steps=2, grad_accumulation_steps=parts)
        told.append(Trainer(model, config, objective=GRPO()).train(source))
        models.append(dict(tree_flatten(model.parameters())))
        assert source.groups == 6
    for whole, accumulated in zip(*told, strict=True):
        for name in ("loss", "grad_norm", "mean_reward"):
            assert accumulated[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6)
    assert all(mx.allclose(array, models[1][name], atol=1e-5) for name, array in models[0].items())


def test_in_half_precision_policy_and_reference_are_computed_alike() -> None:
    model = tiny()
    config = tiny_config(dtype="bfloat16", max_steps=1)
    kls = []
    for dtype in ("bfloat16", "float32"):
        used = set()
        with reading(lambda module, place, x, used=used: (used.add(x.dtype), x)[1]):
            batch = next(rollouts(model, dtype=dtype, beta=0.0))
        assert used == {getattr(mx, dtype)}  # of sampling
        batch = next(rollouts(model, dtype=dtype))
        kls.append(Trainer(model, config, objective=GRPO()).evaluate([batch])["eval_kl"])
    assert kls[0] < 1e-7 < 1e-6 < kls[1]
    assert all(leaf.dtype == mx.float32 for _, leaf in tree_flatten(model.parameters()))


class Cursor:
    """Prompts that know where they stand."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[mx.array]:
        while True:
            self.position += 1
            yield mx.array([self.position % 30 + 1, 2])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize("prompts", [lambda: [*PROMPTS, *PROMPTS[::-1]] * 5, lambda: iter(PROMPTS * 10), Cursor])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_it_goes_on_with_the_completions_in_use_and_the_next_prompts(prompts: Any, done: int) -> None:
    options: dict[str, Any] = {"prompts_per_round": 2, "updates": 2, "batch_size": 6}
    one, other = rollouts(tiny(), prompts(), seed=4, **options), rollouts(tiny(), prompts(), **options)
    for _ in range(done):
        next(one)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (other.told, other.groups) == (one.told, one.groups)
    for _ in range(6):
        for ours, theirs in zip(next(other), next(one), strict=True):
            assert ours.dtype == theirs.dtype and mx.array_equal(ours, theirs)


def test_it_ends_when_the_prompts_do_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    source = rollouts(prompts=PROMPTS + PROMPTS[:1])
    with caplog.at_level(logging.WARNING):
        assert [len(batch[0]) for batch in source] == [12, 4]
    assert "The prompts ended after 4" in caplog.text
    with pytest.raises(UserError, match="There are no prompts"):
        next(rollouts(prompts=iter([])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size is 1; a completion is compared with others"),
        ({"temperature": 0.0}, "temperature is 0.0; at 0 all completions"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"prompts_per_round": 0}, "prompts_per_round is 0"),
        ({"updates": 0}, "updates is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rollouts(**options)


@pytest.mark.parametrize("prompt", [mx.zeros((2, 3), mx.int32), mx.zeros((0,), mx.int32), Prompt(mx.array(3))])
def test_a_prompt_of_another_shape_is_refused(prompt: Any) -> None:
    with pytest.raises(UserError, match=r"give \(L,\) or \(1, L\)"):
        next(rollouts(prompts=[prompt]))


def test_rewards_that_never_differ_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    told = {"flat_groups": 1.0}
    monitor = RolloutMonitor(SimpleNamespace(told=told))  # type: ignore[arg-type]
    for step in range(19):
        monitor.on_step_end(step, {})
    assert not caplog.records
    monitor.on_step_end(19, {})
    monitor.on_step_end(20, {})
    assert len(caplog.records) == 1 and "for 20 steps" in caplog.text
    told["flat_groups"] = 0.5
    monitor.on_step_end(21, {})
    told["flat_groups"] = 1.0
    monitor.on_step_end(22, {})
    assert len(caplog.records) == 1

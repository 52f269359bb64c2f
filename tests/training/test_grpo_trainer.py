"""GRPOTrainer raises the reward, tells its callbacks, and goes on exactly; wrong rewards and prompts stop it."""

import logging
from itertools import cycle
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten
from test_dpo import tiny
from test_sampling import Letters

from lmxlab.core.lora import apply_lora
from lmxlab.errors import UserError
from lmxlab.training import Callback, GRPOConfig, GRPOTrainer, TrainConfig

PROMPTS = [mx.array([3, 4, 5]), mx.array([[7, 8]]), mx.array([8, 9, 1, 2])]


def share_of_nines(prompt: mx.array, whole: mx.array) -> float:
    assert prompt.ndim == whole.ndim == 1 and mx.array_equal(whole[: prompt.size], prompt)
    return float((whole[prompt.size :] == 9).mean())


def config(**options: Any) -> GRPOConfig:
    settings = {"max_gen_tokens": 6, "group_size": 8, "temperature": 1.0, "compile_step": False, "prompts_per_step": 3}
    return GRPOConfig(**{**settings, **options})  # type: ignore[arg-type]


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self.events.append(("begin", config))

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.events.append((step, dict(metrics)))

    def on_train_end(self, history: list[dict[str, Any]]) -> None:
        self.events.append(("end", len(history)))


@pytest.mark.parametrize("updates", [1, 3])
def test_training_raises_the_reward_and_tells_callbacks(updates: int) -> None:
    model, recorder = tiny(), Recorder()
    settings = config(updates=updates, beta=0.01)
    trainer = GRPOTrainer(model, tiny(), settings, share_of_nines, optim.Adam(learning_rate=2e-2), [recorder])
    history = trainer.train(cycle(PROMPTS), 30)
    first, last = (sum(m["mean_reward"] for m in part) / 5 for part in (history[:5], history[-5:]))
    assert last > first + 0.4
    assert recorder.events[0] == ("begin", None) and recorder.events[-1] == ("end", 30)
    assert [event[0] for event in recorder.events[1:-1]] == list(range(1, 31))
    assert recorder.events[1][1] == history[0]
    for name in (
        "loss",
        "grad_norm",
        "mean_reward",
        "kl",
        "clipped",
        "flat_groups",
        "reward_std",
        "entropy",
        "unended",
    ):
        assert name in history[0]
    assert history[-1]["kl"] > 0.05 and history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert max(abs(m["ratio"] - 1) for m in history) > 0.01 or updates == 1


def test_another_call_draws_other_completions_and_rewards_are_scaled_as_told() -> None:
    calls: list[list[list[int]]] = []

    def reward(prompt: mx.array, whole: mx.array) -> float:
        calls[-1].append(whole.tolist())  # type: ignore[arg-type]  # 1-D
        return float(len(calls[-1]))

    trainer = GRPOTrainer(tiny(), None, config(beta=0.0, scale_rewards="none"), reward, optim.SGD(learning_rate=0.0))
    for _ in range(2):
        calls.append([])
        trainer.train(PROMPTS, 1)
    assert len(calls[0]) == len(calls[1]) == 24 and calls[0] != calls[1]
    assert trainer.rollouts is not None
    advantages = trainer.rollouts._pending[2].reshape(3, 8)
    assert mx.allclose(advantages, mx.broadcast_to(mx.arange(8) - 3.5, (3, 8)))


def test_a_model_may_be_its_own_reference() -> None:
    model = tiny()
    history = GRPOTrainer(model, model, config(), share_of_nines, optim.SGD(learning_rate=0.5)).train(cycle(PROMPTS), 4)
    assert [metrics["kl"] for metrics in history] == pytest.approx([0] * 4, abs=1e-6)
    assert history[0]["grad_norm"] > 0


def test_adapters_alone_move_and_their_base_is_the_reference() -> None:
    model = tiny()
    apply_lora(model, 4, 8.0, ["attention", "ffn"])
    before = dict(tree_flatten(model.parameters()))
    trainer = GRPOTrainer(model, None, config(learning_rate=2e-2), share_of_nines)
    history = trainer.train(cycle(PROMPTS), 4)
    after = dict(tree_flatten(model.parameters()))
    moved = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert moved and all("lora_" in name for name in moved)
    assert history[-1]["kl"] > 1e-4 and history[-1]["learning_rate"] == pytest.approx(2e-2)


def test_with_a_tokenizer_the_reward_is_of_texts() -> None:
    seen = set()

    def reward(prompt: str, text: str) -> float:
        seen.add(prompt)
        return float("I" in text)

    settings = config(stop_tokens=(5, 6))
    trainer = GRPOTrainer(tiny(), tiny(), settings, reward, tokenizer=Letters())
    (metrics,) = trainer.train(PROMPTS, 1)
    assert seen == {"CDE", "GH", "HIAB"} and trainer.rollouts is not None
    written = [completion.tokens.tolist() for completion in trainer.rollouts.completions]
    assert metrics["mean_reward"] == pytest.approx(sum(9 in tokens for tokens in written) / len(written))


def test_the_reference_does_not_move() -> None:
    model, ref_model = tiny(), tiny()
    before = dict(tree_flatten(ref_model.parameters()))
    GRPOTrainer(model, ref_model, config(learning_rate=1e-2), share_of_nines).train(cycle(PROMPTS), 3)
    assert all(mx.array_equal(array, before[name]) for name, array in tree_flatten(ref_model.parameters()))


def test_a_compiled_step_is_the_plain_one() -> None:
    runs = []
    for compiled in (True, False):
        settings = config(compile_step=compiled, learning_rate=1e-3, group_size=2, updates=2)
        runs.append(GRPOTrainer(tiny(), tiny(1), settings, share_of_nines).train(cycle(PROMPTS), 3))
    for compiled_step, plain in zip(*runs, strict=True):
        assert compiled_step == pytest.approx(plain, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_is_the_one_that_never_stopped(stop: int, tmp_path: Path) -> None:
    """Also between two updates of the same completions."""

    def trainer() -> GRPOTrainer:
        return GRPOTrainer(tiny(), tiny(1), config(learning_rate=1e-2, updates=2, group_size=4), share_of_nines)

    whole, first, second = trainer(), trainer(), trainer()
    expected = whole.train(PROMPTS * 9, 5)
    history = first.train(PROMPTS * 9, stop)
    first.save(tmp_path / "c")
    second.restore(tmp_path / "c")
    assert history + second.train(PROMPTS * 9, 5 - stop) == expected
    for ours, theirs in zip(*(tree_flatten(t.model.parameters()) for t in (second, whole)), strict=True):
        assert mx.array_equal(ours[1], theirs[1]), ours[0]


def test_prompts_that_end_early_end_the_training_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trainer = GRPOTrainer(tiny(), tiny(), config(prompts_per_step=2), share_of_nines)
    with caplog.at_level(logging.WARNING):
        history = trainer.train(iter(PROMPTS), 10)
    assert len(history) == 2 and "GRPO ended after 2 of 10 steps" in caplog.text
    with pytest.raises(UserError, match="There are no prompts"):
        trainer.train(iter([]), 1)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda prompt, whole: {}["x"], "raised KeyError"),
        (lambda prompt, whole: float("nan"), "gave nan"),
        (lambda prompt, whole: whole, "a number for each completion"),
    ],
)
def test_a_reward_function_that_fails_stops_the_training_before_the_model_moves(reward: Any, message: str) -> None:
    model = tiny()
    before = dict(tree_flatten(model.parameters()))
    with pytest.raises(UserError, match=message):
        GRPOTrainer(model, tiny(), config(), reward).train(cycle(PROMPTS), 2)
    assert all(mx.array_equal(array, before[name]) for name, array in tree_flatten(model.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"max_gen_tokens": 0}, "GRPOConfig.max_gen_tokens must be at least 1"),
        ({"updates": 0}, "GRPOConfig.updates"),
        ({"loss_type": "drgrpo"}, "did you mean 'dr_grpo'"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"scale_rewards": "std"}, "Unknown scale of rewards"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(**options)

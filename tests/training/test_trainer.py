"""The loop: what a step does, when the loop stops, how it evaluates."""

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.core import kernels
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES
from lmxlab.training import Callback, NonFiniteLoss, TimeBudget, Trainer
from lmxlab.training.config import OPTIMIZERS

EXACT = {"rtol": 1e-5, "atol": 1e-6}


def parameters(trainer: Trainer) -> dict[str, mx.array]:
    return dict(tree_flatten(trainer.model.parameters()))


def assert_same_parameters(one: Trainer, other: Trainer, rtol: float, atol: float) -> None:
    theirs = parameters(other)
    for path, value in parameters(one).items():
        np.testing.assert_allclose(np.array(value), np.array(theirs[path]), rtol=rtol, atol=atol, err_msg=path)


def test_a_step_reports_loss_rate_and_norm_of_the_model_before_it() -> None:
    model = tiny_model()
    x, y = batch()
    hidden, _ = model.hidden_states(x)
    expected = kernels.cross_entropy(hidden @ model.output_weight.T, y).mean().item()
    metrics = Trainer(model, tiny_config(warmup_steps=0)).train_step((x, y))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["learning_rate"] == pytest.approx(3e-3)
    assert metrics["grad_norm"] > 0
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_steps_equal_uncompiled_ones_at_two_lengths(name: str) -> None:
    one, other = (
        Trainer(tiny_model(), tiny_config(optimizer=name, max_steps=20, compile_step=compiled))
        for compiled in (True, False)
    )
    batches = [batch(seed, length=(12, 7)[seed % 2]) for seed in range(20)]
    losses, expected = ([step["loss"] for step in trainer.train(batches)] for trainer in (one, other))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same_parameters(one, other, **EXACT)


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("compiled", [True, False])
def test_language_models_learn_one_batch(family: str, compiled: bool) -> None:
    model = LanguageModel(FAMILIES[family].tiny())
    x, y = batch()
    history = Trainer(model, tiny_config(max_steps=20, compile_step=compiled)).train([(x, y)] * 20)
    losses = [step["loss"] for step in history]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]


def test_targets_below_zero_are_not_scored() -> None:
    x, y = batch()
    shown = mx.where(mx.arange(y.shape[1]) < 5, y, -100)
    masked = Trainer(tiny_model(), tiny_config()).train_step((x, shown))
    cut = Trainer(tiny_model(), tiny_config()).train_step((x[:, :5], y[:, :5]))
    assert masked == pytest.approx(cut, rel=1e-5)


def test_clipping_bounds_the_update_and_reports_the_true_norm() -> None:
    loose, tight = (
        Trainer(tiny_model(), tiny_config(optimizer="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=limit))
        for limit in (0.0, 0.01)
    )
    for trainer in (loose, tight):
        trainer.train_step(batch())  # at the 1e-7 of the warmup's start
    before = parameters(tight)
    before = {path: mx.array(value) for path, value in before.items()}
    norms = [trainer.train_step(batch(1))["grad_norm"] for trainer in (loose, tight)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[1] > 0.1
    moved = sum(((value - before[path]) ** 2).sum().item() for path, value in parameters(tight).items()) ** 0.5
    rate = 1e-7 + (3e-3 - 1e-7) / 2
    assert moved == pytest.approx(0.01 * rate, rel=1e-3)


def test_a_gradient_below_the_limit_is_left_alone() -> None:
    free, limited = (Trainer(tiny_model(), tiny_config(optimizer="sgd", max_grad_norm=limit)) for limit in (0.0, 1e6))
    for seed in range(3):
        assert free.train_step(batch(seed)) == limited.train_step(batch(seed))
    assert_same_parameters(free, limited, rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [True, False])
def test_accumulated_gradient_is_that_of_one_big_batch(compiled: bool) -> None:
    x, y = batch(rows=7)
    micro = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]  # the last is shorter and must weigh less
    config = tiny_config(optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup_steps=0, max_grad_norm=0.0)
    config = tiny_config(**{**config.to_dict(), "learning_rate": 1.0, "compile_step": compiled})
    start = parameters(Trainer(tiny_model(), config))
    whole, parts = Trainer(tiny_model(), config), Trainer(tiny_model(), config)
    expected, got = whole.train_step((x, y)), parts.train_step_accumulated(micro)
    assert got == pytest.approx(expected, rel=1e-6)
    theirs = parameters(whole)
    for path, value in parameters(parts).items():  # with rate 1 the step is the gradient
        gradient, other = start[path] - value, start[path] - theirs[path]
        assert mx.abs(gradient - other).max().item() <= 1e-6 * max(1.0, mx.abs(other).max().item()), path


def test_accumulation_in_the_loop_applies_a_short_last_group() -> None:
    trainer = Trainer(tiny_model(), tiny_config(grad_accumulation_steps=3))
    assert len(trainer.train([batch(seed) for seed in range(7)])) == 3
    assert trainer.step == 3


def test_peak_memory_of_accumulation_does_not_grow_with_the_number_of_micro_batches() -> None:
    trainer = Trainer(tiny_model(), tiny_config())
    x, y = batch(rows=64, length=64)

    def peak(count: int) -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        trainer.train_step_accumulated([(x, y)] * count)
        return mx.get_peak_memory()

    few = peak(2)
    assert peak(16) <= 1.25 * few  # streams meet by chance; sixteen at once would be eight times as much


class StopAt(Callback):
    def __init__(self, step: int):
        self.last = step
        self.should_stop = False

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.should_stop = step >= self.last


def test_should_stop_ends_the_loop_at_that_step() -> None:
    trainer = Trainer(tiny_model(), tiny_config(max_steps=50), callbacks=[StopAt(5)])
    assert len(trainer.train(Cursor())) == trainer.step == 5


def test_an_object_with_nothing_but_should_stop_is_a_callback() -> None:
    class Flag:
        should_stop = True

    assert len(Trainer(tiny_model(), tiny_config(), callbacks=[Flag()]).train(Cursor())) == 1


def test_time_budget_ends_at_the_first_step_past_it() -> None:
    clock = itertools.count()  # one second per look: one at the start, one per step
    budget = TimeBudget(4, clock=lambda: float(next(clock)))
    assert len(Trainer(tiny_model(), tiny_config(max_steps=50), callbacks=[budget]).train(Cursor())) == 4


def test_the_loop_ends_with_the_data_and_at_max_steps() -> None:
    assert len(Trainer(tiny_model(), tiny_config()).train([batch()] * 3)) == 3
    trainer = Trainer(tiny_model(), tiny_config())
    assert len(trainer.train(Cursor())) == 8
    assert trainer.train(Cursor()) == []


def test_evaluation_joins_the_metrics_of_its_step() -> None:
    history = Trainer(tiny_model(), tiny_config(eval_interval=3)).train(Cursor(), [batch(99)])
    assert [index + 1 for index, step in enumerate(history) if "eval_loss" in step] == [3, 6]


def test_evaluate_weighs_tokens_and_can_be_repeated() -> None:
    trainer = Trainer(tiny_model(), tiny_config())
    (x, y), (short_x, short_y) = batch(rows=4), batch(1, rows=1, length=5)
    both = trainer.evaluate([(x, y), (short_x, short_y)])["eval_loss"]
    alone = [trainer.evaluate([pair])["eval_loss"] for pair in ((x, y), (short_x, short_y))]
    assert both == pytest.approx((alone[0] * x.size + alone[1] * short_x.size) / (x.size + short_x.size), rel=1e-6)
    assert trainer.evaluate(lambda: iter([(x, y), (short_x, short_y)]))["eval_loss"] == both
    assert trainer.evaluate(lambda: iter([(x, y), (short_x, short_y)]))["eval_loss"] == both


def test_evaluate_sees_the_parameters_of_now() -> None:
    trainer = Trainer(tiny_model(), tiny_config(compile_step=True, max_steps=30))
    before = trainer.evaluate([batch()])["eval_loss"]
    trainer.train([batch()] * 30)
    after = trainer.evaluate([batch()])["eval_loss"]
    assert after < 0.8 * before


def test_an_iterator_can_be_evaluated_once() -> None:
    trainer = Trainer(tiny_model(), tiny_config(eval_interval=2))
    once = iter([batch(99)])
    with pytest.raises(UserError, match="iterator that has been read already: give a list, or a function"):
        trainer.train(Cursor(), once)
    assert trainer.step == 4


def test_empty_evaluation_data_is_an_error_not_a_zero() -> None:
    with pytest.raises(UserError, match="no token to score"):
        Trainer(tiny_model(), tiny_config()).evaluate([])


@pytest.mark.parametrize("compiled", [True, False])
def test_dropout_is_on_in_steps_off_in_evaluate_and_flags_are_restored(compiled: bool) -> None:
    model = tiny_model(dropout=0.5)
    trainer = Trainer(model, tiny_config(learning_rate=1e-9, compile_step=compiled))
    losses = {trainer.train_step(batch())["loss"] for _ in range(3)}
    assert len(losses) == 3
    model.blocks[0].eval()
    scores = {trainer.evaluate([batch()])["eval_loss"] for _ in range(3)}
    assert len(scores) == 1
    assert model.training and not model.blocks[0].training


@pytest.mark.parametrize("compiled", [True, False])
def test_a_loss_that_is_not_finite_stops_and_names_the_step(compiled: bool) -> None:
    class Poison(Callback):
        def __init__(self, model: Any):
            self.model = model

        def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
            if step == 3:
                self.model.head.weight = mx.full(self.model.head.weight.shape, float("nan"))

    model = tiny_model()
    trainer = Trainer(model, tiny_config(compile_step=compiled), callbacks=[Poison(model)])
    with pytest.raises(NonFiniteLoss, match="Training stopped at step 4: loss nan") as caught:
        trainer.train(Cursor())
    assert caught.value.step == 4
    assert isinstance(caught.value, UserError)


def test_several_groups_report_the_rate_of_each() -> None:
    metrics = Trainer(tiny_model(), tiny_config(optimizer="muon")).train_step(batch())
    assert metrics["learning_rate"] == metrics["learning_rate/muon"] == metrics["learning_rate/adamw"]


def test_history_holds_what_callbacks_put_in() -> None:
    class Mark(Callback):
        def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
            metrics["mark"] = step

    history = Trainer(tiny_model(), tiny_config(), callbacks=[Mark()]).train(Cursor())
    assert [step["mark"] for step in history] == list(range(1, 9))


def test_events_come_in_order_and_with_their_arguments() -> None:
    seen: list[tuple[str, Any]] = []

    class Recorder(Callback):
        def on_train_begin(self, config: Any) -> None:
            seen.append(("begin", config))

        def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
            seen.append(("step", step))

        def on_eval_end(self, step: int, metrics: dict[str, Any]) -> None:
            seen.append(("eval", (step, metrics["eval_loss"] > 0)))

        def on_train_end(self, history: list[dict[str, Any]]) -> None:
            seen.append(("end", len(history)))

    config = tiny_config(max_steps=2, eval_interval=2)
    Trainer(tiny_model(), config, callbacks=[Recorder()]).train(Cursor(), [batch()])
    assert seen == [("begin", config), ("step", 1), ("step", 2), ("eval", (2, True)), ("end", 2)]

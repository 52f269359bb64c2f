"""Half-precision arithmetic over float32 master weights."""

import math
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_lm import TinyLM, batch, tiny_config, tiny_model

from lmxlab.training import Trainer
from lmxlab.training.objective import token_nats


class Spy(TinyLM):
    """Remembers the types that its forward pass ran in."""

    seen: set[mx.Dtype]

    def hidden_states(self, x: mx.array, cache: None = None) -> tuple[mx.array, list]:
        hidden, caches = super().hidden_states(x, cache)
        type(self).seen |= {hidden.dtype, self.output_weight.dtype, self.blocks[0].up.weight.dtype}
        return hidden, caches


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls_in_half_types_and_masters_stay_float32(dtype: str, optimizer: str, compiled: bool) -> None:
    model = tiny_model()
    config = tiny_config(dtype=dtype, optimizer=optimizer, max_steps=30, compile_step=compiled)
    trainer = Trainer(model, config)
    losses = [step["loss"] for step in trainer.train([batch()] * 30)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.8 * losses[0]
    for path, value in tree_flatten([model.parameters(), trainer.optimizer.state]):
        assert value.dtype in (mx.float32, mx.uint64), path


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_forward_pass_runs_in_the_compute_type_in_steps_and_in_evaluate(dtype: str) -> None:
    Spy.seen = set()
    trainer = Trainer(Spy(), tiny_config(dtype=dtype))
    trainer.train_step(batch())
    trainer.evaluate([batch()])
    assert Spy.seen == {getattr(mx, dtype)}


def test_float32_runs_in_the_type_that_the_parameters_have() -> None:
    Spy.seen = set()
    model = Spy()
    model.set_dtype(mx.bfloat16)
    trainer = Trainer(model, tiny_config(max_steps=20, learning_rate=1e-2))
    losses = [step["loss"] for step in trainer.train([batch()] * 20)]
    assert Spy.seen == {mx.bfloat16}
    assert losses[-1] < losses[0]
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float16", 0.005)])
def test_half_steps_stay_near_float32_ones(dtype: str, tolerance: float) -> None:
    half, full = (Trainer(tiny_model(), tiny_config(dtype=kind)) for kind in (dtype, "float32"))
    for seed in range(5):
        ours, exact = half.train_step(batch(seed)), full.train_step(batch(seed))
        assert ours["loss"] == pytest.approx(exact["loss"], rel=tolerance)
        assert ours["grad_norm"] == pytest.approx(exact["grad_norm"], rel=4 * tolerance)


def test_small_updates_are_not_lost_to_bfloat16() -> None:
    """A step of 1e-4 of a weight is below bfloat16's resolution: only master weights gather 100 of them."""
    config = tiny_config(dtype="bfloat16", learning_rate=1e-5, warmup_steps=0, max_steps=100, lr_schedule="constant")
    model = tiny_model()
    before = mx.array(model.head.weight)
    Trainer(model, config).train([batch()] * 100)
    moved = mx.abs(model.head.weight - before)
    assert moved.max().item() == pytest.approx(100 * 1e-5, rel=0.3)


def test_small_gradients_are_not_lost_to_float16() -> None:
    """Gradients around 1e-8 of unscaled float16 would be 0."""
    model = tiny_model()
    model.head.weight = model.head.weight * 1e-5
    gradient = Trainer(model, tiny_config(dtype="float16"))._steps.gradients(*batch())[2]
    exact = Trainer(model, tiny_config())._steps.gradients(*batch())[2]
    ours, theirs = gradient["blocks"][0]["up"]["weight"], exact["blocks"][0]["up"]["weight"]
    assert mx.abs(ours - theirs).max().item() <= 0.02 * mx.abs(theirs).max().item()


def test_modules_that_return_logits_are_scored_too() -> None:
    model = tiny_model()
    x, y = batch()
    expected = [value.item() for value in token_nats(model, x, y)]

    def logits(tokens: mx.array) -> Any:
        return model.hidden_states(tokens)[0] @ model.output_weight.T

    for plain in (logits, lambda tokens: (logits(tokens), None)):
        assert [value.item() for value in token_nats(plain, x, y)] == pytest.approx(expected, rel=1e-6)

"""Objectives of one's own: what they tell beside the loss, with any batches, whole, in parts and in half precision."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_lm import batch, tiny_config, tiny_model

from lmxlab.errors import UserError
from lmxlab.training import Trainer
from lmxlab.training.objective import Loss, mean_loss, next_token, token_nats


def weighted(model: nn.Module, x: mx.array, y: mx.array, weights: mx.array) -> Loss:
    """Cross-entropy with a weight for each token; also tells the share of heavy ones."""
    nats = model.nats(x, y) * weights
    return Loss(nats.sum(), mx.array(float(x.size)), {"heavy": (weights > 1).astype(mx.float32).sum()})


def weighted_batch(seed: int = 0, rows: int = 4) -> tuple[mx.array, mx.array, mx.array]:
    x, y = (part[:rows] for part in batch(seed))
    return x, y, mx.array(np.random.default_rng(seed).uniform(0.5, 1.5, x.shape).astype(np.float32))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_minimises_the_objective_and_tells_its_metrics(compiled: bool) -> None:
    model = tiny_model()
    x, y, weights = weighted_batch()
    expected = float((model.nats(x, y) * weights).mean())
    trainer = Trainer(model, tiny_config(compile_step=compiled), objective=weighted)
    metrics = trainer.train_step((x, y, weights))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["heavy"] == pytest.approx(float((weights > 1).mean()))
    assert trainer.train_step((x, y, weights))["loss"] < expected
    assert trainer.evaluate([(x, y, weights)])["eval_heavy"] == pytest.approx(metrics["heavy"])


def test_micro_batches_make_the_step_of_the_whole_batch() -> None:
    whole, parts = (Trainer(tiny_model(), tiny_config(), objective=weighted) for _ in range(2))
    x, y, weights = weighted_batch()
    one = whole.train_step((x, y, weights))
    other = parts.train_step_accumulated([(x[:1], y[:1], weights[:1]), (x[1:], y[1:], weights[1:])])
    assert one == pytest.approx(other, rel=1e-5)
    for ours, theirs in zip(
        tree_flatten(parts.model.parameters()), tree_flatten(whole.model.parameters()), strict=True
    ):
        np.testing.assert_allclose(np.array(ours[1]), np.array(theirs[1]), atol=1e-6, err_msg=ours[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_reports_the_same_loss(dtype: str) -> None:
    exact = Trainer(tiny_model(), tiny_config(), objective=weighted).train_step(weighted_batch())
    half = Trainer(tiny_model(), tiny_config(dtype=dtype), objective=weighted).train_step(weighted_batch())
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert half["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.05)
    assert half["heavy"] == exact["heavy"]


def test_the_mean_over_batches_weighs_each_by_what_it_counts() -> None:
    model = tiny_model()
    x, y = batch()
    hidden = mx.where(mx.arange(y.shape[1]) < 3, y, -100)
    together = mean_loss(model, [(x, y), (x, hidden)], lambda *b: next_token(model, *b))
    first, second = token_nats(model, x, y), token_nats(model, x, hidden)
    assert together["loss"] == pytest.approx(float((first[0] + second[0]) / (first[1] + second[1])), rel=1e-6)
    assert mean_loss(model, [], lambda *b: next_token(model, *b)) == {}


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(UserError, match="holds no token to score"):
        Trainer(tiny_model(), tiny_config()).evaluate([(mx.zeros((1, 3), mx.int32), mx.full((1, 3), -100))])

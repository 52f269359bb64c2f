"""The gradient noise scale on a problem whose noise and signal are known."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxlab.errors import UserError
from lmxlab.training.noise_scale import GradientNoiseScaleCallback, gradient_noise_scale


class Point(nn.Module):
    """Loss |w - x|^2 / 2 averaged over rows x: a row's gradient is w - x."""

    def __init__(self, w: mx.array):
        super().__init__()
        self.w = w


def loss(model: Point, x: mx.array) -> mx.array:
    return 0.5 * mx.square(model.w - x).sum(axis=1).mean()


def test_noise_is_the_sample_variance_and_signal_what_remains() -> None:
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    found = gradient_noise_scale(Point(mx.ones(5)), loss, (mx.array(x),))
    noise = x.var(axis=0, ddof=1).sum()
    signal = np.square(1 - x.mean(axis=0)).sum() - noise / 7
    assert found.noise == pytest.approx(noise, rel=1e-5) and found.signal == pytest.approx(signal, rel=1e-4)
    assert found.batch_size == pytest.approx(noise / signal, rel=1e-4)


def test_the_estimates_are_unbiased() -> None:
    """Rows N(0, 0.5^2) in 8 dimensions around w of length 1: tr(Sigma) is 2, |G|^2 is 1, the scale 2."""
    rng = np.random.default_rng(1)
    w = mx.full((8,), 1 / math.sqrt(8))
    found = [
        gradient_noise_scale(Point(w), loss, (mx.array(rng.normal(0, 0.5, size=(4, 8)).astype(np.float32)),))
        for _ in range(300)
    ]
    assert np.mean([f.noise for f in found]) == pytest.approx(2, rel=0.05)
    assert np.mean([f.signal for f in found]) == pytest.approx(1, rel=0.1)


def test_rows_that_agree_have_no_noise_and_rows_without_signal_an_infinite_scale() -> None:
    same = gradient_noise_scale(Point(mx.ones(3)), loss, (mx.zeros((4, 3)),))
    assert same.noise == pytest.approx(0, abs=1e-5) and same.signal == pytest.approx(3, rel=1e-5)
    opposed = gradient_noise_scale(Point(mx.zeros(3)), loss, (mx.array([[1.0] * 3, [-1.0] * 3]),))
    assert opposed.signal < 0 and opposed.batch_size == math.inf
    with pytest.raises(UserError, match="needs at least 2, got 1"):
        gradient_noise_scale(Point(mx.zeros(3)), loss, (mx.zeros((1, 3)),))


def test_the_callback_divides_averages_and_resumes() -> None:
    model, probe = Point(mx.ones(3)), mx.array([[0.0, 0, 0], [0.5, -0.5, 0]])
    callback = GradientNoiseScaleCallback(model, loss, (probe,), eval_interval=2, decay=0.5)
    metrics: dict = {}
    callback.on_step_end(1, metrics)
    assert metrics == {}
    first = gradient_noise_scale(model, loss, (probe,))
    callback.on_step_end(2, metrics)
    assert metrics == {"exp_simple_noise_scale": pytest.approx(first.batch_size)}
    model.w = model.w * 2
    second = gradient_noise_scale(model, loss, (probe,))
    resumed = GradientNoiseScaleCallback(model, loss, (probe,), eval_interval=2, decay=0.5)
    resumed.load_state_dict(callback.state_dict())
    resumed.on_step_end(4, metrics)
    expected = (0.5 * first.noise + second.noise) / (0.5 * first.signal + second.signal)
    assert metrics == {"exp_simple_noise_scale": pytest.approx(expected)}

"""The scan against the recurrence written as it stands in the paper, in float64."""

import functools

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core import selective_scan as module
from lmxlab.core.selective_scan import selective_scan

WIDTH, CHANNELS = 6, 4


def draw(length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(length)
    shapes = [(2, length, WIDTH), (2, length, WIDTH), (WIDTH, CHANNELS), (2, length, CHANNELS), (2, length, CHANNELS)]
    x, dt, rates, b, c = (rng.normal(size=shape) for shape in shapes)
    return [x, np.exp(dt), -np.exp(2 * rates), b, c, rng.normal(size=(2, WIDTH, CHANNELS))]


def by_hand(x: np.ndarray, dt: np.ndarray, rates: np.ndarray, b: np.ndarray, c: np.ndarray, h: np.ndarray) -> list:
    """2312.00752, equation 2a with the discretisation of its code: exp(dt A) and dt B."""
    y = np.zeros_like(x)
    for t in range(x.shape[1]):
        h = np.exp(dt[:, t, :, None] * rates) * h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        y[:, t] = (h * c[:, t, None]).sum(-1)
    return [y, h]


def arrays(inputs: list[np.ndarray]) -> list[mx.array]:
    return [mx.array(a.astype(np.float32)) for a in inputs]


@pytest.mark.parametrize("tokens", [1, 5, 16, 1000])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 23, 50])
def test_the_scan_is_the_recurrence(length: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH_ELEMENTS", tokens * 2 * WIDTH * CHANNELS)
    inputs = draw(length)
    for ours, theirs in zip(selective_scan(*arrays(inputs)), by_hand(*inputs), strict=True):
        np.testing.assert_allclose(np.array(ours), theirs, atol=2e-5)


def test_gradients_are_those_of_single_steps_kept_or_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arrays(draw(21))

    def loss(tokens: int, checkpoint: bool, *inputs: mx.array) -> mx.array:
        monkeypatch.setattr(module, "STRETCH_ELEMENTS", tokens * 2 * WIDTH * CHANNELS)
        y, state = selective_scan(*inputs, checkpoint=checkpoint)
        return mx.square(y).sum() + state.sum()

    gradients = [
        mx.grad(functools.partial(loss, *form), argnums=tuple(range(6)))(*inputs)
        for form in ((1, False), (21, False), (8, True))
    ]
    for steps, whole, again in zip(*gradients, strict=True):
        assert mx.allclose(whole, steps, rtol=1e-4, atol=1e-3) and mx.allclose(again, steps, rtol=1e-4, atol=1e-3)

"""Against the recurrence written from the paper, token by token, with complex states, in float64."""

import dataclasses
import itertools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core.config import BlockConfig
from lmxlab.core.mamba2 import Mamba2
from lmxlab.core.mamba3 import Mamba3
from lmxlab.errors import UserError

pytestmark = pytest.mark.usefixtures("cpu_forms_at_any_size")
FLAGS = ("mamba_trapezoidal", "mamba_bc_norm", "mamba_complex_a")
CONFIG = BlockConfig(
    attention="mamba3",
    position="none",
    d_model=32,
    bias=False,
    mamba_head_dim=16,
    ssm_state_size=6,
    mamba_n_groups=2,
    mamba_chunk_size=8,
)
VARIANTS = [dict(zip(FLAGS, on, strict=True)) for on in itertools.product((False, True), repeat=3)]
every_variant = pytest.mark.parametrize(
    "flags", VARIANTS, ids=[" ".join(name[6:] for name in flags if flags[name]) or "plain" for flags in VARIANTS]
)


def build(flags: dict[str, bool]) -> Mamba3:
    layer = Mamba3(dataclasses.replace(CONFIG, **flags))  # type: ignore[arg-type]
    drawn = [(name, array + 0.4 * mx.random.normal(array.shape)) for name, array in tree_flatten(layer.parameters())]
    layer.update(tree_unflatten(drawn))
    return layer


def by_hand(layer: Mamba3, inputs: mx.array) -> np.ndarray:
    """y (T, H, P): h_t = alpha_t h_{t-1} + beta_t B_{t-1} x_{t-1} + gamma_t B_t x_t, y_t = Re C_t* h_t.

    States 2n and 2n + 1 are the real and imaginary part of one; where nothing turns, theta is 0.
    """
    config = layer.config
    _, mixed, dt = layer._project(inputs)
    x, b, c = (np.array(a[0], dtype=np.float64) for a in layer._parts(layer.conv(mixed)[0]))
    dt = np.array(layer._dt(dt, None)[0], dtype=np.float64)
    rates, heads = -np.exp(np.array(layer.A_log, dtype=np.float64)), layer.n_heads
    b, c = (np.repeat(a, heads // config.mamba_n_groups, axis=1) for a in (b, c))
    if config.mamba_bc_norm:
        normed = lambda a: a / np.sqrt((a**2).mean(-1, keepdims=True) + config.norm_eps)  # noqa: E731
        b = normed(b) * np.array(layer.b_norm_weight) + np.array(layer.b_bias)
        c = normed(c) * np.array(layer.c_norm_weight) + np.array(layer.c_bias)
    theta = np.zeros((len(x), heads, 3))
    if config.mamba_complex_a:
        own = np.array(layer.theta_proj(inputs)[0], dtype=np.float64).reshape(len(x), 2, 3)
        theta = np.repeat(own, heads // 2, axis=1)
    share = np.ones((len(x), heads))
    if config.mamba_trapezoidal:
        share = 1 / (1 + np.exp(-np.array(layer.lambda_proj(inputs)[0], dtype=np.float64)))
    b, c = b[..., ::2] + 1j * b[..., 1::2], c[..., ::2] + 1j * c[..., 1::2]
    y, h = np.zeros_like(x), np.zeros((heads, 3, layer.head_dim), dtype=np.complex128)
    for t in range(len(x)):
        alpha = np.exp(dt[t, :, None] * (rates[:, None] + 1j * theta[t]))[..., None]
        h = alpha * h + (share[t] * dt[t])[:, None, None] * b[t, :, :, None] * x[t, :, None, :]
        if t:
            early = ((1 - share[t]) * dt[t])[:, None, None] * alpha
            h = h + early * b[t - 1, :, :, None] * x[t - 1, :, None, :]
        y[t] = np.einsum("hn,hnp->hp", c[t].conj(), h).real + np.array(layer.D)[:, None] * x[t]
    return y


@every_variant
@pytest.mark.parametrize("length", [1, 7, 8, 29])
def test_it_is_the_recurrence_of_the_paper(flags: dict[str, bool], length: int) -> None:
    layer, inputs = build(flags), mx.random.normal((1, length, 32))
    _, mixed, dt = layer._project(inputs)
    y, _ = layer._recur(inputs, layer.conv(mixed)[0], layer._dt(dt, None), layer.make_cache())
    expected = by_hand(layer, inputs)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(np.array(y).reshape(expected.shape), expected, atol=1e-4)


@every_variant
def test_steps_chunks_and_the_whole_agree(flags: dict[str, bool]) -> None:
    layer, x = build(flags), mx.random.normal((2, 40, 32))
    whole, _ = layer(x)
    for lengths in ([1] * 40, [5, 1, 30, 4]):
        cache, outs, start = layer.make_cache(), [], 0
        for n in lengths:
            out, cache = layer(x[:, start : start + n], cache=cache)
            outs.append(out)
            start += n
        assert mx.allclose(mx.concatenate(outs, axis=1), whole, atol=1e-4)
    numbers = sum(array.size for array in cache.snapshot()["_arrays"].values()) // 2
    assert Mamba3.cached_numbers(layer.config) == (0, numbers)


@every_variant
def test_padding_on_the_left_leaves_no_trace(flags: dict[str, bool]) -> None:
    layer, x = build(flags), mx.random.normal((1, 12, 32))
    alone, _ = layer(x)
    padded = mx.concatenate([mx.random.normal((1, 5, 32)), x], axis=1)
    for lengths in ((17,), (3, 14), (5, 12), (9, 1, 7)):
        cache, outs, start = layer.make_cache(), [], 0
        cache.left_padding = mx.array([5])
        for n in lengths:
            out, cache = layer(padded[:, start : start + n], cache=cache)
            outs.append(out)
            start += n
        assert mx.allclose(mx.concatenate(outs, axis=1)[:, 5:], alone, atol=1e-4)


def test_without_flags_it_is_mamba2() -> None:
    layer, x = build({}), mx.random.normal((2, 20, 32))
    plain = Mamba2(dataclasses.replace(CONFIG, attention="mamba2"))
    plain.update(layer.parameters())
    assert mx.array_equal(layer(x)[0], plain(x)[0])


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_half_precision_gives_finite_gradients_everywhere(dtype: mx.Dtype) -> None:
    layer, x = build(VARIANTS[-1]), mx.random.normal((2, 27, 32))
    for name in ("in_proj", "o_proj", "conv", "norm", "lambda_proj", "theta_proj"):
        layer[name].set_dtype(dtype)
    out, cache = layer(x.astype(dtype))
    assert out.dtype == dtype and cache["state"].dtype == cache["angle"].dtype == mx.float32
    loss = lambda x: mx.square(layer(x)[0].astype(mx.float32)).mean()  # noqa: E731
    _, gradient = nn.value_and_grad(layer, loss)(x.astype(dtype))
    for name, array in tree_flatten(gradient):
        assert mx.isfinite(array).all() and mx.abs(array).max() > 0, name


def test_pairs_need_an_even_number_of_states() -> None:
    with pytest.raises(UserError, match="ssm_state_size is 5; mamba_complex_a turns pairs"):
        Mamba3(dataclasses.replace(CONFIG, ssm_state_size=5, mamba_complex_a=True))

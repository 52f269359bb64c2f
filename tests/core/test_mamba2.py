import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.config import BlockConfig
from lmxlab.core.mamba2 import Mamba2
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.errors import UserError

pytestmark = pytest.mark.usefixtures("cpu_forms_at_any_size")
CONFIG = BlockConfig(
    attention="mamba2",
    position="none",
    d_model=32,
    n_heads=4,
    bias=False,
    mamba_head_dim=16,
    ssm_state_size=8,
    mamba_n_groups=2,
    mamba_chunk_size=8,
)


def build(**options: object) -> Mamba2:
    layer = Mamba2(dataclasses.replace(CONFIG, mamba_options=MambaOptions(**options)))  # type: ignore[arg-type]
    layer.update({name: mx.random.normal(layer[name].shape) for name in ("A_log", "dt_bias", "D")})
    layer.in_proj.weight = 0.3 * mx.random.normal(layer.in_proj.weight.shape)
    layer.o_proj.weight = 0.3 * mx.random.normal(layer.o_proj.weight.shape)
    return layer


@pytest.mark.parametrize("length", [1, 7, 8, 16, 27])
def test_the_chunked_form_equals_the_recurrence(length: int) -> None:
    layer, x = build(), mx.random.normal((2, length, 32))
    whole, cache = layer(x)
    steps, stepped = layer.make_cache(), []
    for t in range(length):
        out, steps = layer(x[:, t : t + 1], cache=steps)
        stepped.append(out)
    assert mx.allclose(whole, mx.concatenate(stepped, axis=1), atol=5e-5)
    assert cache.offset == steps.offset == length
    assert mx.allclose(cache["state"], steps["state"], atol=5e-5)
    assert mx.allclose(cache["tail"], steps["tail"], atol=5e-5)


def test_several_tokens_continue_from_a_cache_that_does_not_grow() -> None:
    layer, x = build(), mx.random.normal((2, 40, 32))
    whole, _ = layer(x)
    out, cache = layer(x[:, :3])
    outs, before = [out], cache.snapshot()
    for start, end in ((3, 20), (20, 21), (21, 40)):
        out, cache = layer(x[:, start:end], cache=cache)
        outs.append(out)
        assert cache["state"].shape == before["_arrays"]["state"].shape and cache["tail"].shape == (2, 3, 96)
    assert mx.allclose(whole, mx.concatenate(outs, axis=1), atol=5e-5)
    cache.restore(before)
    again, _ = layer(x[:, 3:20], cache=cache)
    assert cache.offset == 20 and mx.allclose(again, outs[1], atol=5e-5)
    numbers = sum(a.size for a in (cache["state"], cache["tail"])) // 2
    assert Mamba2.cached_numbers(layer.config) == (0, numbers)


def test_padding_on_the_left_leaves_no_trace() -> None:
    layer, x = build(), mx.random.normal((1, 12, 32))
    alone, _ = layer(x)
    padded = mx.concatenate([mx.random.normal((1, 5, 32)), x], axis=1)
    for lengths in ((17,), (3, 14), (9, 1, 7)):
        cache, outs, start = layer.make_cache(), [], 0
        cache.left_padding = mx.array([5])
        for n in lengths:
            out, cache = layer(padded[:, start : start + n], cache=cache)
            outs.append(out)
            start += n
        assert mx.allclose(mx.concatenate(outs, axis=1)[:, 5:], alone, atol=5e-5)


def test_the_step_size_is_clamped() -> None:
    layer, x = build(dt_min=0.3, dt_max=0.4), mx.random.normal((1, 9, 32))
    dt = layer._dt(mx.random.normal((1, 9, 4)) * 3, None)
    assert float(dt.min()) == pytest.approx(0.3) and float(dt.max()) == pytest.approx(0.4)
    whole, _ = layer(x)
    assert mx.allclose(layer(x[:, :1])[0], whole[:, :1], atol=5e-5)


@pytest.mark.parametrize("norm", ["after_gate", "before_gate", "none"])
def test_the_gated_norm_is_per_group_and_where_it_should_be(norm: str) -> None:
    layer = build(norm=norm)
    y, z = np.random.default_rng(0).normal(size=(2, 2, 3, 64))
    gate, weight = z / (1 + np.exp(-z)), np.linspace(0.5, 1.5, 64)

    def normed(y: np.ndarray) -> np.ndarray:
        parts = y.reshape(2, 3, 2, 32)
        return (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5)).reshape(y.shape) * weight

    expected = {"after_gate": normed(y * gate), "before_gate": normed(y) * gate, "none": y * gate}[norm]
    if norm != "none":
        layer.norm.weight = mx.array(weight.astype(np.float32))
    out = layer.norm(mx.array(y.astype(np.float32)), mx.array(z.astype(np.float32)))
    np.testing.assert_allclose(np.array(out), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_half_precision_keeps_the_state_whole_and_gradients_finite(dtype: mx.Dtype) -> None:
    layer, x = build(), mx.random.normal((2, 27, 32))
    exact, _ = layer(x)
    for name in ("in_proj", "o_proj", "conv", "norm"):
        layer[name].set_dtype(dtype)
    out, cache = layer(x.astype(dtype))
    assert out.dtype == cache["tail"].dtype == dtype and cache["state"].dtype == mx.float32
    assert mx.abs(out.astype(mx.float32) - exact).max() < 0.05 * mx.abs(exact).max()
    loss = lambda x: mx.square(layer(x)[0].astype(mx.float32)).mean()  # noqa: E731
    _, gradient = nn.value_and_grad(layer, loss)(x.astype(dtype))
    for name, array in tree_flatten(gradient):
        assert mx.isfinite(array).all() and mx.abs(array).max() > 0, name


def test_a_new_layer_has_steps_and_rates_as_published() -> None:
    layer = Mamba2(dataclasses.replace(CONFIG, d_model=512))
    dt, rate = nn.softplus(layer.dt_bias), mx.exp(layer.A_log)
    assert 1e-3 <= float(dt.min()) < 3e-3 and 3e-2 < float(dt.max()) <= 0.1001
    assert 1.0 <= float(rate.min()) < 3.0 and 14.0 < float(rate.max()) <= 16.001
    assert mx.array_equal(layer.D, mx.ones(64))


def test_heads_must_fill_the_inner_width_and_groups_the_heads() -> None:
    with pytest.raises(UserError, match=r"mamba_n_heads 3 \* mamba_head_dim 16 is 48, but d_model \* .* is 64"):
        Mamba2(dataclasses.replace(CONFIG, mamba_n_heads=3))
    with pytest.raises(UserError, match="4 Mamba heads are not divisible by mamba_n_groups 3"):
        Mamba2(dataclasses.replace(CONFIG, mamba_n_groups=3))
    wide = dataclasses.replace(CONFIG, mamba_n_heads=6, mamba_options=MambaOptions(d_inner=96))
    assert Mamba2(wide)(mx.zeros((1, 2, 32)))[0].shape == (1, 2, 32)
    assert Mamba2(dataclasses.replace(CONFIG, mamba_head_dim=None)).head_dim == 16

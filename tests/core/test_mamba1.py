import dataclasses

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from lmxlab.core import selective_scan
from lmxlab.core.config import BlockConfig
from lmxlab.core.mamba1 import Mamba1
from lmxlab.core.mamba_options import MambaOptions

pytestmark = pytest.mark.usefixtures("cpu_forms_at_any_size")
CONFIG = BlockConfig(attention="mamba1", position="none", d_model=32, bias=False, ssm_state_size=4)
variants = pytest.mark.parametrize("norms", [True, False], ids=["dt, B and C normalised", "plain"])


def build(norms: bool) -> Mamba1:
    layer = Mamba1(dataclasses.replace(CONFIG, mamba_bc_norm=norms))
    drawn = {name: mx.random.normal(layer[name].shape) for name in ("A_log", "dt_bias", "D")}
    layer.update(drawn | {name: {"weight": 3 * layer[name].weight} for name in ("in_proj", "x_proj", "dt_proj")})
    return layer


@variants
def test_steps_chunks_and_the_whole_agree(norms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "STRETCH_ELEMENTS", 9 * 2 * 64 * 4)
    layer, x = build(norms), mx.random.normal((2, 40, 32))
    whole, _ = layer(x)
    for lengths in ([1] * 40, [5, 1, 30, 4]):
        cache, outs, start = layer.make_cache(), [], 0
        for n in lengths:
            out, cache = layer(x[:, start : start + n], cache=cache)
            outs.append(out)
            start += n
        assert mx.allclose(mx.concatenate(outs, axis=1), whole, atol=2e-5)
        assert cache.offset == 40
        assert Mamba1.cached_numbers(CONFIG) == (0, (cache["state"].size + cache["tail"].size) // 2)


@variants
def test_padding_on_the_left_leaves_no_trace(norms: bool) -> None:
    layer, x = build(norms), mx.random.normal((1, 12, 32))
    alone, _ = layer(x)
    padded = mx.concatenate([mx.random.normal((1, 5, 32)), x], axis=1)
    for lengths in ((17,), (3, 14), (9, 1, 7)):
        cache, outs, start = layer.make_cache(), [], 0
        cache.left_padding = mx.array([5])
        for n in lengths:
            out, cache = layer(padded[:, start : start + n], cache=cache)
            outs.append(out)
            start += n
        assert mx.allclose(mx.concatenate(outs, axis=1)[:, 5:], alone, atol=2e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_half_precision_keeps_the_state_whole_and_gradients_finite(dtype: mx.Dtype) -> None:
    layer, x = build(True), mx.random.normal((2, 27, 32))
    exact, _ = layer(x)
    for name in ("in_proj", "x_proj", "dt_proj", "o_proj", "conv", "dt_norm", "b_norm", "c_norm"):
        layer[name].set_dtype(dtype)
    out, cache = layer(x.astype(dtype))
    assert out.dtype == cache["tail"].dtype == dtype and cache["state"].dtype == mx.float32
    assert mx.abs(out.astype(mx.float32) - exact).max() < 0.05 * mx.abs(exact).max()
    loss = lambda x: mx.square(layer(x)[0].astype(mx.float32)).sum()  # noqa: E731
    _, gradient = nn.value_and_grad(layer, loss)(x.astype(dtype))
    for name, array in tree_flatten(gradient):
        assert mx.isfinite(array).all() and mx.abs(array).max() > 0, name


def test_a_new_layer_has_the_published_rates_and_ranks() -> None:
    layer = Mamba1(dataclasses.replace(CONFIG, d_model=40))
    assert mx.allclose(mx.exp(layer.A_log[5]), mx.array([1.0, 2.0, 3.0, 4.0]))
    assert layer.dt_proj.weight.shape == (80, 3)
    wide = Mamba1(dataclasses.replace(CONFIG, mamba_options=MambaOptions(d_inner=96, dt_rank=7, conv_bias=False)))
    assert wide.dt_proj.weight.shape == (96, 7) and "bias" not in wide.conv

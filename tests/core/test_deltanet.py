"""Gated DeltaNet as a layer (test_delta_rule holds the rule itself to the paper's recurrence)."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from lmxlab.core.cache import RecurrentCache
from lmxlab.core.config import BlockConfig
from lmxlab.core.deltanet import GatedDeltaNet
from lmxlab.core.mask import causal
from lmxlab.errors import UserError

CONFIG = BlockConfig(
    attention="gated_deltanet",
    position="none",
    d_model=16,
    n_heads=2,
    bias=False,
    use_short_conv=True,
    conv_kernel_size=3,
    linear_n_key_heads=2,
    linear_n_value_heads=4,
    linear_key_head_dim=6,
    linear_value_head_dim=5,
)


def build(config: BlockConfig = CONFIG) -> GatedDeltaNet:
    layer = GatedDeltaNet(config)
    layer.update(tree_map(lambda a: a + 0.3 * mx.random.normal(a.shape), layer.parameters()))
    return layer


def by_hand(layer: GatedDeltaNet, x: mx.array) -> np.ndarray:
    """2412.06464 section 3 and figure 1, one token of one row after another, in float64."""
    p = tree_map(lambda a: np.array(a, dtype=np.float64), layer.parameters())

    def silu(a: np.ndarray) -> np.ndarray:
        return a / (1 + np.exp(-a))

    rows = []
    for row in np.array(x, dtype=np.float64):
        mixed = np.pad(row @ p["qkv_proj"]["weight"].T, ((2, 0), (0, 0)))
        memory, outs = np.zeros((4, 5, 6)), []
        for t, token in enumerate(row):
            channels = silu(sum(mixed[t + i] * p["conv"]["weight"][:, 0, i] for i in range(3)))
            q, k, v = channels[:12].reshape(2, 6), channels[12:24].reshape(2, 6), channels[24:].reshape(4, 5)
            q, k = (a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
            beta = 1 / (1 + np.exp(-p["beta_proj"]["weight"] @ token))
            step = np.log1p(np.exp(p["decay_proj"]["weight"] @ token + p["dt_bias"]))
            alpha = np.exp(-np.exp(p["A_log"]) * step)
            heads = []
            for h in range(4):
                memory[h] *= alpha[h]
                memory[h] += beta[h] * np.outer(v[h] - memory[h] @ k[h // 2], k[h // 2])
                o = memory[h] @ q[h // 2] / np.sqrt(6)
                heads.append(o / np.sqrt((o * o).mean() + 1e-5) * p["norm"]["weight"])
            outs.append(p["o_proj"]["weight"] @ (np.concatenate(heads) * silu(p["gate_proj"]["weight"] @ token)))
        rows.append(outs)
    return np.array(rows)


@pytest.mark.parametrize("length", [1, 4, 11, 70])
def test_the_layer_is_the_formula(length: int) -> None:
    layer, x = build(), mx.random.normal((2, length, 16))
    out, cache = layer(x, mask="causal")
    assert mx.array_equal(layer(x, mask=mx.where(causal(length, length), 0.0, -mx.inf))[0], out)
    np.testing.assert_allclose(np.array(out), by_hand(layer, x), atol=2e-5)
    assert cache.offset == length


@pytest.mark.parametrize("short_conv", [True, False])
@pytest.mark.parametrize("sizes", [[6, 1, 1, 3, 9], [1, 1, 18], [19, 1], [2, 17, 1]])
def test_a_sequence_in_parts_is_the_whole_one(sizes: list[int], short_conv: bool) -> None:
    layer, x = build(dataclasses.replace(CONFIG, use_short_conv=short_conv)), mx.random.normal((2, 20, 16))
    whole, _ = layer(x)
    cache, parts = layer.make_cache(), []
    for size in sizes:
        part, cache = layer(x[:, cache.offset : cache.offset + size], cache=cache)
        parts.append(part)
    assert mx.abs(mx.concatenate(parts, axis=1) - whole).max() < 1e-5


def test_the_cache_has_the_size_that_is_told_and_never_grows() -> None:
    layer, cache, x = build(), None, mx.random.normal((1, 40, 16))
    per_token, fixed = GatedDeltaNet.cached_numbers(CONFIG)
    for length in (1, 9, 30):
        _, cache = layer(x[:, :length], cache=cache)
        assert isinstance(cache, RecurrentCache)
        assert cache["state"].size + cache["tail"].size == fixed and per_token == 0


def test_padding_on_the_left_changes_nothing() -> None:
    layer, x = build(), mx.random.normal((2, 9, 16))
    alone, cache = layer(x[1:, 4:])
    alone_next, _ = layer(x[1:, :1], cache=cache)
    padded = layer.make_cache()
    padded.left_padding = mx.array([0, 4])
    out, padded = layer(x, cache=padded)
    assert mx.abs(out[1:, 4:] - alone).max() < 1e-6 and mx.abs(out[:1] - layer(x[:1])[0]).max() < 1e-6
    assert mx.abs(layer(x[:, :1], cache=padded)[0][1:] - alone_next).max() < 1e-6


def test_later_tokens_change_nothing_at_all_before_them() -> None:
    layer, x = build(), mx.random.normal((1, 30, 16))
    out, other = layer(x)[0], layer(mx.concatenate([x[:, :13], x[:, 13:] + 1], axis=1))[0]
    assert mx.array_equal(out[:, :13], other[:, :13]) and mx.abs(out - other).max() > 1e-2


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_state_is_float32_and_the_output_is_not(dtype: mx.Dtype) -> None:
    layer, x = build(), mx.random.normal((1, 70, 16))
    exact, _ = layer(x)
    kept = layer.A_log, layer.dt_bias
    layer.set_dtype(dtype)
    layer.A_log, layer.dt_bias = kept
    out, cache = layer(x.astype(dtype))
    assert out.dtype == dtype and cache["state"].dtype == mx.float32 and cache["tail"].dtype == dtype
    assert mx.abs(out.astype(mx.float32) - exact).max() < 0.05 * mx.abs(exact).max()


def test_it_starts_with_memories_of_one_to_a_thousand_tokens() -> None:
    layer = GatedDeltaNet(dataclasses.replace(CONFIG, linear_n_value_heads=400))
    a, dt = mx.exp(layer.A_log), mx.logaddexp(layer.dt_bias, mx.array(0.0))
    assert 1 <= float(a.min()) < 2 and 15 < float(a.max()) <= 16
    assert 0.00099 <= float(dt.min()) < 0.002 and 0.08 < float(dt.max()) <= 0.1001


def test_heads_that_do_not_share_and_masks_of_their_own_are_refused() -> None:
    with pytest.raises(UserError, match="linear_n_value_heads 3 is not divisible by linear_n_key_heads 2"):
        GatedDeltaNet(dataclasses.replace(CONFIG, linear_n_value_heads=3))
    with pytest.raises(UserError, match="mask='causal'"):
        build()(mx.zeros((1, 3, 16)), mask=mx.zeros((3, 3)))


def test_sizes_follow_the_heads_of_attention_when_not_given() -> None:
    layer = GatedDeltaNet(BlockConfig(attention="gated_deltanet", d_model=32, n_heads=4))
    assert layer.qkv_proj.weight.shape == (96, 32) and layer.A_log.shape == (4,) and "conv" not in layer

import dataclasses
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxlab.core.attention import GQA, MHA, AttentionBase, NoneAttention, attention_registry, query_temperature
from lmxlab.core.config import BlockConfig
from lmxlab.core.position import RoPE

CONFIG = BlockConfig(attention="gqa", position="none", d_model=32, n_heads=4, n_kv_heads=2, head_dim=12)


def by_hand(layer: GQA, x: mx.array, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """1706.03762 equation 1, head by head, in float64; `bias` (Tq, Tk) is added to the scores."""
    config = layer.config
    dim, group = config.head_dim, config.n_heads // layer.n_kv_heads

    def project(linear: nn.Linear, values: np.ndarray) -> np.ndarray:
        return values @ np.array(linear.weight, dtype=np.float64).T + np.array(linear.bias, dtype=np.float64)

    rows = []
    for row in np.array(x, dtype=np.float64):
        q, k, v = (project(linear, row) for linear in (layer.q_proj, layer.k_proj, layer.v_proj))
        heads = []
        for head in range(config.n_heads):
            own, shared = slice(head * dim, (head + 1) * dim), slice(head // group * dim, (head // group + 1) * dim)
            scores = np.exp(layer.scale * q[:, own] @ k[:, shared].T + bias)
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, shared])
        rows.append(project(layer.o_proj, np.concatenate(heads, axis=-1)))
    return np.stack(rows)


@pytest.mark.parametrize("kind", [GQA, MHA])
def test_attention_is_the_formula(kind: type[GQA]) -> None:
    layer, x = kind(CONFIG), mx.random.normal((2, 7, 32))
    out, _ = layer(x)
    np.testing.assert_allclose(np.array(out), by_hand(layer, x), atol=1e-5)


def test_masks_of_every_kind_mean_the_same() -> None:
    layer, x = GQA(CONFIG), mx.random.normal((2, 7, 32))
    allowed = mx.tril(mx.ones((7, 7))).astype(mx.bool_)
    additive = mx.where(allowed, 0.0, -1e9)
    expected = by_hand(layer, x, np.array(additive))
    for mask in ("causal", allowed, additive, allowed[None, None], additive.astype(mx.float16) + 0.0):
        out, _ = layer(x, mask=mask)
        np.testing.assert_allclose(np.array(out), expected, atol=1e-5)


def test_an_additive_mask_takes_the_dtype_of_the_activations() -> None:
    layer, x = GQA(CONFIG), mx.random.normal((1, 5, 32)).astype(mx.bfloat16)
    layer.set_dtype(mx.bfloat16)
    out, _ = layer(x, mask=mx.zeros((5, 5)))
    assert out.dtype == mx.bfloat16


def test_no_mask_sees_everything() -> None:
    layer, x = GQA(CONFIG), mx.random.normal((1, 5, 32))
    other = mx.concatenate([x[:, :4], x[:, 4:] + 1], axis=1)
    assert float(mx.abs(layer(x)[0][:, 0] - layer(other)[0][:, 0]).max()) > 1e-4


def test_mha_has_as_many_kv_heads_as_heads_whatever_the_config_says() -> None:
    assert MHA(CONFIG).k_proj.weight.shape == (48, 32)
    assert GQA(CONFIG).k_proj.weight.shape == (24, 32)
    assert MHA(BlockConfig(n_kv_heads=3)).n_kv_heads == 8


def test_gqa_alone_checks_its_groups() -> None:
    with pytest.raises(ValueError, match="n_heads 8 is not divisible by n_kv_heads 3"):
        GQA(BlockConfig(n_kv_heads=3))


def test_mup_scales_scores_by_the_head_dimension() -> None:
    assert GQA(CONFIG).scale == pytest.approx(1 / math.sqrt(12))
    assert GQA(dataclasses.replace(CONFIG, mup=True)).scale == pytest.approx(1 / 12)


def test_biases_follow_the_config() -> None:
    def has_bias(**fields: bool) -> set[bool]:
        layer = GQA(dataclasses.replace(CONFIG, **fields))
        return {"bias" in linear for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)}

    assert has_bias(bias=True) == {True} and has_bias(bias=False) == {False}
    assert has_bias(bias=False, attention_bias=True) == {True} and has_bias(attention_bias=False) == {False}


def test_qk_norm_makes_scores_blind_to_the_scale_of_the_projections() -> None:
    layer, x = GQA(dataclasses.replace(CONFIG, qk_norm=True, bias=False)), mx.random.normal((1, 5, 32))
    before, _ = layer(x)
    layer.q_proj.weight = layer.q_proj.weight * 50
    assert float(mx.abs(layer(x)[0] - before).max()) < 1e-4
    layer.q_norm.weight = layer.q_norm.weight * 3
    assert float(mx.abs(layer(x)[0] - before).max()) > 1e-3
    assert layer.q_norm.weight.shape == (12,)


def test_l2_norm_makes_scores_blind_to_the_scale_of_every_head() -> None:
    config = dataclasses.replace(CONFIG, qk_l2_norm=True, bias=False, position="rope")
    layer, x = GQA(config), mx.random.normal((1, 5, 32))
    before, cache = layer(x, rope=RoPE(config))
    assert float(mx.abs(mx.square(cache.keys).mean(axis=-1) - 1).max()) < 1e-3
    layer.q_proj.weight = layer.q_proj.weight * mx.repeat(mx.array([3.0, 5.0, 7.0, 9.0]), 12)[:, None]
    layer.k_proj.weight = layer.k_proj.weight * 4
    assert float(mx.abs(layer(x, rope=RoPE(config))[0] - before).max()) < 1e-4


def test_queries_grow_with_their_position_in_the_text() -> None:
    config = dataclasses.replace(CONFIG, temperature_floor=4, temperature_scale=0.5)
    grown = [1 + 0.5 * math.log(1 + math.floor((p + 1) / 4)) for p in range(12)]
    assert query_temperature(config, 2, 10)[0, 0, :, 0].tolist() == pytest.approx(grown[2:])
    padded = query_temperature(config, 2, 10, mx.array([0, 5]))[:, 0, :, 0].tolist()
    assert padded[0] == pytest.approx(grown[2:])
    assert padded[1][3:] == pytest.approx(grown[:7])


def test_a_higher_temperature_scale_is_a_larger_scale_of_the_scores() -> None:
    layer, x = (
        GQA(dataclasses.replace(CONFIG, temperature_floor=1, temperature_scale=2.0)),
        mx.random.normal((1, 1, 32)),
    )
    keys, values = mx.random.normal((1, 2, 6, 12)), mx.random.normal((1, 2, 6, 12))
    sharpened, _ = layer(x, cache=(keys, values))
    plain = GQA(CONFIG)
    plain.update(layer.parameters())
    plain.scale *= 1 + 2 * math.log(8)  # the query is at position 6
    assert float(mx.abs(sharpened - plain(x, cache=(keys, values))[0]).max()) < 1e-5


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_layer_continues_from_its_cache(as_tuple: bool) -> None:
    layer, turn, x = GQA(CONFIG), RoPE(CONFIG), mx.random.normal((2, 9, 32))
    full, _ = layer(x, mask="causal", rope=turn)
    _, cache = layer(x[:, :4], mask="causal", rope=turn)
    out, after = layer(x[:, 4:], mask="causal", cache=tuple(cache) if as_tuple else cache, rope=turn)
    assert float(mx.abs(out - full[:, 4:]).max()) < 1e-5
    assert after.offset == 9 and (after is cache) != as_tuple
    keys, values = after
    assert keys.shape == values.shape == (2, 2, 9, 12)


def test_none_attention_and_the_base() -> None:
    x = mx.random.normal((1, 2, 32))
    out, cache = NoneAttention(CONFIG)(x)
    assert out is x and cache is None
    with pytest.raises(NotImplementedError):
        AttentionBase(CONFIG)(x)


@pytest.mark.parametrize(
    ("attention", "missing"), [("sliding_window_gqa", "window_size"), ("chunked_gqa", "attention_chunk_size")]
)
def test_local_attention_names_the_field_that_it_needs(attention: str, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        attention_registry.get(attention)(BlockConfig(attention=attention, d_model=16, n_heads=2))


@pytest.mark.parametrize("mask", [None, "causal", "boolean", "additive"])
@pytest.mark.parametrize("attention", ["sliding_window_gqa", "chunked_gqa"])
def test_local_attention_is_full_attention_with_a_narrower_mask(attention: str, mask: str | None) -> None:
    config = BlockConfig(attention="gqa", d_model=16, n_heads=4, n_kv_heads=2)
    local = dataclasses.replace(config, attention=attention, window_size=3 if "sliding" in attention else None)
    if attention == "chunked_gqa":
        local = dataclasses.replace(local, attention_chunk_size=3)
    full, narrow = GQA(config), attention_registry.get(attention)(local)
    narrow.update(full.parameters())
    positions = mx.arange(10)
    near = positions[:, None] - positions < 3 if "sliding" in attention else positions[:, None] // 3 == positions // 3
    allowed = positions[:, None] >= positions if mask == "causal" else mx.random.uniform(shape=(10, 10)) < 0.7
    allowed = mx.ones((10, 10), dtype=mx.bool_) if mask is None else allowed | mx.eye(10).astype(mx.bool_)
    given = {"boolean": allowed, "additive": mx.where(allowed, 0.0, -1e9)}.get(mask or "", mask)
    x = mx.random.normal((2, 10, 16))
    assert mx.allclose(narrow(x, given)[0], full(x, allowed & near)[0], atol=1e-5)


def test_soft_capped_scores_never_pass_the_cap() -> None:
    config = BlockConfig(attention="gqa", d_model=16, n_heads=4, n_kv_heads=2, attention_softcap=0.01)
    capped, x = GQA(config), mx.random.normal((1, 6, 16)) * 100
    even = mx.softmax(mx.zeros((6, 6)), axis=-1)  # scores of at most 0.01 are nearly equal
    values = capped.v_proj(x).reshape(1, 6, 2, 4).transpose(0, 2, 1, 3)
    expected = capped.o_proj(mx.repeat(even @ values, 2, axis=1).transpose(0, 2, 1, 3).reshape(1, 6, 16))
    assert mx.abs(capped(x)[0] - expected).max() < 0.02 * mx.abs(values).max()


def test_the_output_gate_is_the_second_half_of_each_head_s_queries() -> None:
    config = dataclasses.replace(CONFIG, bias=False)
    plain, gated = GQA(config), GQA(dataclasses.replace(config, output_gate=True))
    queries, gates = gated.q_proj.weight.reshape(4, 2, 12, 32).swapaxes(0, 1).reshape(2, 48, 32)
    plain.update(gated.parameters())
    plain.q_proj.weight = queries
    identity = mx.eye(48)
    plain.o_proj.weight = identity
    x = mx.random.normal((2, 7, 32))
    expected = (plain(x)[0] * mx.sigmoid(x @ gates.T)) @ gated.o_proj.weight.T
    assert mx.abs(gated(x)[0] - expected).max() < 1e-5
    assert GQA.flops(gated.config, 7) - GQA.flops(config, 7) == 2 * 32 * 48


def test_the_output_gate_is_refused_where_nothing_reads_it() -> None:
    with pytest.raises(ValueError, match="output_gate True would be ignored"):
        BlockConfig(attention="gated_deltanet", output_gate=True)

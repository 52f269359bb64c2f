"""Native sparse attention against a loop over queries in numpy, written from the paper (2502.11089, section 3)."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.config import BlockConfig
from lmxlab.core.mask import causal
from lmxlab.core.position import RoPE
from lmxlab.core.sparse_attention import SparseGQA
from lmxlab.errors import UserError

CONFIG = BlockConfig(
    attention="sparse_gqa",
    position="rope",
    d_model=16,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
    bias=False,
    sparse_compress_ratio=3,
    sparse_select_k=2,
    window_size=4,
)


def build(config: BlockConfig = CONFIG) -> SparseGQA:
    layer = SparseGQA(config)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "branch_gate"):
        layer[name].weight = 0.4 * mx.random.normal(layer[name].weight.shape)
    return layer


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def by_hand(layer: SparseGQA, x: mx.array, turn: bool) -> np.ndarray:
    """One query of one row after another, in float64."""
    config = layer.config
    heads, groups, dim, size = config.n_heads, config.n_kv_heads, int(config.head_dim), config.sparse_compress_ratio

    def rotate(a: np.ndarray) -> np.ndarray:
        angles = np.outer(np.arange(a.shape[0]), config.rope_theta ** -(np.arange(dim // 2) / (dim // 2)))[:, None]
        low, high = a[..., : dim // 2], a[..., dim // 2 :]
        turned = [low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles)]
        return np.concatenate(turned, -1) if turn else a

    out = []
    for row in np.array(x, dtype=np.float64):
        q, k, v, gates = (
            row @ np.array(layer[name].weight, dtype=np.float64).T
            for name in ("q_proj", "k_proj", "v_proj", "branch_gate")
        )
        q, gates = rotate(q.reshape(-1, heads, dim)), 1 / (1 + np.exp(-gates.reshape(-1, 3, heads)))
        k, v = rotate(k.reshape(-1, 3 * groups, dim)), v.reshape(-1, 3 * groups, dim)
        for t in range(len(row)):
            heard = np.zeros((heads, dim))
            for group in range(groups):
                mine = range(group * heads // groups, (group + 1) * heads // groups)
                ended, own = (t + 1) // size, t // size
                coarse_k, coarse_v = (
                    a[: ended * size, group].reshape(ended, size, dim).mean(1) for a in (k, v)
                )  # equation 7, with the mean for the learned map
                importance = np.zeros(own)
                for h in mine:
                    if ended:
                        p = softmax(coarse_k @ q[t, h] / np.sqrt(dim))
                        heard[h] += gates[t, 0, h] * p @ coarse_v
                        importance += p[:own]  # equation 10: shared by the heads of a group
                best = np.argsort(-importance)[: config.sparse_select_k - 1]
                places = [j for block in sorted({own, *best}) for j in range(block * size, (block + 1) * size)]
                for branch, seen in (
                    (1, [j for j in places if j <= t]),
                    (2, list(range(max(0, t - config.window_size + 1), t + 1))),
                ):
                    keys, values = (a[seen, branch * groups + group] for a in (k, v))
                    for h in mine:
                        heard[h] += gates[t, branch, h] * softmax(keys @ q[t, h] / np.sqrt(dim)) @ values
            out.append(heard.reshape(-1) @ np.array(layer.o_proj.weight, dtype=np.float64).T)
    return np.array(out).reshape(x.shape)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20, 33])
@pytest.mark.parametrize("turn", [False, True], ids=["no rope", "rope"])
@pytest.mark.parametrize("select", [1, 2, 4, 50])
def test_the_layer_is_the_paper_s_three_branches(length: int, turn: bool, select: int) -> None:
    layer = build(dataclasses.replace(CONFIG, sparse_select_k=select))
    x = mx.random.normal((2, length, 16))
    out, cache = layer(x, mask="causal", rope=RoPE(CONFIG) if turn else None)
    np.testing.assert_allclose(np.array(out), by_hand(layer, x, turn), atol=1e-5)
    assert cache.offset == length
    assert mx.array_equal(layer(x, mask=causal(length, length), rope=RoPE(CONFIG) if turn else None)[0], out)


@pytest.mark.parametrize("sizes", [[1] * 20, [7, *[1] * 13], [7, 3, 3, 3, 4], [2, 18]])
def test_a_sequence_in_parts_is_the_whole_one(sizes: list[int]) -> None:
    layer, turn, x = build(), RoPE(CONFIG), mx.random.normal((2, 20, 16))
    whole, _ = layer(x, rope=turn)
    cache, parts = layer.make_cache(), []
    for size in sizes:
        part, cache = layer(x[:, cache.offset : cache.offset + size], cache=cache, rope=turn)
        parts.append(part)
    assert mx.abs(mx.concatenate(parts, axis=1) - whole).max() < 1e-5


def test_later_tokens_change_nothing_at_all_before_them() -> None:
    layer, turn, x = build(), RoPE(CONFIG), mx.random.normal((1, 26, 16))
    out, _ = layer(x, rope=turn)
    for cut in (1, 2, 3, 12, 13, 25):
        other, _ = layer(mx.concatenate([x[:, :cut], 3 - x[:, cut:]], axis=1), rope=turn)
        assert mx.array_equal(out[:, :cut], other[:, :cut])
        assert mx.abs(out[:, cut:] - other[:, cut:]).max() > 1e-2


def test_padding_on_the_left_changes_nothing() -> None:
    layer, turn, x = build(), RoPE(CONFIG), mx.random.normal((3, 14, 16))
    padded = layer.make_cache()
    padded.left_padding = mx.array([0, 4, 13])
    out, padded = layer(x, cache=padded, rope=turn)
    more = mx.random.normal((3, 1, 16))
    later, _ = layer(more, cache=padded, rope=turn)
    for row, start in enumerate([0, 4, 13]):
        alone, cache = layer(x[row : row + 1, start:], rope=turn)
        assert mx.abs(out[row, start:] - alone[0]).max() < 1e-5
        assert mx.abs(later[row] - layer(more[row : row + 1], cache=cache, rope=turn)[0][0]).max() < 1e-5
    assert mx.isfinite(out).all()


def test_a_query_looks_into_its_own_block_and_as_many_before_it_as_it_may() -> None:
    weights, queries = mx.random.uniform(shape=(1, 2, 2, 15, 5)), mx.arange(15)[None, :, None]
    everything = build(dataclasses.replace(CONFIG, sparse_select_k=99))._selected(weights, queries, 5)
    assert mx.array_equal(everything[0, 0], mx.arange(15)[:, None] // 3 >= mx.arange(5))
    few = build()._selected(weights, queries, 5)
    assert mx.array_equal(few.sum(axis=-1)[0, 0], mx.where(mx.arange(15) < 3, 1, 2))
    assert mx.array_equal(few & everything, few)


@pytest.mark.parametrize("missing", ["sparse_compress_ratio", "sparse_select_k", "window_size"])
def test_a_missing_field_is_named(missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        SparseGQA(dataclasses.replace(CONFIG, **{missing: None}))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="mask='causal'"):
        build()(mx.zeros((1, 3, 16)), mask=mx.zeros((3, 3)))
    with pytest.raises(UserError, match="qk_norm_joint"):
        SparseGQA(dataclasses.replace(CONFIG, qk_norm=True, qk_norm_joint=True))


def test_the_cache_holds_what_it_says() -> None:
    _, cache = build()(mx.zeros((1, 5, 16)))
    assert cache.keys.size + cache.values.size == 5 * SparseGQA.cached_numbers(CONFIG)[0]

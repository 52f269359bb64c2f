"""Softmax, and attention, which is a softmax between two matrix products."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from lmxlab.core.kernels.activations import exp_neg
from lmxlab.core.kernels.passes import fence, row_sums, spread, with_vjp
from lmxlab.core.kernels.switch import is_fast
from lmxlab.core.mask import Mask, additive
from lmxlab.core.taps import watched


def softmax(x: mx.array) -> mx.array:
    """exp(x) / sum(exp(x)) over the last axis of (..., n)."""
    return _softmax(x) if is_fast(x) else mx.softmax(x, axis=-1, precise=True)


def attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask = None, softcap: float | None = None
) -> mx.array:
    """softmax(scale q k^T + mask) v.

    Args:
        q: (B, H, Tq, D).
        k: (B, Hkv, Tk, D), Hkv dividing H: each key/value head serves H / Hkv consecutive query heads.
        v: (B, Hkv, Tk, Dv).
        mask: None, "causal" (query i sees the keys up to Tk - Tq + i), boolean (True: may attend) or additive,
            broadcastable to (B, H, Tq, Tk).
        softcap: scores s become cap tanh(s / cap) before the mask (2408.00118, section 2).

    Returns:
        (B, H, Tq, Dv).
    """
    watched(q, k, v, scale, mask, softcap)
    (batch, heads, queries, _), (_, groups, keys, _) = q.shape, k.shape
    if softcap is not None:
        return _capped_attention(q, k, v, scale, mask, softcap)
    if not is_fast(q, elements=batch * heads * queries * keys):  # the scores are what it computes faster
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    share = heads // groups
    bias = additive(mask, queries, keys, mx.float32)
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    per_head = bias.shape[1] == heads
    bias = bias.reshape(bias.shape[0], groups if per_head else 1, share if per_head else 1, *bias.shape[2:])
    # The queries that share keys stand below each other: one matrix product for the group.
    grouped = (q * scale).reshape(batch * groups, share * queries, -1)
    k, v = (a.reshape(batch * groups, keys, -1) for a in (k, v))
    out = _attend((batch, groups, share, queries, keys))(grouped, k, v, bias)[0]
    return out.reshape(batch, heads, queries, -1)


def _capped_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask, cap: float) -> mx.array:
    (batch, heads, queries, _), (_, groups, keys, _) = q.shape, k.shape
    grouped = (q * scale).reshape(batch, groups, heads // groups, queries, -1)
    scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).reshape(batch, heads, queries, keys)
    scores = cap * mx.tanh(scores / cap) + additive(mask, queries, keys, scores.dtype)
    weights = softmax(scores).astype(v.dtype).reshape(batch, groups, heads // groups, queries, keys)
    return (weights @ v[:, :, None]).reshape(batch, heads, queries, -1)


def exponentials(scores: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """exp(scores - max), their sums and the maxima over the last axis of (..., n)."""
    top = scores.max(axis=-1, keepdims=True)
    weights = exp_neg(fence(spread(top, scores) - scores))
    total = row_sums(weights) if is_fast(weights) else weights.sum(axis=-1, keepdims=True)
    return weights, total, top


def _softmax_forward(x: mx.array) -> mx.array:
    weights, total, _ = exponentials(x)
    return fence(weights * spread(1 / total, weights))


def _softmax_backward(_x: mx.array, cotangent: mx.array, p: mx.array) -> mx.array:
    inner = row_sums(fence(cotangent * p))
    return fence(p * fence(cotangent - spread(inner, p)))


_softmax = with_vjp(_softmax_forward, _softmax_backward)


@cache
def _attend(shape: tuple[int, int, int, int, int]) -> Callable[..., Any]:
    """Attention over (B * Hkv, share * Tq, D) queries; shape is (B, Hkv, share, Tq, Tk)."""
    batch, groups, share, queries, keys = shape
    folded = (batch * groups, share * queries, keys)

    def forward(q: mx.array, k: mx.array, v: mx.array, bias: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        scores = (q @ k.swapaxes(-1, -2)).reshape(shape)
        if bias.size > 1:
            scores = fence(scores + spread(bias, scores))
        weights, total, _ = exponentials(scores.reshape(folded))
        out = weights @ v
        return fence(out * spread(1 / total, out)), weights, total

    def backward(inputs: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        (q, k, v, bias), (out, weights, total) = inputs, outputs
        g = cotangents[0]
        inner = row_sums(fence(g * out)) / total
        g = fence(g * spread(1 / total, g))
        d = g @ v.swapaxes(-1, -2)
        d = fence(weights * fence(d - spread(inner, d)))
        # Computed only if somebody asks for the gradient of the mask: MLX is lazy.
        d_bias = _sum_to(d.reshape(shape), bias.shape)
        return d @ k, d.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g, d_bias

    return with_vjp(forward, backward)


def _sum_to(x: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The transpose of a broadcast from `shape`."""
    missing = x.ndim - len(shape)
    axes = [i for i in range(x.ndim) if i < missing or shape[i - missing] == 1 != x.shape[i]]
    return x.sum(axis=axes).reshape(shape) if axes else x

"""Cross-entropy, from logits or straight from hidden states."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from lmxlab.core.kernels.attention import exponentials
from lmxlab.core.kernels.passes import fence, spread, with_vjp

_CHUNK_LOGITS = 1 << 21  # logits held at once on a CPU: 8 MiB
_CHUNK_LOGITS_GPU = 1 << 27


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Nats per token, in float32: logits (..., V), targets (...) -> (...)."""
    flat = logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
    return _cross_entropy(flat, targets.reshape(-1)).reshape(targets.shape)


def linear_cross_entropy(hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
    """Nats per token of the logits `hidden @ weight.T`, in float32, never holding more than a chunk of the logits.

    The backward pass computes each chunk's logits again, so neither pass holds (tokens, V).

    Args:
        hidden: (..., D).
        weight: (V, D).
        targets: (...), each in [0, V).

    Returns:
        (...) float32.
    """
    rows, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    return _linear_cross_entropy(rows_at_once(weight.shape[0]))(rows, weight, labels).reshape(targets.shape)


def rows_at_once(vocab_size: int) -> int:
    """How many rows of logits a chunk has."""
    budget = _CHUNK_LOGITS if mx.default_device() == mx.cpu else _CHUNK_LOGITS_GPU
    return max(1, budget // vocab_size)


def _cross_entropy_forward(logits: mx.array, targets: mx.array) -> mx.array:
    _, total, top = exponentials(logits)
    return (mx.log(total) + top - mx.take_along_axis(logits, targets[:, None], axis=1))[:, 0]


def _cross_entropy_backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
    logits, targets = inputs
    weights, total, _ = exponentials(logits)
    d = fence(weights * spread(cotangent[:, None] / total, weights))
    return d.at[mx.arange(targets.size), targets].add(-cotangent), mx.zeros_like(targets)


_cross_entropy = with_vjp(_cross_entropy_forward, _cross_entropy_backward)


@cache
def _linear_cross_entropy(chunk: int) -> Callable[..., mx.array]:
    """For chunks of so many rows. Each chunk waits for the one before, or they would all be in memory at once."""

    def logits_of(rows: mx.array, weight: mx.array) -> mx.array:
        return (rows @ weight.T).astype(mx.float32)

    def forward(hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
        nats: list[mx.array] = []
        for start in range(0, targets.size, chunk):
            rows = hidden[start : start + chunk]
            rows = mx.depends(rows, nats[-1]) if nats else rows
            nats.append(_cross_entropy(logits_of(rows, weight), targets[start : start + chunk]))
        return mx.concatenate(nats)

    def backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        hidden, weight, targets = inputs
        d_hidden: list[mx.array] = []
        d_weight = mx.zeros(weight.shape, mx.float32)
        for start in range(0, targets.size, chunk):
            part = slice(start, start + chunk)
            rows, labels, g = mx.depends(hidden[part], d_weight), targets[part], cotangent[part][:, None]
            weights, total, _ = exponentials(logits_of(rows, weight))
            # softmax - one-hot, without a pass over the logits: scale the rows after the product or before it,
            # and treat the one-hot part as a row of the weight.
            share, weights = g / total, weights.astype(rows.dtype)
            wide, scaled = (weights @ weight).astype(mx.float32), rows.astype(mx.float32)
            picked = weight[labels].astype(mx.float32)
            d_rows = fence(wide * spread(share, wide)) - fence(picked * spread(g, picked))
            d_hidden.append(d_rows.astype(hidden.dtype))
            d_chunk = weights.T @ fence(scaled * spread(share, scaled)).astype(rows.dtype)
            d_weight = d_weight + d_chunk.astype(mx.float32)
            d_weight = d_weight.at[labels].add(fence(scaled * spread(-g, scaled)))
        return mx.concatenate(d_hidden), d_weight.astype(weight.dtype), mx.zeros_like(targets)

    return with_vjp(forward, backward)

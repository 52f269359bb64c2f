"""Divergences between next-token distributions, straight from logits, with gradients that are written down."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from lmxlab.core.kernels.attention import exponentials
from lmxlab.core.kernels.passes import fence, row_sums, spread, with_vjp
from lmxlab.core.kernels.switch import is_fast

TINY = 1e-37  # below which a probability is taken for it, so that its logarithm is a number
LEAST_LOG = -1e30  # of a logit of -inf, whose probability of 0 times its logarithm is then 0


def divergence(student: mx.array, teacher: mx.array, kind: str, beta: float) -> mx.array:
    """Of q = softmax(student) and p = softmax(teacher), both logits (N, V) -> (N,) float32; p gets no gradient.

    "forward" is KL(p, q), "reverse" KL(q, p), "jsd" beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q.
    The gradient for the student's logits is q (g - sum q g), g being the derivative of the divergence for q: -p / q,
    log(q / p) and (1 - beta) log(q / m).
    """
    return _divergence(kind, beta)(student.astype(mx.float32), mx.stop_gradient(teacher).astype(mx.float32))


def coarse_log_softmax(logits: mx.array, indices: mx.array) -> mx.array:
    """log softmax(logits), (N, V), at the indices (N, k), and the log of what all others add up to: (N, k + 1).

    Where all V are named there are no others: (N, V).
    """
    return _coarse(logits.astype(mx.float32), mx.stop_gradient(indices))


@cache
def _divergence(kind: str, beta: float) -> Callable[..., mx.array]:
    def against(q: mx.array, log_q: mx.array, p: mx.array, log_p: mx.array) -> mx.array:
        """log(q / p), or for "jsd" log(q / m)."""
        other = log_p if kind != "jsd" else mx.log(mx.maximum(beta * p + (1 - beta) * q, TINY))
        return fence(log_q - other)

    def forward(student: mx.array, teacher: mx.array) -> mx.array:
        (q, log_q), (p, log_p) = _softmax(student), _softmax(teacher)
        ratio = against(q, log_q, p, log_p)
        if kind == "forward":
            return -_sum(fence(p * ratio))[:, 0]
        to_q = _sum(fence(q * ratio))[:, 0]
        if kind == "reverse":
            return to_q
        to_p = _sum(fence(p * fence(log_p - fence(log_q - ratio))))[:, 0]
        return beta * to_p + (1 - beta) * to_q

    def backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
        (q, log_q), (p, log_p) = map(_softmax, inputs)
        if kind == "forward":
            slope = fence(q - p)
        else:
            ratio = against(q, log_q, p, log_p)
            slope = fence(q * fence(ratio - spread(_sum(fence(q * ratio)), ratio)))
            slope = (1 - beta) * slope if kind == "jsd" else slope
        return fence(slope * spread(cotangent[:, None], slope)), mx.zeros_like(inputs[1])

    return with_vjp(forward, backward)


def _coarse_forward(logits: mx.array, indices: mx.array) -> mx.array:
    weights, total, top = exponentials(logits)
    named = mx.take_along_axis(logits, indices, axis=1) - top - mx.log(total)
    if indices.shape[1] == logits.shape[1]:
        return named
    return mx.concatenate([named, mx.log(mx.maximum(_rest(weights, indices), TINY) / total)], axis=1)


def _coarse_backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, mx.array]:
    logits, indices = inputs
    weights, total, _ = exponentials(logits)
    share = -cotangent.sum(axis=1, keepdims=True) / total
    named = cotangent[:, : indices.shape[1]] + mx.take_along_axis(weights, indices, axis=1) * share
    if indices.shape[1] < logits.shape[1]:
        share = share + cotangent[:, -1:] / mx.maximum(_rest(weights, indices), TINY)
    d = fence(weights * spread(share, weights))
    return mx.put_along_axis(d, indices, named, axis=1), mx.zeros_like(indices)


_coarse = with_vjp(_coarse_forward, _coarse_backward)


def _rest(weights: mx.array, indices: mx.array) -> mx.array:
    return _sum(mx.put_along_axis(weights, indices, mx.array(0.0), axis=1))


def _softmax(logits: mx.array) -> tuple[mx.array, mx.array]:
    """softmax and log softmax of (N, V)."""
    weights, total, top = exponentials(logits)
    logs = mx.maximum(logits - spread(top + mx.log(total), logits), LEAST_LOG)
    return fence(weights * spread(1 / total, weights)), fence(logs)


def _sum(x: mx.array) -> mx.array:
    """(N, V) -> (N, 1)."""
    return row_sums(x) if is_fast(x) else x.sum(axis=-1, keepdims=True)

"""Normalisation and linear layers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from lmxlab.core.kernels.passes import column_sums, fence, row_sums, spread, with_vjp
from lmxlab.core.kernels.switch import is_fast


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return _rms_norm(eps)(x, weight)[0] if is_fast(x, weight) else mx.fast.rms_norm(x, weight, eps)


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array | None, eps: float) -> mx.array:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis."""
    if not is_fast(x, weight):
        return mx.fast.layer_norm(x, weight, bias, eps)
    return _layer_norm(eps)(x, weight, mx.zeros_like(weight) if bias is None else bias)[0]


def linear(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """x @ weight.T + bias: x (..., n), weight (m, n), bias (m,) -> (..., m)."""
    if not is_fast(x, weight, bias):
        return mx.addmm(bias, x, weight.T)
    return _linear(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], -1)


@cache
def _layer_norm(eps: float) -> Callable[..., Any]:
    def forward(x: mx.array, weight: mx.array, bias: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        rows, n = x.reshape(-1, x.shape[-1]), x.shape[-1]
        centred = fence(rows - spread(row_sums(rows) / n, rows))
        rstd = fence(mx.rsqrt(row_sums(fence(centred * centred)) / n + eps))
        normal = fence(centred * spread(rstd, centred))
        out = fence(fence(normal * spread(weight, normal)) + spread(bias, normal))
        return out.reshape(x.shape), normal, rstd

    def backward(inputs: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        (x, weight, _), (_, normal, rstd) = inputs, outputs
        g = cotangents[0].reshape(normal.shape)
        column = weight.reshape(-1, 1) / weight.size
        product = fence(g * normal)
        d = fence(g * spread(weight, g))
        d = fence(d - spread(g @ column, d))
        d = fence(d - fence(normal * spread(product @ column, d)))
        d = fence(d * spread(rstd, d))
        return d.reshape(x.shape), column_sums(product), column_sums(g)

    return with_vjp(forward, backward)


@cache
def _rms_norm(eps: float) -> Callable[..., Any]:
    def forward(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        rows, n = x.reshape(-1, x.shape[-1]), x.shape[-1]
        rstd = fence(mx.rsqrt(row_sums(fence(rows * rows)) / n + eps))
        normal = fence(rows * spread(rstd, rows))
        return fence(normal * spread(weight, normal)).reshape(x.shape), normal, rstd

    def backward(inputs: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        (x, weight), (_, normal, rstd) = inputs, outputs
        g = cotangents[0].reshape(normal.shape)
        product = fence(g * normal)
        d = fence(g * spread(weight, g))
        d = fence(d - fence(normal * spread(product @ (weight.reshape(-1, 1) / weight.size), d)))
        d = fence(d * spread(rstd, d))
        return d.reshape(x.shape), column_sums(product)

    return with_vjp(forward, backward)


def _linear_forward(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    y = x @ weight.T
    return fence(y + spread(bias, y))


def _linear_backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    x, weight, _ = inputs
    return cotangent @ weight, cotangent.T @ x, column_sums(cotangent)


_linear = with_vjp(_linear_forward, _linear_backward)

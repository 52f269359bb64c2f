"""How passes over arrays are kept vectorised on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from lmxlab import platform

F = TypeVar("F", bound=Callable[..., Any])


def fence(x: mx.array) -> mx.array:
    """x itself, costing nothing; `mx.compile` does not fuse across it."""
    return mx.depends(x, x)


def spread(x: mx.array, like: mx.array) -> mx.array:
    """x broadcast to the shape of `like`, fenced: an operation with it runs as one vectorised pass."""
    return fence(mx.broadcast_to(x, like.shape))


def flat(function: Callable[..., Any], *arrays: mx.array) -> Any:
    """Elementwise `function` of kernels, applied to the arrays (all of one shape) as contiguous vectors."""
    out = function(*(a.reshape(-1) for a in arrays))
    shape = arrays[0].shape
    return out.reshape(shape) if isinstance(out, mx.array) else [o.reshape(shape) for o in out]


def row_sums(x: mx.array) -> mx.array:
    """(..., n) -> (..., 1)."""
    return x @ mx.ones((x.shape[-1], 1))


def column_sums(x: mx.array) -> mx.array:
    """(m, n) -> (n,)."""
    return (mx.ones((1, x.shape[0])) @ x).reshape(-1)


def kernel(function: F) -> F:
    """Elementwise `function` compiled as one pass, also inside a compiled step.

    It must be at most 11 operations deep: MLX fuses no more, and would cut it where a constant becomes an operand. Not
    compiled for all shapes at once, because then every constant is one.
    """
    compiled = platform.compile(function)

    @functools.wraps(function)
    def call(*arrays: mx.array) -> Any:
        out: Any = compiled(*map(fence, arrays))
        return fence(out) if isinstance(out, mx.array) else [fence(o) for o in out]

    return call  # type: ignore[return-value]  # wraps() keeps the signature


def with_vjp(forward: F, backward: Callable[..., Any]) -> F:
    """`forward` with its own vector-Jacobian product: backward(inputs, cotangents, outputs) -> one per input."""
    operation = mx.custom_function(forward)
    operation.vjp(backward)
    return operation  # type: ignore[return-value]  # it is called as `forward` is

"""How passes over arrays are kept vectorised on a CPU."""

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
    """Elementwise `function`, compiled as a kernel of its own over contiguous operands."""
    out = function(*(fence(a.reshape(-1)) for a in arrays))
    shape = arrays[0].shape
    return fence(out).reshape(shape) if isinstance(out, mx.array) else [fence(o).reshape(shape) for o in out]


def row_sums(x: mx.array) -> mx.array:
    """(..., n) -> (..., 1)."""
    return x @ mx.ones((x.shape[-1], 1))


def column_sums(x: mx.array) -> mx.array:
    """(m, n) -> (n,)."""
    return (mx.ones((1, x.shape[0])) @ x).reshape(-1)


def kernel(function: F) -> F:
    """`function` compiled by itself, once for all shapes: inside a compiled step it becomes part of that."""
    return platform.compile(function, shapeless=True)


def with_vjp(forward: F, backward: Callable[..., Any]) -> F:
    """`forward` with its own vector-Jacobian product: backward(inputs, cotangents, outputs) -> one per input."""
    operation = mx.custom_function(forward)
    operation.vjp(backward)
    return operation  # type: ignore[return-value]  # it is called as `forward` is

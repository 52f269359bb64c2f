"""Taking an array apart for a loop over one of its axes, with a gradient that costs no more than the array."""

from typing import Any

import mlx.core as mx

from lmxlab.core.kernels.passes import with_vjp


def _forward(x: mx.array) -> list[mx.array]:
    return [x[i] for i in range(x.shape[0])]


def _backward(_x: mx.array, cotangents: Any, _outputs: Any) -> mx.array:
    return mx.stack(list(cotangents))


unstack = with_vjp(_forward, _backward)
"""x (n, ...) -> n arrays (...).

MLX's gradient of one slice, also of those of `mx.split`, is an array as large as the whole: n of them would make the
backward pass of a loop quadratic in its length. This one stacks n slices once.

>>> [part.tolist() for part in unstack(mx.array([[1, 2], [3, 4]]))]
[[1, 2], [3, 4]]
"""

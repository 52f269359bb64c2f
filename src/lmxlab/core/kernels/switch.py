"""Whether the CPU forms serve, and the one switch that turns them off."""

import os

import mlx.core as mx

from lmxlab import platform

# Below this, as in decoding token by token, the CPU forms cost more in calls than they save in arithmetic.
FEWEST_ELEMENTS = 1 << 14

_exact = os.environ.get("LMXLAB_EXACT", "") not in ("", "0")


def exact(on: bool) -> None:
    """Switches MLX's own operations on a CPU on, or off again. Functions compiled before keep what they had."""
    global _exact
    _exact = on


def is_exact() -> bool:
    """Whether the switch asks for MLX's own operations."""
    return _exact


def is_fast(*arrays: mx.array, elements: int = 0) -> bool:
    """Whether the CPU forms serve for these arrays, or for an intermediate result of so many elements."""
    for array in arrays:  # what is false most often comes first: decoding asks hundreds of times per token
        elements = max(elements, array.size)
    if elements < FEWEST_ELEMENTS or _exact or mx.default_device() != mx.cpu:
        return False
    return all(array.dtype == mx.float32 for array in arrays) and platform.can_compile()

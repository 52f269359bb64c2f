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
    on_cpu = mx.default_device() == mx.cpu and all(a.dtype == mx.float32 for a in arrays)
    large = max(elements, *(a.size for a in arrays)) >= FEWEST_ELEMENTS
    return on_cpu and large and not _exact and platform.can_compile()

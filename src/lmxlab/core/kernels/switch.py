"""Whether the CPU forms serve, and the one switch that turns them off."""

import os

import mlx.core as mx

from lmxlab import platform

_exact = os.environ.get("LMXLAB_EXACT", "") not in ("", "0")


def exact(on: bool) -> None:
    """Switches MLX's own operations on a CPU on, or off again. Functions compiled before keep what they had."""
    global _exact
    _exact = on


def is_fast(*arrays: mx.array) -> bool:
    """Whether the CPU forms serve for these arrays."""
    on_cpu = mx.default_device() == mx.cpu
    return on_cpu and not _exact and all(a.dtype == mx.float32 for a in arrays) and platform.can_compile()

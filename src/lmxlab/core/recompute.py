"""Memory for time: intermediate results that are computed again for the backward pass instead of being kept."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def recompute(module: nn.Module, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
    """function(*inputs), which reads parameters of `module`; nothing computed on the way is kept for its gradient."""
    own = module.trainable_parameters()

    def call(parameters: dict[str, Any], *inputs: mx.array) -> mx.array:
        module.update(parameters)
        try:
            return function(*inputs)
        finally:
            module.update(own)  # what is traced or differentiated inside must not stay in the module

    out: mx.array = mx.checkpoint(call)(own, *inputs)
    return out

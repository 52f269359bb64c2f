"""Memory for time: intermediate results that are computed again for the backward pass instead of being kept."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core.dropout import drawing_from, new_key


def recompute(module: nn.Module, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
    """function(*inputs), which reads parameters of `module`; nothing computed on the way is kept for its gradient.

    Frozen parameters get none (quantised ones cannot have one). What the module itself changes in a forward pass (the
    loads of experts) changes once. Dropout inside the module draws the same both times.
    """
    own, trained = module.parameters(), module.trainable_parameters()
    draws = any(getattr(part, "draws", False) for part in module.modules())
    key = new_key() if draws else None

    def call(parameters: dict[str, Any], *inputs: mx.array) -> tuple[mx.array, dict]:
        module.update(parameters)
        before = module.parameters()
        try:
            with nullcontext() if key is None else drawing_from(key):
                return function(*inputs), _changed(module, before)
        finally:
            module.update(own)  # what is traced or differentiated inside must not stay in the module

    out, changed = mx.checkpoint(call)(trained, *inputs)
    if changed:
        module.update(tree_unflatten([(name, mx.stop_gradient(array)) for name, array in changed.items()]))
    result: mx.array = out
    return result


def _changed(module: nn.Module, before: dict[str, Any]) -> dict[str, mx.array]:
    was, now = dict(_leaves(before)), _leaves(module.parameters())
    return {name: array for name, array in now if array is not was[name]}


def _leaves(tree: dict[str, Any]) -> list[tuple[str, mx.array]]:
    leaves: Any = tree_flatten(tree)
    return leaves

"""Memory for time: intermediate results that are computed again for the backward pass instead of being kept."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


def recompute(module: nn.Module, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
    """function(*inputs), which reads parameters of `module`; nothing computed on the way is kept for its gradient.

    What the module itself changes in a forward pass (the loads of experts) changes once. Random numbers must come from
    a key among the inputs (`dropout.drawing_from`), so that both passes draw the same.
    """
    own = module.parameters()

    def call(parameters: dict[str, Any], *inputs: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        module.update(parameters)
        try:
            return function(*inputs), _changed(module, parameters)
        finally:
            module.update(own)  # what is traced or differentiated inside must not stay in the module

    out, changed = mx.checkpoint(call)(own, *inputs)
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

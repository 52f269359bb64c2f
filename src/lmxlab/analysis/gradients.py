"""How large the gradients of each layer are."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from lmxlab.analysis.activations import number
from lmxlab.models.base import evaluating


def gradient_norms(model: Any, x: mx.array, y: mx.array) -> dict[str, float]:
    """The norm of the gradient of the mean loss for each layer, in order: {"embed": ..., "blocks.0": ..., ...}.

    x (B, T) tokens, y (B, T) next tokens; dropout off. Frozen parameters have none.
    """
    return layer_norms_of(gradient_of(model, lambda model: model.nats(x, y).mean()))


def gradient_of(model: nn.Module, loss: Callable[[nn.Module], mx.array]) -> Any:
    """The gradient of loss(model) for the trainable parameters, dropout off; the model is left as it was."""
    state = model.parameters()
    with evaluating(model):
        try:
            gradient = nn.value_and_grad(model, loss)(model)[1]
        finally:
            model.update(state)  # what was traced, or counted on the way, must not stay in it
        mx.eval(gradient)
    return gradient


def layer_norms_of(gradients: Any) -> dict[str, float]:
    """The L2 norm over all arrays of each layer ("blocks.N", or a part of the model) of a tree, in its order."""
    leaves: Any = tree_flatten(gradients)
    squares: dict[str, mx.array] = {}
    for path, leaf in leaves:
        name = layer_name(path)
        squares[name] = squares.get(name, mx.array(0.0)) + mx.square(leaf.astype(mx.float32)).sum()
    order = sorted(squares, key=lambda name: (not name.startswith("embed"), not name.startswith("blocks")))
    return {name: number(mx.sqrt(squares[name])) for name in order}


def layer_name(path: str) -> str:
    """The layer of a parameter.

    >>> layer_name("blocks.3.ffn.up.weight"), layer_name("embed.weight")
    ('blocks.3', 'embed')
    """
    parts = path.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]

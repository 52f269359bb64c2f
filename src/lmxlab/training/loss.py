"""The language-model loss and the precision it is computed in."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from lmxlab.core import kernels
from lmxlab.models.base import evaluating
from lmxlab.training.config import TrainConfig

Batch = tuple[mx.array, mx.array]

# float16 gradients under 6e-8 vanish; the loss, and with it every gradient, is raised before the backward pass.
FLOAT16_LOSS_SCALE = 1024.0


def token_nats(model: nn.Module, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
    """Cross-entropy summed over the targets, and how many targets were scored, both float32 scalars.

    x (B, T) tokens; y (B, T) next tokens, where a negative one (the usual -100) is not scored. Logits are computed
    chunk by chunk for a LanguageModel; any other module is called and may return logits (B, T, V) or a tuple that
    starts with them.
    """
    targets = mx.maximum(y, 0)
    if hasattr(model, "hidden_states"):
        hidden, _ = model.hidden_states(x)
        nats = kernels.linear_cross_entropy(hidden, model.output_weight, targets)
    else:
        out = model(x)
        nats = kernels.cross_entropy(out[0] if isinstance(out, tuple) else out, targets)
    scored = (y >= 0).astype(mx.float32)
    return (nats.astype(mx.float32) * scored).sum(), scored.sum()


def sum_nats(
    model: nn.Module, batches: Iterable[Batch], score: Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]
) -> tuple[float, float]:
    """Nats and scored targets of all batches, as `score(x, y)` gives them per batch; dropout off meanwhile."""
    nats = targets = 0.0
    with evaluating(model):
        for x, y in batches:
            batch_nats, count = score(x, y)
            nats, targets = nats + item(batch_nats), targets + item(count)
    return nats, targets


def item(scalar: mx.array) -> float:
    """The Python float of an array of one real number."""
    return float(scalar.item())  # type: ignore[arg-type]  # item() may also be complex


class Precision:
    """Runs a model's arithmetic in `config.dtype` while its parameters stay what they are (float32 master weights)."""

    def __init__(self, config: TrainConfig):
        self.dtype: mx.Dtype | None = None if config.dtype == "float32" else getattr(mx, config.dtype)
        self.loss_scale = FLOAT16_LOSS_SCALE if config.dtype == "float16" else 1.0

    def cast(self, parameters: Any) -> Any:
        """The floating-point arrays of a parameter tree in the compute type; differentiable."""
        if self.dtype is None:
            return parameters
        return tree_map(lambda p: p.astype(self.dtype) if mx.issubdtype(p.dtype, mx.floating) else p, parameters)

    @contextmanager
    def computing(self, model: nn.Module) -> Iterator[None]:
        """Within the block all parameters of the model are in the compute type; afterwards the masters are back."""
        masters = model.parameters()
        model.update(self.cast(masters))
        try:
            yield
        finally:
            model.update(masters)

    def value_and_grad(self, model: nn.Module, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array, Any]:
        """Mean loss, scored tokens, and the gradient for the trainable parameters, in the parameters' own types."""

        def loss(trainable: Any) -> tuple[mx.array, mx.array]:
            model.update(self.cast(trainable))
            nats, count = token_nats(model, x, y)
            return nats / mx.maximum(count, 1) * self.loss_scale, count

        trainable = model.trainable_parameters()
        with self.computing(model):
            (mean, count), gradients = mx.value_and_grad(loss)(trainable)
        if self.loss_scale != 1:
            mean, gradients = tree_map(lambda a: a / self.loss_scale, (mean, gradients))
        return mean, count, gradients

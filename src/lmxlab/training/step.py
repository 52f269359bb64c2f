"""One optimizer step as a function of arrays, compiled whole: forward, backward, clipping and update."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from lmxlab import platform
from lmxlab.training.config import TrainConfig
from lmxlab.training.loss import Precision, token_nats
from lmxlab.training.parallel import Balance, map_batch

Batch = tuple[mx.array, mx.array]


class Steps:
    """The compiled functions of one model, optimizer and config.

    Compiled functions hold the very containers of `model.state`, `optimizer.state` and `mx.random.state`: their arrays
    may be replaced in place (checkpoints do), the containers may not.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: TrainConfig):
        self.model = model
        self.optimizer = optimizer
        self.precision = Precision(config)
        self.max_grad_norm = config.max_grad_norm
        optimizer.init(model.trainable_parameters())
        self.state = [model.state, optimizer.state, mx.random.state]
        self.compiled = config.compile_step and platform.can_compile()
        self.update = self._compile(self._update, writes=self.state)
        self.gradients = self._compile(self._gradients, writes=[mx.random.state])
        self.apply = self._compile(self._apply, writes=self.state)
        self.score = self._compile(self._score, writes=[])

    def _compile(self, function: Callable[..., Any], writes: list[Any]) -> Callable[..., Any]:
        return mx.compile(function, inputs=self.state, outputs=writes) if self.compiled else function

    def _update(self, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        loss, _, gradients = self._gradients(x, y)
        return loss, self._apply(gradients)

    def _gradients(self, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array, Any]:
        parts = map_batch(lambda x, y: self.precision.value_and_grad(self.model, x, y), x, y)
        if len(parts) == 1:
            loss, count, gradients = parts[0]
            return loss, count, gradients
        losses, counts, trees = map(list, zip(*parts, strict=True))
        count = mx.stack(counts).sum()
        shares = [c / mx.maximum(count, 1) for c in counts]
        balance = Balance()

        def mean(*gradients: mx.array) -> mx.array:
            with balance.stream(gradients[0]):
                weighted = [g * w.astype(g.dtype) for g, w in zip(gradients, shares, strict=True)]
                return reduce(mx.add, weighted)

        loss = mx.stack([loss * w for loss, w in zip(losses, shares, strict=True)]).sum()
        return loss, count, tree_map(mean, *trees)

    def _apply(self, gradients: Any) -> mx.array:
        """Clips, updates the parameters, returns the norm before clipping."""
        norm = global_norm(gradients)
        if self.max_grad_norm:
            scale = mx.minimum(self.max_grad_norm / (norm + 1e-6), 1.0)
            balance = Balance()

            def clipped(gradient: mx.array) -> mx.array:
                with balance.stream(gradient):
                    return gradient * scale.astype(gradient.dtype)

            gradients = tree_map(clipped, gradients)
        self.optimizer.update(self.model, gradients)
        return norm

    def _score(self, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        with self.precision.computing(self.model):
            parts = map_batch(lambda x, y: token_nats(self.model, x, y), x, y)
        nats, counts = map(list, zip(*parts, strict=True))
        return mx.stack(nats).sum(), mx.stack(counts).sum()


def global_norm(gradients: Any) -> mx.array:
    """Euclidean norm over all arrays of a tree, a float32 scalar."""
    leaves: list[tuple[str, mx.array]] = tree_flatten(gradients)  # type: ignore[assignment]
    balance = Balance()
    squares = []
    for _, gradient in leaves:
        with balance.stream(gradient):
            # Columns first: on a CPU that is vectorised (10.6 M elements take 11 ms, a BLAS dot product 20, one sum 24)
            # and more exact than a running sum over millions of squares.
            squares.append(mx.square(gradient.astype(mx.float32)).sum(axis=0).sum())
    return mx.sqrt(mx.stack(squares).sum())

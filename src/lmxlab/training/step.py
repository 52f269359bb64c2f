"""One optimizer step as a function of arrays, compiled whole: loss, backward pass, clipping and update."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from lmxlab import platform
from lmxlab.core.precision import cast
from lmxlab.core.router import balance, routers
from lmxlab.training.config import TrainConfig
from lmxlab.training.objective import Loss, Objective

# float16 gradients under 6e-8 vanish; the loss, and with it every gradient, is raised before the backward pass.
FLOAT16_LOSS_SCALE = 1024.0

Means = dict[str, mx.array]  # "loss" and what the objective tells beside it


class Precision:
    """Runs a model's arithmetic in `config.dtype` while its parameters stay what they are (float32 master weights)."""

    def __init__(self, config: TrainConfig):
        self.dtype: mx.Dtype | None = None if config.dtype == "float32" else getattr(mx, config.dtype)
        self.loss_scale = FLOAT16_LOSS_SCALE if config.dtype == "float16" else 1.0

    def cast(self, parameters: Any) -> Any:
        """The floating-point arrays of a parameter tree in the compute type; differentiable."""
        dtype = self.dtype
        if dtype is None:
            return parameters
        return tree_map_with_path(lambda path, p: cast(path, p, dtype), parameters)

    @contextmanager
    def computing(self, model: nn.Module) -> Iterator[None]:
        """Within the block all parameters of the model are in the compute type; afterwards the masters are back."""
        masters = model.parameters()
        model.update(self.cast(masters))
        try:
            yield
        finally:
            model.update(masters)

    def value_and_grad(self, model: nn.Module, objective: Objective, *batch: mx.array) -> tuple[Means, mx.array, Any]:
        """Mean loss and metrics, what they are means over, and the gradient of the loss for the trainable parameters.

        Gradients have the parameters' own types.
        """

        def loss(trainable: Any) -> tuple[mx.array, mx.array, Means]:
            model.update(self.cast(trainable))
            total, count, metrics = objective(model, *batch)
            means = tree_map(lambda a: a / mx.maximum(count, 1), {"loss": total, **metrics})
            return means["loss"] * self.loss_scale, count, means

        trainable = model.trainable_parameters()
        with self.computing(model):
            (_, count, means), gradients = mx.value_and_grad(loss)(trainable)
        if self.loss_scale != 1:
            gradients = tree_map(lambda a: a / self.loss_scale, gradients)
        return means, count, gradients


class Steps:
    """The compiled functions of one model, optimizer, config and objective.

    Compiled functions hold the very containers of `model.state`, `optimizer.state` and `mx.random.state`: their arrays
    may be replaced in place (checkpoints do), the containers may not.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: TrainConfig, objective: Objective):
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.precision = Precision(config)
        self.max_grad_norm = config.max_grad_norm
        optimizer.init(model.trainable_parameters())
        self.state = [model.state, optimizer.state, mx.random.state]
        self.compiled = config.compile_step and platform.can_compile()
        self.update = self._compile(self._update, writes=self.state)
        # The loads of experts add up over the micro-batches of a step; `apply` balances by their sum.
        counts = [router.state for _, router in routers(model)]
        self.gradients = self._compile(self._gradients, writes=[mx.random.state, *counts])
        self.apply = self._compile(self._apply, writes=self.state)
        self.score = self._compile(self._score, writes=[])

    def _compile(self, function: Callable[..., Any], writes: list[Any]) -> Callable[..., Any]:
        return mx.compile(function, inputs=self.state, outputs=writes) if self.compiled else function

    def _update(self, *batch: mx.array) -> tuple[Means, mx.array]:
        means, _, gradients = self._gradients(*batch)
        return means, self._apply(gradients)

    def _gradients(self, *batch: mx.array) -> tuple[Means, mx.array, Any]:
        point = getattr(self.optimizer, "gradient_point", None)
        if point is None:
            return self.precision.value_and_grad(self.model, self.objective, *batch)
        parameters = self.model.trainable_parameters()
        self.model.update(point(parameters))
        try:
            return self.precision.value_and_grad(self.model, self.objective, *batch)
        finally:
            self.model.update(parameters)

    def _score(self, *batch: mx.array) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
        with self.precision.computing(self.model):
            loss: Loss = self.objective(self.model, *batch)
        return loss.total, loss.counted, loss.metrics

    def _apply(self, gradients: Any) -> mx.array:
        """Clips, updates the parameters, balances the experts, returns the norm before clipping."""
        norm = global_norm(gradients)
        if self.max_grad_norm:
            scale = mx.minimum(self.max_grad_norm / (norm + 1e-6), 1.0)
            gradients = tree_map(lambda g: g * scale.astype(g.dtype), gradients)
        self.optimizer.update(self.model, gradients)
        balance(self.model)
        return norm


def global_norm(gradients: Any) -> mx.array:
    """Euclidean norm over all arrays of a tree, a float32 scalar."""
    leaves: list[tuple[str, mx.array]] = tree_flatten(gradients)  # type: ignore[assignment]
    # Columns first: on a CPU that is vectorised (10.6 M elements take 11 ms, a BLAS dot product 20, one sum 24), and
    # more exact than a running sum over millions of squares.
    squares = [mx.square(gradient.astype(mx.float32)).sum(axis=0).sum() for _, gradient in leaves]
    return mx.sqrt(mx.stack(squares).sum())

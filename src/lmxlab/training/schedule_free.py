"""AdamW without a schedule: the average over the run takes the place of the decay of the learning rate."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from lmxlab.training.decay import MatrixDecay


class ScheduleFreeAdamW(MatrixDecay, optim.Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1).

        y = (1 - b1) z + b1 x                              where the gradient g is taken (`gradient_point`)
        v <- b2 v + (1 - b2) g^2
        z <- z - lr (g / (sqrt(v / (1 - b2^t)) + eps) + decay y)
        c = L^2 / (sum of all L^2 so far),                 L the largest lr so far
        x <- (1 - c) x + c z

    The model's parameters are x, the average, so that evaluation, checkpoints and samples use what the method is
    meant to be judged by; training takes the gradient at y. (Where the parameters are y, as in the authors' code,
    forgetting to switch before an evaluation is the common mistake.) Give it a constant schedule with a warmup; another
    is followed, too. `betas[0]`, the interpolation, stands in for momentum; at 0 x is a plain average of z.
    """

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
    ):
        super().__init__(decay=decay)
        self._maybe_schedule("learning_rate", learning_rate)
        self.betas = betas
        self.eps = eps
        self.state["largest_rate"] = mx.array(0.0)
        self.state["weight_sum"] = mx.array(0.0)

    def init_single(self, parameter: mx.array, state: dict) -> None:
        state["z"] = mx.array(parameter)
        state["v"] = mx.zeros_like(parameter)

    def gradient_point(self, parameters: Any) -> Any:
        """y for the parameters x: where the gradient that `apply_gradients` expects is taken."""
        return tree_map(self._point, parameters, self.state)

    def apply_gradients(self, gradients: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        if not self._initialized:
            self.init(tree_map(lambda _, p: p, gradients, parameters))  # z starts at the parameters
        self._scalars: tuple[mx.array, ...] | None = None
        return super().apply_gradients(gradients, parameters)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        lr, correction, share = (scalar.astype(parameter.dtype) for scalar in self._of_this_step())
        beta = self.betas[1]
        y = self._point(parameter, state)
        v = beta * state["v"] + (1 - beta) * mx.square(gradient)
        z = state["z"] - lr * (gradient / (mx.sqrt(v / correction) + self.eps) + decay * y)
        state["z"], state["v"] = z, v
        return parameter + share * (z - parameter)

    def _point(self, parameter: mx.array, state: dict) -> mx.array:
        return state["z"] + self.betas[0] * (parameter - state["z"])

    def _of_this_step(self) -> tuple[mx.array, ...]:
        """lr, 1 - b2^t and c, computed once for all parameters of the step."""
        if self._scalars is None:
            lr = self.learning_rate.astype(mx.float32)
            self.state["largest_rate"] = mx.maximum(self.state["largest_rate"], lr)
            weight = mx.square(self.state["largest_rate"])
            self.state["weight_sum"] = self.state["weight_sum"] + weight
            share = weight / mx.maximum(self.state["weight_sum"], 1e-30)
            correction = 1 - self.betas[1] ** self.step.astype(mx.float32)
            # Stacking keeps these out of the fused kernels, which would compute them once per element.
            self._scalars = tuple(mx.stack([lr, correction, share]))
        return self._scalars

"""AdamW with exact bias correction, one fused pass per parameter."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from lmxlab.training.decay import MatrixDecay


class AdamW(MatrixDecay, optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2), bias-corrected.

    m <- b1 m + (1 - b1) g
    v <- b2 v + (1 - b2) g^2
    w <- w (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
        cautious: bool = False,
    ):
        own = {"betas": list(betas), "eps": eps, "weight_decay": 0.0, "bias_correction": True}
        super().__init__(learning_rate, **own, decay=decay, cautious=cautious)

    def apply_gradients(self, gradients: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        self._scalars: tuple[mx.array, ...] | None = None
        return super().apply_gradients(gradients, parameters)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        lr, rate, eps = self._corrected()
        b1, b2 = self.betas
        dtype = parameter.dtype
        m = b1 * state["m"] + (1 - b1) * gradient
        v = b2 * state["v"] + (1 - b2) * mx.square(gradient)
        state["m"], state["v"] = m, v
        kept = parameter * (1 - lr * decay).astype(dtype) if decay else parameter
        return kept - rate.astype(dtype) * m / (mx.sqrt(v) + eps.astype(dtype))

    def _corrected(self) -> tuple[mx.array, ...]:
        """lr, and lr and eps with the bias correction in them, r = sqrt(1 - b2^t): lr r / (1 - b1^t) and eps r.

        Scalars take the correction, once for all parameters of the step, so that clipping and update of a parameter are
        few enough operations for one fused kernel.
        """
        if self._scalars is None:
            t = self.step.astype(mx.float32)
            lr = self.learning_rate.astype(mx.float32)
            # 1 - b^t by expm1: in float32 the difference of b^t and 1 has lost four digits at t = 1.
            first, second = (-mx.expm1(t * math.log(beta)) if beta else mx.array(1.0) for beta in self.betas)
            root = mx.sqrt(second)
            # Stacking keeps these out of the fused kernels, which would compute the powers once per element.
            self._scalars = tuple(mx.stack([lr, lr * root / first, self.eps * root]))
        return self._scalars

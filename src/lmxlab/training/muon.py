"""Muon: momentum orthogonalised by Newton-Schulz, for the hidden matrices."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from lmxlab.training.decay import MatrixDecay

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(MatrixDecay, optim.Muon):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) with decoupled weight decay (arXiv 2502.16982, eq. 3).

        m <- mu m + (1 - mu) g
        w <- w (1 - lr decay) - lr s NS(g + mu (m - g))

    s is sqrt(max(1, rows / columns)) for adjust_lr="original", 0.2 sqrt(max(rows, columns)) for "match_rms_adamw".
    Parameters are matrices (rows, columns) or stacks of them (..., rows, columns), orthogonalised one by one.
    """

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        momentum: float = 0.95,
        decay: float = 0.0,
        adjust_lr: str = "original",
    ):
        super().__init__(learning_rate, momentum=momentum, weight_decay=0.0, decay=decay)
        self.adjust_lr = adjust_lr

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        rows, columns = parameter.shape[-2:]
        ratio = (
            0.2 * max(rows, columns) ** 0.5 if self.adjust_lr == "match_rms_adamw" else max(1, rows / columns) ** 0.5
        )
        lr = self.learning_rate.astype(parameter.dtype)
        m = self.momentum * state["v"] + (1 - self.momentum) * gradient
        state["v"] = m
        update = orthogonalise(gradient + self.momentum * (m - gradient), self.ns_steps)
        return parameter * (1 - lr * decay) - (lr * ratio) * update


def orthogonalise(matrix: mx.array, steps: int = 5) -> mx.array:
    """Nearly U V^T of the singular value decomposition U S V^T: singular values end between about 0.7 and 1.2.

    matrix (..., rows, columns), any float type; the result has its shape and type.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = mx.swapaxes(matrix, -1, -2) if tall else matrix
    x = x / (mx.sqrt(mx.sum(mx.square(x), axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(steps):
        gram = x @ mx.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return mx.swapaxes(x, -1, -2) if tall else x

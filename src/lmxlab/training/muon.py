"""Muon, whose updates of hidden matrices are orthogonal, and NorMuon, whose rows are of one size as well."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from lmxlab.training.decay import MatrixDecay
from lmxlab.training.orthogonalise import orthogonalise


class Muon(MatrixDecay, optim.Muon):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) with decoupled weight decay (arXiv 2502.16982, eq. 3).

        m <- mu m + (1 - mu) g
        w <- w (1 - lr decay) - lr s O,    O = orthogonalise(g + mu (m - g))

    s is sqrt(max(1, rows / columns)) for adjust_lr="original", 0.2 sqrt(max(rows, columns)) for "match_rms_adamw".
    Parameters are matrices (rows, columns) or stacks of them (..., rows, columns), orthogonalised one by one.
    """

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        momentum: float = 0.95,
        decay: float = 0.0,
        adjust_lr: str = "original",
        iteration: str = "newton_schulz",
        cautious: bool = False,
    ):
        super().__init__(learning_rate, momentum=momentum, weight_decay=0.0, decay=decay, cautious=cautious)
        self.adjust_lr = adjust_lr
        self.iteration = iteration

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        rows, columns = parameter.shape[-2:]
        ratio = (
            0.2 * max(rows, columns) ** 0.5 if self.adjust_lr == "match_rms_adamw" else max(1, rows / columns) ** 0.5
        )
        lr = self.learning_rate.astype(parameter.dtype)
        m = self.momentum * state["v"] + (1 - self.momentum) * gradient
        state["v"] = m
        update = orthogonalise(gradient + self.momentum * (m - gradient), self.ns_steps, self.iteration)
        return parameter * (1 - lr * decay) - (lr * ratio) * self._scaled(update, state)

    def _scaled(self, update: mx.array, state: dict) -> mx.array:
        return update


class NorMuon(Muon):
    """Muon with a second moment per row, that is per neuron (arXiv 2510.05491, algorithm 1).

        v <- b2 v + (1 - b2) mean over columns of O^2,    (rows, 1)
        N = O / sqrt(v)
        w <- w (1 - lr decay) - lr s N |O| / |N|

    An orthogonal matrix of rectangular shape may still have rows of very different size; dividing by v evens them
    out, and the last factor keeps the size of the update, so that learning rates of Muon carry over.
    """

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        momentum: float = 0.95,
        decay: float = 0.0,
        adjust_lr: str = "original",
        iteration: str = "newton_schulz",
        cautious: bool = False,
        beta2: float = 0.95,
    ):
        super().__init__(learning_rate, momentum, decay, adjust_lr, iteration, cautious)
        self.beta2 = beta2

    def init_single(self, parameter: mx.array, state: dict) -> None:
        super().init_single(parameter, state)
        state["rows"] = mx.zeros((*parameter.shape[:-1], 1), mx.float32)

    def _scaled(self, update: mx.array, state: dict) -> mx.array:
        o = update.astype(mx.float32)
        v = self.beta2 * state["rows"] + (1 - self.beta2) * mx.square(o).mean(axis=-1, keepdims=True)
        state["rows"] = v
        evened = o / (mx.sqrt(v) + 1e-10)
        size, now = (mx.sqrt(mx.square(a).sum(axis=(-2, -1), keepdims=True)) for a in (o, evened))
        return (evened * (size / (now + 1e-10))).astype(update.dtype)

"""Which parameters weight decay acts on, and the step that hands each parameter its own."""

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map_with_path

from lmxlab.core.precision import keeps_float32

UNDECAYED = ("embed", "position", "norm", "bias")


def decays(path: str, parameter: mx.array) -> bool:
    """Whether weight decay acts on a parameter: on matrices and stacks of them, not on embeddings and position tables.

    >>> decays("blocks.0.ffn.up.weight", mx.zeros((4, 4))), decays("embed.weight", mx.zeros((4, 4)))
    (True, False)
    """
    return parameter.ndim >= 2 and not keeps_float32(path) and not any(word in path for word in UNDECAYED)


class MatrixDecay(optim.Optimizer):
    """Mixin: `apply_single` gets a fourth argument, the decay of its parameter (0 for norms, biases, embeddings).

    The base class is built without decay of its own. With `cautious` a number decays only where the step of the
    optimizer does not take it further from 0 (cautious weight decay, arXiv 2510.12402):

        w <- w - lr (u + decay [u w >= 0] w)
    """

    def __init__(self, *args: Any, decay: float = 0.0, cautious: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decay = decay
        self.cautious = cautious

    def apply_gradients(self, gradients: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        if not self._initialized:
            self.init(gradients)
        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        self.state["step"] = self.step + 1
        return tree_map_with_path(self._updated, gradients, parameters, self.state)

    def _updated(self, path: str, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        update: Any = self.apply_single  # the subclass's, which takes the decay too
        decay = self.decay if decays(path, parameter) else 0.0
        if not (self.cautious and decay):
            return update(gradient, parameter, state, decay)
        updated = update(gradient, parameter, state, 0.0)
        shrinks = (parameter - updated) * parameter >= 0
        return updated - mx.where(shrinks, self.learning_rate * decay, 0.0).astype(parameter.dtype) * parameter

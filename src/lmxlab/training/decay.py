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

    The base class is built without decay of its own.
    """

    def __init__(self, *args: Any, decay: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decay = decay

    def apply_gradients(self, gradients: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        if not self._initialized:
            self.init(gradients)
        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        self.state["step"] = self.step + 1
        update: Any = self.apply_single  # the subclass's, which takes the decay too
        return tree_map_with_path(
            lambda path, g, p, s: update(g, p, s, self.decay if decays(path, p) else 0.0),
            gradients,
            parameters,
            self.state,
        )

"""Self-distillation: the teacher is a moving average of the student's own weights (Mean Teacher, 1703.01780)."""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.training.distillation import Distillation
from lmxlab.training.events import Callback
from lmxlab.training.objective import Loss


class SelfTaught(nn.Module):
    """A model and its teacher, a frozen copy: what a Trainer trains, saves and restores, the teacher with it.

    An earlier checkpoint as teacher needs none of this: load it into a model of its own and give that to a
    `Distillation` (born-again networks, 1805.04770).
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.teacher = copy.deepcopy(model)
        self.teacher.freeze()

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.model.config

    def nats(self, x: mx.array, y: mx.array) -> mx.array:
        """As LanguageModel.nats: of the student."""
        return self.model.nats(x, y)


class SelfDistillation:
    """Objective of a SelfTaught model: `Distillation` from its teacher; arguments as there."""

    def __init__(self, temperature: float = 1.0, alpha: float = 0.5, *, kind: str = "forward", beta: float = 0.5):
        self.settings: dict[str, Any] = {"temperature": temperature, "alpha": alpha, "kind": kind, "beta": beta}

    def __call__(self, model: SelfTaught, x: mx.array, y: mx.array) -> Loss:
        return Distillation(model.teacher, **self.settings)(model.model, x, y)


class MovingAverage(Callback):
    """Moves the teacher after every step: teacher = decay * teacher + (1 - decay) * student.

    Args:
        model: the one that is trained.
        decay: of the average, from 0 (the student of the step before) to 1 (the start for ever).
    """

    def __init__(self, model: SelfTaught, decay: float = 0.99):
        if not 0 <= decay <= 1:
            raise UserError(f"decay is {decay}: it must lie between 0 and 1")
        self.model, self.decay = model, decay

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        teacher, student = self.model.teacher, self.model.model
        teacher.update(tree_map(self._moved, teacher.parameters(), student.parameters()))
        mx.eval(teacher.parameters())

    def _moved(self, old: mx.array, new: mx.array) -> mx.array:
        if not mx.issubdtype(old.dtype, mx.floating):  # the bits of quantised weights, which nothing trains
            return new
        return (self.decay * old + (1 - self.decay) * new).astype(old.dtype)

"""Distillation from inside: a student's layers learn the teacher's states, through learned projections (1412.6550)."""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.linear import Linear
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, evaluating
from lmxlab.models.mtp import finished
from lmxlab.training.distillation import Distillation
from lmxlab.training.objective import Loss, scored_sum
from lmxlab.training.teacher_targets import TeacherTargets


class ProjectedStudent(nn.Module):
    """A student and, for each pair of layers, a matrix from its width to the teacher's: what a Trainer then trains.

    After training only `model` is kept.

    Args:
        model: the student.
        teacher: gives the widths; it is not held.
        pairs: (layer of the student, layer of the teacher), each from 0, the embedding, to n_layers; by default each
            layer of the student and the one at the same share of the teacher's depth.

    Raises:
        UserError: a layer that one of them does not have, or no pair.
    """

    def __init__(self, model: LanguageModel, teacher: LanguageModel, pairs: Sequence[tuple[int, int]] | None = None):
        super().__init__()
        ours, theirs = model.config, teacher.config
        if pairs is None:
            pairs = [(i, math.ceil(i * theirs.n_layers / ours.n_layers)) for i in range(1, ours.n_layers + 1)]
        if not pairs:
            raise UserError("There is no pair of layers to bring together: give at least one")
        for ours_i, theirs_i in pairs:
            if not (0 <= ours_i <= ours.n_layers and 0 <= theirs_i <= theirs.n_layers):
                raise UserError(
                    f"There is no pair of layers ({ours_i}, {theirs_i}): the student has 0 (the embedding) to "
                    f"{ours.n_layers}, the teacher 0 to {theirs.n_layers}"
                )
        self.model = model
        self.pairs = tuple((int(a), int(b)) for a, b in pairs)
        self.projections = [Linear(ours.block.d_model, theirs.block.d_model, bias=False) for _ in self.pairs]

    @property
    def config(self) -> Any:
        """The config of the student."""
        return self.model.config

    def nats(self, x: mx.array, y: mx.array) -> mx.array:
        """As LanguageModel.nats: of the student."""
        return self.model.nats(x, y)


class LayerDistillation:
    """Objective of a ProjectedStudent: `output` plus weight times the mean over pairs of |W h - t|^2 / |t|^2.

    h and t are the residual streams of student and teacher after the paired layers; the distance is relative, since the
    stream grows with depth. Metrics: those of `output`, and `layer_loss`. Positions whose y is negative do not count.

    Args:
        output: what else is minimised, and the teacher, which must be a model.
        weight: of the distance.

    Raises:
        UserError: a teacher on disk, which has left no states; a negative weight.
    """

    def __init__(self, output: Distillation, weight: float = 1.0):
        if isinstance(output.teacher, TeacherTargets):
            raise UserError("Targets on disk hold no states of layers: give the teacher itself")
        if weight < 0:
            raise UserError(f"weight is {weight}: it must be 0 or more")
        self.output, self.weight = output, weight

    def __call__(self, model: ProjectedStudent, x: mx.array, y: mx.array) -> Loss:
        teacher = self.output.teacher
        assert isinstance(teacher, LanguageModel)
        with evaluating(teacher):
            theirs = [mx.stop_gradient(states) for states in teacher.layer_states(x)]
        ours = model.model.layer_states(x)
        distance = mx.zeros(x.shape)
        for (i, j), projection in zip(model.pairs, model.projections, strict=True):
            aim = theirs[j].astype(mx.float32)
            gap = mx.square(projection(ours[i]).astype(mx.float32) - aim).sum(axis=-1)
            distance = distance + gap / (mx.square(aim).sum(axis=-1) + 1e-6)
        layer_loss, _ = scored_sum(distance / len(model.pairs), y)
        loss = self.output.of_states(model.model, finished(model.model, ours[-1]), x, y)
        return Loss(loss.total + self.weight * layer_loss, loss.counted, {**loss.metrics, "layer_loss": layer_loss})

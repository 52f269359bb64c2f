"""Distillation: a student learns from the distributions of a teacher (Hinton et al. 2015, 1503.02531)."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.recompute import recompute
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, evaluating
from lmxlab.training.divergence import check_divergence, coarse_divergence, divergence
from lmxlab.training.objective import Loss, scored_sum
from lmxlab.training.teacher_targets import TAILS, TeacherTargets, coarse


def soft_target_loss(student_logits: mx.array, teacher_logits: mx.array, temperature: float = 4.0) -> mx.array:
    """T^2 KL(p, q) at temperature T, the mean over positions; p is the teacher's softmax(z / T), q the student's.

    Gradients of soft targets shrink by 1 / T^2; the factor keeps their weight beside hard targets (section 2).

    Args:
        student_logits, teacher_logits: (..., V), of the same shape. The teacher gets no gradient.

    >>> logits = mx.array([[0.0, 1.0, -1.0]])
    >>> soft_target_loss(logits, logits).item() == 0
    True
    """
    check_divergence("forward", temperature, 0.5)
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise UserError(_vocabularies(student_logits.shape[-1], teacher_logits.shape[-1]))
    ours, theirs = (logits.reshape(-1, logits.shape[-1]) for logits in (student_logits, teacher_logits))
    return temperature**2 * divergence(ours, theirs, temperature=temperature).mean()


def distillation_loss(
    student: LanguageModel,
    teacher: LanguageModel,
    tokens: mx.array,
    temperature: float = 4.0,
    alpha: float = 0.7,
    *,
    kind: str = "forward",
    beta: float = 0.5,
) -> mx.array:
    """alpha T^2 D + (1 - alpha) CE, means over the positions of tokens (B, T + 1) that have a next token.

    Args:
        kind, beta: of D: see `divergence.divergence`.

    Raises:
        UserError: the models have different vocabularies.
    """
    objective = Distillation(teacher, temperature, alpha, kind=kind, beta=beta)
    loss = objective(student, tokens[:, :-1], tokens[:, 1:])
    return loss.total / loss.counted


class Distillation:
    """Objective alpha T^2 D(teacher, student) + (1 - alpha) CE, on batches (x, y): tokens and next tokens, (B, T).

    Positions whose y is negative count for neither. Metrics: `ce_loss`, and `kd_loss`, which is T^2 D. The teacher runs
    without dropout and gets no gradient. Logits of both models are computed chunk by chunk, and again in the backward
    pass.

    Args:
        teacher: a model, or targets that one has left on disk; batches are then those of the targets.
        temperature: T; by default 4, or that of the targets.
        alpha: share of the teacher, from 0 to 1.
        kind, beta: of D: see `divergence.divergence`.
        tail: what is made of the tokens that the targets do not name: see `teacher_targets.coarse`.

    Raises:
        UserError: settings that cannot work; at the first batch, a student with another vocabulary.
    """

    def __init__(
        self,
        teacher: LanguageModel | TeacherTargets,
        temperature: float | None = None,
        alpha: float = 0.7,
        *,
        kind: str = "forward",
        beta: float = 0.5,
        tail: str = "rest",
    ):
        stored = teacher if isinstance(teacher, TeacherTargets) else None
        default = stored.temperature if stored else 4.0
        self.temperature = default if temperature is None else temperature
        check_divergence(kind, self.temperature, beta)
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}: it must lie between 0 (no teacher) and 1 (nothing else)")
        if tail not in TAILS:
            raise UserError(f"tail is {tail!r}; it must be one of {TAILS}")
        if stored and stored.top_k < stored.vocab_size:
            if tail == "rest" and self.temperature != stored.temperature:
                raise UserError(
                    f"temperature is {self.temperature}, but what the targets do not name was summed at "
                    f"{stored.temperature}: use that, write the targets anew, or say tail='renormalise'"
                )
            if tail == "renormalise" and kind == "reverse":
                raise UserError("The reverse divergence from renormalised targets is infinite: use tail='rest'")
        self.teacher, self.alpha, self.kind, self.beta, self.tail = teacher, alpha, kind, beta, tail

    def __call__(self, model: LanguageModel, x: mx.array, y: mx.array, *given: mx.array) -> Loss:
        """x, y (B, T), and of stored targets indices and values (B, T, k) and the rest (B, T).

        With a model as teacher a third array may be segments (B, T): the documents of each row, which do not see each
        other.
        """
        segments = given[0] if given and isinstance(self.teacher, LanguageModel) else None
        return self.of_states(model, model.hidden_states(x, segments=segments)[0], x, y, *given)

    def of_states(self, model: LanguageModel, hidden: mx.array, x: mx.array, y: mx.array, *given: mx.array) -> Loss:
        """As a call, from the student's hidden states (B, T, d_model) of x."""
        check_vocabulary(model, self.teacher)
        distance: Callable[..., mx.array] = self._to_targets
        if isinstance(self.teacher, LanguageModel):
            if len(given) > 1:
                raise UserError(f"A teacher that is a model takes x, y and segments, got {2 + len(given)} arrays")
            given, distance = (teacher_states(self.teacher, x, *given),), self._to_model
        elif len(given) != 3:
            raise UserError("A teacher on disk needs its own batches: iterate over the TeacherTargets")
        rows = [a.reshape(-1, *a.shape[2:]) for a in (hidden, mx.maximum(y, 0), *given)]
        kd, ce = chunked(model, distance, *rows)
        kd, counted = scored_sum(self.temperature**2 * kd.reshape(y.shape), y)
        ce, _ = scored_sum(ce.reshape(y.shape), y)
        return Loss(self.alpha * kd + (1 - self.alpha) * ce, counted, {"ce_loss": ce, "kd_loss": kd})

    def _to_model(self, logits: mx.array, states: mx.array) -> mx.array:
        assert isinstance(self.teacher, LanguageModel)
        return divergence(logits, self.teacher.logits(states), self.kind, self.temperature, self.beta)

    def _to_targets(self, logits: mx.array, indices: mx.array, values: mx.array, rest: mx.array) -> mx.array:
        ours, theirs = coarse(logits, indices, values, rest, self.temperature, self.tail)
        return coarse_divergence(ours, theirs, self.kind, self.beta)


def teacher_states(teacher: LanguageModel, x: mx.array, segments: mx.array | None = None) -> mx.array:
    """What the teacher's output projection is applied to, (B, T, d_model), without dropout and without gradient."""
    with evaluating(teacher):
        return mx.stop_gradient(teacher.hidden_states(x, segments=segments)[0])


def chunked(
    model: LanguageModel,
    distance: Callable[..., mx.array],
    hidden: mx.array,
    labels: mx.array,
    *given: mx.array,
) -> tuple[mx.array, mx.array]:
    """distance(logits, *given) and the cross-entropy of each row, both (N,), with logits computed chunk by chunk.

    Args:
        hidden: (N, d_model), the student's.
        labels: (N,).
        given: (N, ...) what else `distance` takes.
    """
    projection: nn.Module = model.embed if model.config.tie_embeddings else model.head

    def both(rows: mx.array, labels: mx.array, *given: mx.array) -> mx.array:
        logits = model.logits(rows)
        return mx.stack([distance(logits, *map(mx.stop_gradient, given)), kernels.cross_entropy(logits, labels)])

    size = kernels.rows_at_once(model.config.vocab_size)
    parts: list[mx.array] = []
    for start in range(0, len(labels), size):
        rows, *others = (a[start : start + size] for a in (hidden, labels, *given))
        rows = mx.depends(rows, parts[-1]) if parts else rows  # or all chunks would be in memory at once
        parts.append(recompute(projection, both, rows, *others))
    kd, ce = mx.concatenate(parts, axis=1)
    return kd, ce


def check_vocabulary(student: LanguageModel, teacher: Any) -> None:
    """UserError where a student and its teacher, a model or targets, do not have the same tokens."""
    theirs = teacher.vocab_size if isinstance(teacher, TeacherTargets) else teacher.config.vocab_size
    if student.config.vocab_size != theirs:
        raise UserError(_vocabularies(student.config.vocab_size, theirs))


def _vocabularies(student: int, teacher: int) -> str:
    return (
        f"The teacher has {teacher} tokens, the student {student}: their distributions cannot be compared. Give both "
        "the same tokenizer and vocab_size."
    )

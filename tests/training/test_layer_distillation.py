"""Layers learn the states of a wider teacher through their projections."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tests.models.architectures import build, gap
from tiny_lm import VOCAB, batch, tiny_config

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import Trainer
from lmxlab.training.distillation import Distillation
from lmxlab.training.layer_distillation import LayerDistillation, ProjectedStudent
from lmxlab.training.teacher_targets import TeacherTargets, write_targets

SMALL = llama_config(VOCAB, 16, 2, 1, 2, 32, 64, tie_embeddings=True)
LARGE = llama_config(VOCAB, 32, 4, 2, 5, 48, 64)


def test_layers_are_paired_by_their_share_of_the_depth() -> None:
    assert ProjectedStudent(build(SMALL), build(LARGE)).pairs == ((1, 3), (2, 5))
    assert [p.weight.shape for p in ProjectedStudent(build(SMALL), build(LARGE)).projections] == [(32, 16)] * 2


def test_states_of_layers_end_where_the_head_begins() -> None:
    model, (x, _) = build(LARGE), batch()
    states = model.layer_states(x)
    assert len(states) == 6
    assert gap(states[0], model.embed(x)) == 0
    assert gap(model.logits(model.final_norm(states[-1])), model(x)[0]) == 0
    assert gap(states[2], model.blocks[1](states[1], "causal")[0]) == 0


def test_the_distance_is_relative_and_counts_what_is_scored() -> None:
    student, teacher = build(SMALL), build(LARGE)
    model = ProjectedStudent(student, teacher, [(1, 4)])
    x, y = batch()
    y = mx.where(mx.arange(12) < 7, y, -100)
    aim, ours = (
        np.array(states) for states in (teacher.layer_states(x)[4], model.projections[0](student.layer_states(x)[1]))
    )
    expected = (((ours - aim) ** 2).sum(-1) / (aim**2).sum(-1))[:, :7].mean()
    output = Distillation(teacher)
    loss, base = LayerDistillation(output, weight=2.5)(model, x, y), output(student, x, y)
    assert float(loss.counted) == 28
    assert float(loss.metrics["layer_loss"]) / 28 == pytest.approx(expected, rel=1e-4)
    assert float(loss.total) == pytest.approx(float(base.total) + 2.5 * 28 * expected, rel=1e-5)
    assert float(loss.metrics["kd_loss"]) == pytest.approx(float(base.metrics["kd_loss"]), rel=1e-5)


def test_the_distance_is_the_mean_over_the_pairs() -> None:
    student, teacher, (x, y) = build(SMALL), build(LARGE), batch()
    objective, found = LayerDistillation(Distillation(teacher)), []
    model = ProjectedStudent(student, teacher, [(1, 3), (2, 5)])
    together = objective(model, x, y).metrics["layer_loss"]
    for pair, projection in zip(model.pairs, model.projections, strict=True):
        alone = ProjectedStudent(student, teacher, [pair])
        alone.projections = [projection]
        found.append(float(objective(alone, x, y).metrics["layer_loss"]))
    assert float(together) == pytest.approx(np.mean(found), rel=1e-5)


def test_the_teacher_gets_no_gradient() -> None:
    teacher, (x, y) = build(LARGE), batch()
    model = ProjectedStudent(build(SMALL), teacher)
    objective = LayerDistillation(Distillation(teacher))
    _, gradient = nn.value_and_grad(teacher, lambda: objective(model, x, y).total)()
    assert max(float(mx.abs(g).max()) for _, g in tree_flatten(gradient)) == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_projections_and_student_learn_together(compiled: bool) -> None:
    student, teacher = build(SMALL), build(LARGE)
    model = ProjectedStudent(student, teacher)
    before = mx.array(model.projections[0].weight), mx.array(student.blocks[0].ffn.down.weight)
    trainer = Trainer(
        model,
        tiny_config(max_steps=40, learning_rate=1e-2, compile_step=compiled),
        objective=LayerDistillation(Distillation(teacher)),
    )
    history = trainer.train([batch(rows=16)] * 40)
    assert history[-1]["layer_loss"] < 0.6 * history[0]["layer_loss"]
    assert history[-1]["kd_loss"] < history[0]["kd_loss"]
    assert min(gap(model.projections[0].weight, before[0]), gap(student.blocks[0].ffn.down.weight, before[1])) > 1e-2


def test_what_cannot_work_is_refused(tmp_path: Any) -> None:
    student, teacher = LanguageModel(SMALL), LanguageModel(LARGE)
    with pytest.raises(UserError, match=r"no pair of layers \(3, 1\): the student has 0 \(the embedding\) to 2"):
        ProjectedStudent(student, teacher, [(3, 1)])
    with pytest.raises(UserError, match="at least one"):
        ProjectedStudent(student, teacher, [])
    with pytest.raises(UserError, match="weight is -1"):
        LayerDistillation(Distillation(teacher), -1.0)
    write_targets(tmp_path, teacher, [batch()], 2)
    with pytest.raises(UserError, match="hold no states of layers"):
        LayerDistillation(Distillation(TeacherTargets(tmp_path)))

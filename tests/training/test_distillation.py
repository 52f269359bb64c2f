"""Distillation from a model: the combined loss, its gradient, and a student that learns what its teacher knows."""

import dataclasses
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tests.models.architectures import ARCHITECTURES, build, gap
from tiny_lm import VOCAB, batch, tiny_config

from lmxlab.core import kernels
from lmxlab.core.lora import apply_lora
from lmxlab.data.packing import PackedRows
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import Trainer
from lmxlab.training.distillation import Distillation, distillation_loss, soft_target_loss
from lmxlab.training.divergence import KINDS, coarse_divergence

SMALL = llama_config(VOCAB, 16, 2, 1, 1, 32, 64, tie_embeddings=True)
LARGE = llama_config(VOCAB, 32, 4, 2, 2, 48, 64)  # untied


@pytest.fixture
def models() -> tuple[LanguageModel, LanguageModel]:
    return build(SMALL), build(LARGE)


def plain_loss(student: LanguageModel, teacher: LanguageModel, x: mx.array, y: mx.array) -> tuple[float, float]:
    """KL and cross-entropy in float64, position by position, where y is not negative."""
    z, t = (np.array(model(x)[0]).astype(np.float64) for model in (student, teacher))

    def log_softmax(a: np.ndarray) -> np.ndarray:
        return a - np.log(np.exp(a).sum(-1, keepdims=True))

    p, q = log_softmax(t / 4), log_softmax(z / 4)
    kl, scored = (np.exp(p) * (p - q)).sum(-1), np.array(y) >= 0
    ce = -np.take_along_axis(log_softmax(z), np.maximum(np.array(y), 0)[..., None], -1)[..., 0]
    return kl[scored].mean(), ce[scored].mean()


def test_the_loss_is_the_weighted_sum_of_both(models: Any) -> None:
    x, y = batch()
    kl, ce = plain_loss(*models, x, y)
    tokens = mx.concatenate([x, y[:, -1:]], axis=1)
    tokens[:, 1:] = y
    x = tokens[:, :-1]
    kl, ce = plain_loss(*models, x, y)
    assert float(distillation_loss(*models, tokens)) == pytest.approx(0.7 * 16 * kl + 0.3 * ce, rel=1e-5)
    only = distillation_loss(*models, tokens, alpha=1.0)
    soft = soft_target_loss(models[0](x)[0], models[1](x)[0])
    assert float(only) == pytest.approx(float(soft), rel=1e-5)
    loss = Distillation(models[1])(models[0], x, mx.where(mx.arange(12) > 8, -100, y))
    kl, ce = plain_loss(*models, x, mx.where(mx.arange(12) > 8, -100, y))
    assert float(loss.counted) == 36
    assert float(loss.metrics["ce_loss"]) / 36 == pytest.approx(ce, rel=1e-5)
    assert float(loss.metrics["kd_loss"]) / 36 == pytest.approx(16 * kl, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_chunks_change_neither_loss_nor_gradient(kind: str, chunk: int, models: Any, monkeypatch: Any) -> None:
    student, teacher = models
    x, y = batch()
    monkeypatch.setattr(kernels, "rows_at_once", lambda vocab_size: chunk)
    objective = Distillation(teacher, 2.0, 0.6, kind=kind)
    loss, gradient = nn.value_and_grad(student, lambda: objective(student, x, y).total)()

    def direct() -> mx.array:
        logs = [m(x)[0] / 2 for m in (student, teacher)]
        q, p = (z - mx.logsumexp(z, axis=-1, keepdims=True) for z in logs)
        kd = coarse_divergence(q, mx.stop_gradient(p), kind, 0.5).sum()
        return 0.6 * 4 * kd + 0.4 * nn.losses.cross_entropy(student(x)[0], y, reduction="sum")

    expected, theirs = nn.value_and_grad(student, direct)()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for (name, ours), (_, other) in zip(tree_flatten(gradient), tree_flatten(theirs), strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(other), atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(kind: str) -> None:
    student, teacher = build(LARGE), LanguageModel(LARGE)
    teacher.update(student.parameters())
    x, y = batch()
    objective = Distillation(teacher, alpha=1.0, kind=kind)
    loss, gradient = nn.value_and_grad(student, lambda: objective(student, x, y).total)()
    assert float(loss) == 0
    assert max(float(mx.abs(g).max()) for _, g in tree_flatten(gradient)) <= 1e-4  # p - p of rounded exponentials
    assert float(soft_target_loss(student(x)[0], student(x)[0])) == 0


def test_the_teacher_gets_no_gradient_and_has_no_dropout(models: Any) -> None:
    student, _ = models
    config = dataclasses.replace(LARGE, block=dataclasses.replace(LARGE.block, dropout=0.5))
    teacher, (x, y) = build(config), batch()
    objective = Distillation(teacher, alpha=1.0)
    assert float(objective(student, x, y).total) == float(objective(student, x, y).total)
    assert teacher.training
    _, gradient = nn.value_and_grad(teacher, lambda: objective(student, x, y).total)()
    assert max(float(mx.abs(g).max()) for _, g in tree_flatten(gradient)) == 0


def test_neither_student_nor_teacher_sees_across_packed_documents(models: Any) -> None:
    rows = PackedRows([[1, 2, 3, 4, 5], [6, 7, 8, 9]], seq_len=7)
    objective = Distillation(models[1])
    x, y, segments = (mx.array(a) for a in (rows.x, rows.y, rows.segments))
    packed = objective(models[0], x, y, segments)
    apart = [objective(models[0], mx.array([d[:-1]]), mx.array([d[1:]])) for d in ([1, 2, 3, 4, 5], [6, 7, 8, 9])]
    assert float(packed.total) == pytest.approx(sum(float(loss.total) for loss in apart), rel=1e-5)
    assert float(packed.total) != pytest.approx(float(objective(models[0], x, y).total), rel=1e-3)
    with pytest.raises(UserError, match="takes x, y and segments, got 5 arrays"):
        objective(models[0], x, y, segments, segments, segments)


def test_both_shapes_of_logits_have_the_same_mean() -> None:
    z, t = mx.random.normal((3, 5, 7)), mx.random.normal((3, 5, 7))
    flat = soft_target_loss(z.reshape(15, 7), t.reshape(15, 7))
    assert float(soft_target_loss(z, t)) == pytest.approx(float(flat), rel=1e-6)
    _, gradient = mx.value_and_grad(lambda t: soft_target_loss(z, t))(t)
    assert gap(gradient, mx.zeros_like(t)) == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_student_learns_what_its_teacher_knows(models: Any, compiled: bool) -> None:
    student, teacher = models
    x, y = batch(rows=16)
    trainer = Trainer(
        student,
        tiny_config(max_steps=60, learning_rate=1e-2, compile_step=compiled),
        objective=Distillation(teacher, 2.0, 1.0),
    )
    history = trainer.train([(x, y)] * 60)
    assert history[-1]["kd_loss"] < 0.5 * history[0]["kd_loss"]
    assert history[-1]["loss"] == pytest.approx(history[-1]["kd_loss"], rel=1e-5)
    scores = trainer.evaluate([(x, y)])
    assert scores["eval_ce_loss"] == pytest.approx(float(student.nats(x, y).mean()), rel=1e-5)


def test_micro_batches_and_adapters(models: Any) -> None:
    student, teacher = models
    x, y = batch()
    y = mx.where(mx.arange(12) < 3 * mx.arange(1, 5)[:, None], y, -100)
    apply_lora(student, rank=2, targets=["attention", "ffn"])
    start = dict(tree_flatten(student.parameters()))
    steps = []
    for parts in ([(x, y)], [(x[:1], y[:1]), (x[1:], y[1:])]):
        student.update(nn.utils.tree_unflatten(list(start.items())))
        steps.append(Trainer(student, tiny_config(), objective=Distillation(teacher)).train_step_accumulated(parts))
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)
    assert {name.rpartition(".")[2] for name, _ in tree_flatten(student.trainable_parameters())} == {"lora_A", "lora_B"}


def test_a_capped_head_is_distilled_as_it_is() -> None:
    student, teacher = build(ARCHITECTURES["gemma2"]()), build(ARCHITECTURES["gemma2"]())
    x, y = batch()
    assert float(Distillation(teacher, alpha=1.0)(student, x, y).total / 48) == pytest.approx(
        float(soft_target_loss(student(x)[0], teacher(x)[0])), rel=1e-4
    )


def test_a_teacher_with_another_vocabulary_is_refused(models: Any) -> None:
    student = models[0]
    other = LanguageModel(dataclasses.replace(LARGE, vocab_size=VOCAB + 1))
    with pytest.raises(UserError, match=f"The teacher has {VOCAB + 1} tokens, the student {VOCAB}"):
        distillation_loss(student, other, batch()[0])
    with pytest.raises(UserError, match="same tokenizer and vocab_size"):
        Trainer(student, tiny_config(compile_step=True), objective=Distillation(other)).train_step(batch())
    with pytest.raises(UserError, match="The teacher has 8 tokens, the student 7"):
        soft_target_loss(mx.zeros((2, 7)), mx.zeros((2, 8)))


def test_settings_that_cannot_work_are_refused(models: Any) -> None:
    with pytest.raises(UserError, match="alpha is 1.5"):
        Distillation(models[1], alpha=1.5)
    with pytest.raises(UserError, match="temperature is -1"):
        distillation_loss(*models, batch()[0], temperature=-1.0)
    with pytest.raises(UserError, match="tail is 'none'"):
        Distillation(models[1], tail="none")

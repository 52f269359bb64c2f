"""A teacher that follows its student: by how much, and through a checkpoint."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tests.models.architectures import gap
from tiny_lm import VOCAB, Cursor, batch, tiny_config

from lmxlab.core.quantize import quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import Trainer
from lmxlab.training.self_distillation import MovingAverage, SelfDistillation, SelfTaught

CONFIG = llama_config(VOCAB, 32, 4, 2, 1, 48, 64, tie_embeddings=True)


def trainer(decay: float = 0.9, compiled: bool = False, **settings: Any) -> Trainer:
    mx.random.seed(0)
    model = SelfTaught(LanguageModel(CONFIG))
    config = tiny_config(max_steps=6, compile_step=compiled)
    return Trainer(model, config, callbacks=[MovingAverage(model, decay)], objective=SelfDistillation(**settings))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_teacher_is_the_moving_average_and_the_step_learns_from_it(compiled: bool) -> None:
    run = trainer(compiled=compiled)
    mean = dict(tree_flatten(run.model.model.parameters()))
    for step in range(1, 4):
        (metrics,) = run.train([batch(step)])
        assert (metrics["kd_loss"] > 0) == (step > 1)  # at first they are equal
        for name, new in tree_flatten(run.model.model.parameters()):
            mean[name] = 0.9 * mean[name] + 0.1 * new
        for name, value in tree_flatten(run.model.teacher.parameters()):
            assert gap(value, mean[name]) <= 1e-6, name


def test_a_compiled_step_sees_the_teacher_of_now() -> None:
    histories = [trainer(decay=0.5, compiled=compiled).train(Cursor()) for compiled in (False, True)]
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)
    still = trainer(decay=1.0).train(Cursor())
    assert still[-1]["kd_loss"] > 2 * histories[0][-1]["kd_loss"]


def test_only_the_student_is_trained_and_both_are_saved(tmp_path: Path) -> None:
    whole = trainer()
    history = whole.train(Cursor())
    first, data = trainer(), Cursor()
    first.config = tiny_config(max_steps=3)
    first.train(data)
    first.config = whole.config
    first.save(tmp_path / "saved")
    second = trainer()
    second.restore(tmp_path / "saved")
    assert second.train(Cursor()) == history[3:]
    assert {name.partition(".")[0] for name, _ in tree_flatten(second.model.trainable_parameters())} == {"model"}


def test_bits_of_quantised_weights_are_no_numbers_to_average() -> None:
    model = LanguageModel(CONFIG)
    quantize_model(model, group_size=32, skip_narrow=True)
    taught = SelfTaught(model)
    MovingAverage(taught, 0.5).on_step_end(1, {})
    ours, theirs = (dict(tree_flatten(m.parameters())) for m in (taught.model, taught.teacher))
    assert all(mx.array_equal(theirs[name], ours[name]) for name in ours)


def test_a_decay_outside_of_its_range_is_refused() -> None:
    with pytest.raises(UserError, match="decay is 1.5"):
        MovingAverage(SelfTaught(LanguageModel(CONFIG)), 1.5)

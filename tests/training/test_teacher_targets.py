"""A teacher on disk says what the teacher itself says; what is left of its files is never taken for the whole."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tests.models.architectures import build
from tiny_lm import VOCAB, batch, tiny_config

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import Trainer
from lmxlab.training.distillation import Distillation
from lmxlab.training.divergence import KINDS, coarse_divergence, divergence
from lmxlab.training.teacher_targets import TeacherTargets, coarse, largest, write_targets

CONFIG = llama_config(VOCAB, 16, 2, 1, 1, 32, 64, tie_embeddings=True)
BATCHES = [batch(seed) for seed in range(5)]


@pytest.fixture
def teacher() -> LanguageModel:
    return build(CONFIG)


@pytest.fixture
def student() -> LanguageModel:
    return build(CONFIG)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["rest", "renormalise"])
def test_with_all_logits_it_is_the_teacher(kind: str, tail: str, teacher: Any, student: Any, tmp_path: Path) -> None:
    write_targets(tmp_path, teacher, BATCHES, VOCAB, dtype="float32")
    targets = TeacherTargets(tmp_path)
    offline, online = Distillation(targets, 2.5, kind=kind, tail=tail), Distillation(teacher, 2.5, kind=kind)
    for given in (next(targets), next(targets)):
        ours, gradient = nn.value_and_grad(student, lambda: offline(student, *given).total)()  # noqa: B023
        theirs, expected = nn.value_and_grad(student, lambda: online(student, *given[:2]).total)()  # noqa: B023
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
        for (name, a), (_, b) in zip(tree_flatten(gradient), tree_flatten(expected), strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), atol=2e-6 * 16, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_named_is_one_outcome_so_that_equals_are_at_distance_zero(kind: str, tmp_path: Path) -> None:
    teacher = build(CONFIG)
    write_targets(tmp_path, teacher, BATCHES, 3, temperature=2.0, dtype="float32")
    targets = TeacherTargets(tmp_path)
    loss = Distillation(targets, alpha=1.0, kind=kind)(teacher, *next(targets))
    assert abs(float(loss.total / loss.counted)) <= 1e-5
    biased = Distillation(targets, alpha=1.0, tail="renormalise")(teacher, *next(targets))
    assert float(biased.total / biased.counted) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_naming_more_tokens_never_brings_distributions_nearer(kind: str) -> None:
    z, t = mx.random.normal((40, VOCAB)) * 3, mx.random.normal((40, VOCAB)) * 3
    distances = [coarse_divergence(*coarse(z, *largest(t, k, 2.0), 2.0, "rest"), kind) for k in (1, 2, 5, 16, VOCAB)]
    for fewer, more in pairwise(distances):
        assert float((more - fewer).min()) >= -1e-5
    np.testing.assert_allclose(np.array(distances[-1]), np.array(divergence(z, t, kind, 2.0)), atol=1e-5)


def test_the_probabilities_are_those_of_the_teacher() -> None:
    t = mx.random.normal((6, VOCAB)) * 3
    student, teacher = coarse(t, *largest(t, 4, 2.0), 2.0, "rest")
    best = np.sort(np.array(mx.softmax(t / 2.0, axis=-1)), axis=-1)[:, -4:]
    np.testing.assert_allclose(np.sort(np.exp(np.array(teacher[:, :4])), axis=-1), best, rtol=1e-5)
    np.testing.assert_allclose(np.exp(np.array(teacher[:, 4])), 1 - best.sum(-1), rtol=1e-4)
    np.testing.assert_allclose(np.array(student), np.array(teacher), atol=1e-5)


def test_half_precision_and_few_logits_are_small_and_near(teacher: Any, student: Any, tmp_path: Path) -> None:
    for name, dtype in (("half", "float16"), ("whole", "float32")):
        write_targets(tmp_path / name, teacher, BATCHES, 5, dtype=dtype)
    losses = {}
    for name in ("half", "whole"):
        targets = TeacherTargets(tmp_path / name)
        losses[name] = float(Distillation(targets)(student, *next(targets)).metrics["kd_loss"])
    assert losses["half"] == pytest.approx(losses["whole"], rel=2e-3)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.npz")) for name in ("half", "whole")]
    assert sizes[0] < 0.85 * sizes[1]


def test_a_student_trains_and_resumes_from_targets(teacher: Any, tmp_path: Path) -> None:
    write_targets(tmp_path / "targets", teacher, BATCHES, 5)

    def trainer() -> tuple[Trainer, TeacherTargets]:
        mx.random.seed(1)
        targets = TeacherTargets(tmp_path / "targets", seed=3)
        return Trainer(LanguageModel(CONFIG), tiny_config(max_steps=12), objective=Distillation(targets)), targets

    whole, targets = trainer()
    history = whole.train(targets)
    assert history[-1]["loss"] < history[0]["loss"]
    first, targets = trainer()
    for _ in range(7):
        first.train_step(next(targets))
    first._data = targets
    first.save(tmp_path / "saved")
    second, targets = trainer()
    second.restore(tmp_path / "saved")
    assert second.train(targets) == history[7:]


def test_each_epoch_has_every_batch_once_in_another_order(teacher: Any, tmp_path: Path) -> None:
    write_targets(tmp_path, teacher, BATCHES, 2)
    targets = TeacherTargets(tmp_path)
    firsts = [[next(targets)[0].tolist() for _ in range(5)] for _ in range(2)]
    assert firsts[0] != firsts[1]
    for epoch in firsts:
        assert sorted(epoch) == sorted(x.tolist() for x, _ in BATCHES)


def test_writing_goes_on_where_it_was_stopped(teacher: Any, tmp_path: Path) -> None:
    def stopped() -> Any:
        yield from BATCHES[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_targets(tmp_path, teacher, stopped(), 4)
    with pytest.raises(UserError, match="are not finished: call write_targets again"):
        TeacherTargets(tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    assert len(before) == 3
    assert write_targets(tmp_path, teacher, BATCHES, 4) == 5
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    assert before.items() < after.items() and len(after) == 5
    assert TeacherTargets(tmp_path).n_batches == 5


def test_targets_of_something_else_are_refused(teacher: Any, student: Any, tmp_path: Path) -> None:
    write_targets(tmp_path, teacher, BATCHES, 4)
    with pytest.raises(UserError, match="holds other targets .top_k was 4, now 5"):
        write_targets(tmp_path, teacher, BATCHES, 5)
    with pytest.raises(UserError, match="holds other targets .teacher was"):
        write_targets(tmp_path, student, BATCHES, 4)
    with pytest.raises(UserError, match="the targets of another text"):
        write_targets(tmp_path, teacher, BATCHES[::-1], 4)
    with pytest.raises(UserError, match="reach from 0 to 99; the model's vocabulary has 17"):
        write_targets(tmp_path / "new", teacher, [(mx.array([[0, 99]]), mx.array([[1, 2]]))], 4)
    with pytest.raises(UserError, match="got 3 arrays: segments cannot be kept"):
        write_targets(tmp_path / "packed", teacher, [(x, y, y) for x, y in BATCHES], 4)
    with pytest.raises(UserError, match="There is no batch"):
        write_targets(tmp_path / "empty", teacher, [], 4)
    for top_k in (0, VOCAB + 1):
        with pytest.raises(UserError, match="between 1 and the teacher's 17 tokens"):
            write_targets(tmp_path / "new", teacher, BATCHES, top_k)


def test_targets_with_another_vocabulary_or_temperature_are_refused(teacher: Any, tmp_path: Path) -> None:
    write_targets(tmp_path, teacher, BATCHES, 4)
    targets = TeacherTargets(tmp_path)
    other = build(llama_config(VOCAB + 3, 16, 2, 1, 1, 32, 64))
    with pytest.raises(UserError, match="The teacher has 17 tokens, the student 20"):
        Distillation(targets)(other, *next(targets))
    with pytest.raises(UserError, match="was summed at 4.0: use that"):
        Distillation(targets, 2.0)
    with pytest.raises(UserError, match="renormalised targets is infinite"):
        Distillation(targets, kind="reverse", tail="renormalise")
    with pytest.raises(UserError, match="iterate over the TeacherTargets"):
        Distillation(targets)(teacher, *BATCHES[0])
    state = targets.state_dict()
    with pytest.raises(UserError, match="of other batches .seed."):
        TeacherTargets(tmp_path, seed=1).load_state_dict(json.loads(json.dumps(state)))


def test_files_that_are_gone_or_torn_are_named(teacher: Any, tmp_path: Path) -> None:
    write_targets(tmp_path, teacher, BATCHES, 4)
    torn = tmp_path / "000002.npz"
    content = torn.read_bytes()
    torn.write_bytes(content[: len(content) // 2])
    targets = TeacherTargets(tmp_path)
    with pytest.raises(UserError, match="000002.npz cannot be read"):
        [next(targets) for _ in range(5)]
    torn.unlink()
    with pytest.raises(UserError, match="000002.npz and 0 more files are gone"):
        TeacherTargets(tmp_path)
    (tmp_path / "targets.json").write_text("{")
    with pytest.raises(UserError, match=r"targets.json is damaged"):
        TeacherTargets(tmp_path)
    with pytest.raises(UserError, match="holds no targets of a teacher"):
        TeacherTargets(tmp_path / "nowhere")

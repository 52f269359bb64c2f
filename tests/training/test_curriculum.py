"""Curricula at their edges: every stage that fits and a message for those that do not, and shares that are met."""

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_lm import VOCAB, tiny_config, tiny_model

from lmxlab.errors import UserError
from lmxlab.training import Trainer
from lmxlab.training.curriculum import difficulty_curriculum, length_curriculum

TEXT = mx.arange(200)
EASY, HARD = mx.zeros(50, mx.int32), mx.ones(60, mx.int32)


def hard_rows(**settings: Any) -> list[int]:
    """Of each batch how many rows are hard, counted in the batch."""
    return [int(x[:, 0].sum()) for x, _ in difficulty_curriculum(EASY, HARD, 4, 6, **settings)]


@pytest.mark.parametrize(("n_stages", "lengths"), [(1, [24]), (2, [8, 24]), (4, [8, 13, 18, 24]), (20, [8, 24])])
def test_lengths_rise_linearly_from_the_least_to_the_greatest(n_stages: int, lengths: list[int]) -> None:
    batches = list(length_curriculum(TEXT, 3, 8, 24, n_stages, batches_per_stage=2))
    found = [x.shape for x, _ in batches]
    assert [shape[0] for shape in found] == [3] * 2 * n_stages
    assert found[::2] == found[1::2]
    steps = np.diff([shape[1] for shape in found[::2]])
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    reached = [shape[1] for shape in found[::2]]
    assert (reached if n_stages < 20 else [reached[0], reached[-1]]) == lengths
    for x, y in batches:
        assert mx.array_equal(y, x + 1)  # of the text 0, 1, 2, ...
        assert int(y.max()) < 200


def test_the_last_window_is_drawn_and_one_that_just_fits_is_a_stage() -> None:
    (batch,) = length_curriculum(mx.arange(9), 2, 8, 8, 1, 1)
    assert batch[1].tolist() == [list(range(1, 9))] * 2
    ends = {end for _, y in length_curriculum(mx.arange(12), 8, 8, 8, 1, 20) for end in y[:, -1].tolist()}
    assert ends == {8, 9, 10, 11}


def test_stages_without_enough_text_are_left_out_with_a_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        curriculum = length_curriculum(mx.arange(20), 2, 8, 32, 4, 3)
    assert curriculum.lengths == [8, 16] and len(curriculum) == len(list(curriculum)) == 6
    assert "2 of 4 stages are left out: windows of 24, 32 tokens" in caplog.text
    caplog.clear()
    length_curriculum(mx.arange(33), 2, 8, 32, 4, 3)
    assert not caplog.text
    with pytest.raises(UserError, match="Not enough data: the text has 8 tokens, one window takes 9"):
        length_curriculum(mx.arange(8), 2, 8, 32)


def test_the_hard_share_rises_linearly_and_stays() -> None:
    assert hard_rows(n_batches=10, warmup_fraction=0.5) == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert hard_rows(n_batches=6, warmup_fraction=0.0) == [4] * 6
    assert hard_rows(n_batches=5, warmup_fraction=1.0) == [0, 1, 2, 3, 4]
    assert hard_rows(n_batches=1, warmup_fraction=1.0) == [0]
    assert hard_rows(n_batches=3, warmup_fraction=0.3) == [0, 4, 4]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_shares_between_whole_rows_are_met_over_the_batches(batch_size: int) -> None:
    curriculum = difficulty_curriculum(EASY, HARD, batch_size, 6, 400, 0.75)
    expected = np.cumsum(np.minimum(np.arange(400) / 299, 1) * batch_size)
    assert np.abs(np.cumsum(curriculum.n_hard) - expected).max() <= 0.5 + 1e-9
    assert min(curriculum.n_hard) >= 0 and max(curriculum.n_hard) == batch_size
    assert curriculum.n_hard[0] == 0 and set(curriculum.n_hard[300:]) == {batch_size}


@pytest.mark.parametrize(
    ("batch_size", "n_batches", "warmup"), [(5, 7, 1.0), (1, 50, 0.3), (3, 50, 0.7), (5, 10, 0.7), (1, 101, 0.625)]
)
def test_a_half_row_is_rounded_the_same_way_in_every_batch(batch_size: int, n_batches: int, warmup: float) -> None:
    curriculum = difficulty_curriculum(EASY, HARD, batch_size, 6, n_batches, warmup)
    n_warmup = round(warmup * n_batches)
    assert curriculum.n_hard[0] == 0 and max(curriculum.n_hard) == batch_size
    assert set(curriculum.n_hard[n_warmup - 1 :]) == {batch_size}
    assert [len(x) for x, _ in curriculum] == [batch_size] * n_batches


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: length_curriculum(TEXT, 2, 4, 12, 3, 4, seed=seed),
        lambda seed: difficulty_curriculum(TEXT, TEXT, 2, 5, 12, seed=seed),
    ],
)
def test_a_curriculum_goes_on_where_it_was_saved_and_depends_on_its_seed(make: Any) -> None:
    whole = [x.tolist() for x, _ in make(0)]
    first, second = make(0), make(0)
    for _ in range(5):
        next(first)
    mx.random.seed(99)  # of no account
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [x.tolist() for x, _ in second] == whole[5:]
    assert len(whole) == 12 and len({str(x) for x in whole}) > 8
    assert [x.tolist() for x, _ in make(1)] != whole
    with pytest.raises(UserError, match=r"of another curriculum: seed 0 \(here 1\)"):
        make(1).load_state_dict(first.state_dict())


def test_a_compiled_step_is_compiled_once_for_each_stage() -> None:
    traced = []

    def objective(model: Any, x: mx.array, y: mx.array) -> Any:
        from lmxlab.training.objective import next_token

        traced.append(x.shape)
        return next_token(model, x, y)

    trainer = Trainer(tiny_model(), tiny_config(max_steps=99, compile_step=True), objective=objective)
    trainer.train(length_curriculum(TEXT % VOCAB, 2, 4, 8, 3, 5))
    assert trainer.step == 15
    assert traced == [(2, 4), (2, 6), (2, 8)]


def test_numbers_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="got min_seq_len 9, max_seq_len 8"):
        length_curriculum(TEXT, 2, 9, 8)
    with pytest.raises(UserError, match="n_stages must be at least 1, got 0"):
        length_curriculum(TEXT, 2, 4, 8, 0)
    with pytest.raises(UserError, match="batch_size of at least 1, got 0"):
        length_curriculum(TEXT, 0, 4, 8)
    with pytest.raises(UserError, match="number of batches of at least 1, got 0"):
        difficulty_curriculum(EASY, HARD, 2, 4, 0)
    with pytest.raises(UserError, match="between 0 and 1, got 1.5"):
        difficulty_curriculum(EASY, HARD, 2, 4, warmup_fraction=1.5)
    with pytest.raises(UserError, match="Not enough data: the easy text has 50 tokens"):
        difficulty_curriculum(EASY, HARD, 2, 55)
    with pytest.raises(UserError, match="Not enough data: the hard text has 60 tokens"):
        difficulty_curriculum(EASY, HARD, 2, 60, warmup_fraction=0.0)
    assert len(difficulty_curriculum(EASY, HARD, 2, 55, warmup_fraction=0.0)) == 200
    with pytest.raises(UserError, match="one sequence, got an array of shape"):
        length_curriculum(TEXT.reshape(2, 100), 2)

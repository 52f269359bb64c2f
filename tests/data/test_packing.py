"""Packed rows hold every target once, next to nothing that is not its own document's."""

import dataclasses
import json
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.data.packing import PackedBatches, PackedRows, pack
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import TrainConfig, Trainer

RNG = np.random.default_rng(0)
DOCUMENTS = [np.arange(n) + 100 * i for i, n in enumerate(RNG.integers(0, 40, 60))]


def pairs_of(rows: PackedRows) -> list[tuple[int, int]]:
    return sorted((int(x), int(y)) for x, y in zip(rows.x.flat, rows.y.flat, strict=True) if y >= 0)


@pytest.mark.parametrize("seq_len", [1, 7, 16, 64])
def test_every_target_is_there_once_after_its_own_input(seq_len: int) -> None:
    rows = PackedRows(DOCUMENTS, seq_len)
    expected = sorted((int(a), int(b)) for d in DOCUMENTS for a, b in pairwise(d))
    assert pairs_of(rows) == expected
    assert rows.fill == len(expected) / rows.x.size
    assert (rows.n_cut, rows.n_left_out) == (
        sum(len(d) - 1 > seq_len for d in DOCUMENTS),
        sum(len(d) < 2 for d in DOCUMENTS),
    )


@pytest.mark.parametrize("seq_len", [16, 64])
def test_segments_are_documents_in_one_piece(seq_len: int) -> None:
    rows = PackedRows(DOCUMENTS, seq_len)
    for x, y, segments in zip(rows.x, rows.y, rows.segments, strict=True):
        assert set(np.diff(segments)) <= {0, 1} and segments[0] == 0
        for number in range(segments.max() + 1):
            own, targets = x[segments == number], y[segments == number]
            if (targets >= 0).all():
                assert (np.diff(own) == 1).all() and (targets == own + 1).all()
            else:
                assert number == segments.max() and (targets == -100).all() and (own == 0).all()


def test_few_rows_are_needed() -> None:
    lengths = RNG.integers(1, 50, 2000)
    bins = pack(lengths.tolist(), 128)
    assert sorted(item for members in bins for item in members) == list(range(2000))
    assert max(lengths[members].sum() for members in bins) <= 128
    assert len(bins) <= 1.01 * -(-lengths.sum() // 128)
    assert len(pack([64] * 10 + [65] * 3, 128)) == 8


def test_what_is_not_to_be_learned_is_not_scored() -> None:
    documents, scored = [[1, 2, 3, 4], [5, 6, 7]], [[False, False, True, True], [True, False, True]]
    rows = PackedRows(documents, 8, scored)
    assert rows.x.tolist() == [[1, 2, 3, 5, 6, 0, 0, 0]]
    assert rows.y.tolist() == [[-100, 3, 4, -100, 7, -100, -100, -100]]
    with pytest.raises(UserError, match="of every token of every document"):
        PackedRows(documents, 8, [[True], [True]])


def test_batches_have_every_row_once_in_an_epoch_and_go_on_where_they_were() -> None:
    rows = PackedRows(DOCUMENTS, 32)
    batches, per_epoch = PackedBatches(rows, 4, seed=1), len(rows)
    seen = [row.tolist() for _ in range(per_epoch) for row in next(batches)[0]]
    for epoch in range(4):
        assert sorted(seen[epoch * per_epoch : (epoch + 1) * per_epoch]) == sorted(rows.x.tolist())
    assert seen[:per_epoch] != seen[per_epoch : 2 * per_epoch]
    state = json.loads(json.dumps(batches.state_dict()))
    again = PackedBatches(rows, 4, seed=1)
    again.load_state_dict(state)
    for ours, theirs in zip(next(again), next(batches), strict=True):
        assert mx.array_equal(ours, theirs) and ours.dtype == mx.int32
    with pytest.raises(UserError, match=r"seed 1 \(here 2\)"):
        PackedBatches(rows, 4, seed=2).load_state_dict(state)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(UserError, match="no document has 2 tokens"):
        PackedRows([[1], []], 8)
    with pytest.raises(UserError, match="seq_len must be at least 1"):
        PackedRows([[1, 2]], 0)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        PackedBatches(PackedRows([[1, 2]], 2), 0)


@pytest.mark.parametrize("n_heads", [0, 1])
def test_a_trainer_learns_packed_documents_each_as_if_alone(n_heads: int) -> None:
    """One step on packed rows is the step on the documents, one per row and padded, in every metric."""
    documents = [RNG.integers(0, 31, n) for n in (5, 9, 3, 7, 12)]
    packed, alone = PackedRows(documents, 18), [PackedRows([d], 12) for d in documents]
    one_per_row = [np.concatenate([getattr(rows, name) for rows in alone]) for name in ("x", "y", "segments")]
    assert len(packed) == 2 and one_per_row[0].shape == (5, 12)
    steps = []
    for batch in (next(PackedBatches(packed, 2)), tuple(map(mx.array, one_per_row))):
        mx.random.seed(0)
        config = llama_config(31, 16, 2, 1, 1, 32, 64, tie_embeddings=True)
        model = LanguageModel(dataclasses.replace(config, mtp_n_predict=n_heads))
        trainer = Trainer(model, TrainConfig(max_steps=2, warmup_steps=1))
        steps.append(trainer.train([batch] * 2))
    for one, other in zip(*steps, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert ("mtp_loss" in steps[0][0]) == (n_heads > 0)

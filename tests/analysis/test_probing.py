"""Probes read what is there, are scored on rows that they never saw, and are held against a control task."""

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.analysis import LinearProbe, control_labels, probe_accuracy, probe_layers, train_probe
from lmxlab.analysis.probing import split_rows
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_tiny

ROWS = mx.random.randint(0, 256, (48, 12), key=mx.random.key(0))


def model() -> LanguageModel:
    return LanguageModel(gpt_tiny())


def test_a_property_of_the_token_is_learnt_and_read_on_other_rows() -> None:
    tokens = ROWS % 8
    batches = [(tokens[i : i + 8], tokens[i : i + 8] % 2) for i in range(0, 48, 8)]
    probe, lm = LinearProbe(64, 2), model()
    losses = train_probe(lm, batches[:4], layer=0, probe=probe, steps=60, lr=0.02)
    assert len(losses) == 60 and losses[-1] < 0.3 * losses[0]
    assert probe_accuracy(lm, batches[4:], 0, probe) > 0.95


def test_the_model_does_not_move_and_keeps_its_training_flag() -> None:
    lm = model()
    lm.train()
    before = mx.array(lm.blocks[0].ffn.up.weight)
    train_probe(lm, [(ROWS, ROWS % 3)], 1, LinearProbe(64, 3), steps=3)
    assert mx.array_equal(lm.blocks[0].ffn.up.weight, before) and lm.training


def test_an_iterator_that_ends_ends_the_training() -> None:
    assert len(train_probe(model(), iter([(ROWS, ROWS % 3)] * 4), 0, LinearProbe(64, 3), steps=9)) == 4


def test_accuracy_counts_scored_tokens_only_and_stops_at_max_batches() -> None:
    probe = LinearProbe(64, 2)
    probe.linear.weight, probe.linear.bias = mx.zeros((2, 64)), mx.array([0.0, 1.0])  # always guesses 1
    labels = mx.array([[1, 1, 0, -100]])
    tokens = mx.array([[1, 2, 3, 4]])
    assert probe_accuracy(model(), [(tokens, labels)], 0, probe) == pytest.approx(2 / 3)
    zeros = [(tokens, labels), (tokens, mx.zeros_like(labels))]
    assert probe_accuracy(model(), zeros, 0, probe, max_batches=1) == pytest.approx(2 / 3)


def test_control_labels_are_a_table_over_token_ids_with_the_frequencies_of_the_labels() -> None:
    labels = mx.where(ROWS < 64, 0, 1)
    labels[:, 0] = -100
    control, ids = np.array(control_labels(ROWS, labels, seed=1)), np.array(ROWS)
    assert (control[:, 0] == -100).all()
    table = {}
    for token, label in zip(ids[:, 1:].ravel(), control[:, 1:].ravel(), strict=True):
        assert table.setdefault(token, label) == label
    assert 0.6 < np.mean(list(table.values())) < 0.9
    assert not np.array_equal(control, np.array(control_labels(ROWS, labels, seed=2)))


def test_selectivity_tells_a_property_of_the_state_from_one_learnt_by_heart() -> None:
    """The position is in the stream, and no table of token ids tells it; parity of the token is such a table."""
    lm, positions = model(), mx.broadcast_to(mx.arange(12) // 6, ROWS.shape)
    (by_position,) = probe_layers(lm, ROWS, positions, [0], steps=80, lr=0.02)
    (by_token,) = probe_layers(lm, ROWS % 32, ROWS % 2, [0], steps=80, lr=0.02)
    assert by_position.accuracy > 0.95 and by_position.selectivity > 0.2
    assert by_token.accuracy > 0.9 and by_token.selectivity < 0.15
    assert by_position.majority == pytest.approx(0.5)
    assert by_position.selectivity == by_position.accuracy - by_position.control_accuracy


def test_rows_held_out_are_not_trained_on() -> None:
    train, test = split_rows(40, 0.25, seed=3)
    assert sorted([*train, *test]) == list(range(40)) and len(test) == 10
    with pytest.raises(UserError, match="leaves one side empty"):
        split_rows(2, 0.1)


def test_bad_input_is_told() -> None:
    lm, probe = model(), LinearProbe(64, 2)
    cases = [
        (lambda: train_probe(lm, [(ROWS, ROWS % 2)], 2, probe), "no layer 2: the model has layers 0 to 1"),
        (lambda: train_probe(lm, [(ROWS, ROWS)], 0, probe), "the probe has classes 0 to 1"),
        (lambda: train_probe(lm, [(ROWS, ROWS[:, 1:])], 0, probe), r"\(48, 12\) and labels \(48, 11\) differ"),
        (lambda: train_probe(lm, [(ROWS, ROWS % 2)], 0, LinearProbe(32, 2)), "reads 32 channels, the model has 64"),
        (lambda: train_probe(lm, [], 0, probe), "holds no batch"),
        (lambda: probe_accuracy(lm, [(ROWS, ROWS * 0 - 1)], 0, probe), "no token to score"),
        (lambda: probe_layers(lm, ROWS, ROWS[0]), "must both be"),
        (lambda: control_labels(ROWS, ROWS * 0 - 1), "No token has a label"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()

"""Batches: the data covered once, in a seeded order that can be resumed anywhere."""

import json
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmxlab.data import TokenBatches, batch_iterator, eval_batches
from lmxlab.errors import UserError


def ids(n):
    """Token i is i, so that a batch says which positions it was taken from."""
    return np.arange(n, dtype=np.uint32)


def pairs(batches):
    return [(x.tolist(), y.tolist()) for x, y in batches]


def epoch_targets(batches: TokenBatches):
    """The targets of the epoch that begins now."""
    epoch, found = batches.epoch, []
    while True:
        _, y = next(batches)
        if batches.epoch != epoch:
            return found, y
        found += y.flatten().tolist()


def test_batch_iterator_covers_each_window_once():
    mx.random.seed(0)
    seen = [x for x, _ in pairs(batch_iterator(mx.arange(101), 2, 10))]
    assert sorted(x for batch in seen for row in batch for x in row) == list(range(100))


def test_batch_iterator_targets_are_one_later():
    for x, y in batch_iterator(mx.arange(60), 3, 7):
        assert x.shape == y.shape == (3, 7)
        assert (y == x + 1).all().item()


def test_batch_iterator_draws_the_last_window():
    (_, y) = list(batch_iterator(mx.arange(21), 2, 10, shuffle=False))[-1]
    assert y[-1, -1].item() == 20


def test_batch_iterator_order_depends_on_the_seed():
    def order(seed):
        mx.random.seed(seed)
        return pairs(batch_iterator(mx.arange(400), 2, 8))

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_batch_iterator_gives_full_batches_only():
    assert len(list(batch_iterator(mx.arange(51), 2, 10))) == 2


@pytest.mark.parametrize("n", [0, 1, 20])
def test_batch_iterator_without_enough_data(n):
    with pytest.raises(ValueError, match="Not enough data"):
        next(batch_iterator(mx.arange(n), 2, 10))


@settings(deadline=None)
@given(n=st.integers(2, 200), seq_len=st.integers(1, 20), seed=st.integers(0, 5))
def test_an_epoch_draws_every_target_once_but_for_the_end_windows(n, seq_len, seed):
    if n <= seq_len:
        return
    batches = TokenBatches(ids(n), 1, seq_len, seed=seed)
    targets, _ = epoch_targets(batches)
    counts = np.bincount(targets, minlength=n)
    assert counts[0] == 0
    assert (counts[1:] >= 1).all()
    # Only the window that starts at the first token and the one that ends at the last may overlap a neighbour.
    inner = counts[1 + seq_len : n - seq_len]
    assert (inner == 1).all()
    assert counts.sum() <= n - 1 + 2 * seq_len


def test_train_windows_are_the_tokens_and_the_same_one_later():
    for x, y in islice(TokenBatches(ids(100), 4, 8), 20):
        assert x.shape == y.shape == (4, 8)
        assert x.dtype == y.dtype == mx.int32
        assert (y == x + 1).all().item()
        assert (x[:, 1:] == x[:, :-1] + 1).all().item()


def test_train_order_depends_on_the_seed_and_changes_every_epoch():
    def draw(seed, n=40):
        return pairs(islice(TokenBatches(ids(200), 3, 8, seed=seed), n))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    epochs = []
    for epoch in range(3):
        batches = TokenBatches(ids(200), 3, 8)
        batches.load_state_dict(batches.state_dict() | {"epoch": epoch})
        epochs.append(pairs(islice(batches, 5)))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("k", [0, 1, 5, 12, 13, 14, 57])
def test_resumed_batches_continue_the_same_way(k):
    original = TokenBatches(ids(300), 5, 8, seed=7)
    for _ in range(k):
        next(original)
    state = json.loads(json.dumps(original.state_dict()))
    resumed = TokenBatches(ids(300), 5, 8, seed=7)
    resumed.load_state_dict(state)
    assert pairs(islice(resumed, 30)) == pairs(islice(original, 30))


def test_a_batch_larger_than_an_epoch_draws_from_several():
    x, _ = next(TokenBatches(ids(9), 10, 8))
    assert x.tolist() == [list(range(8))] * 10


@pytest.mark.parametrize("other", [{"seed": 1}, {"seq_len": 9}, {"n": 301}])
def test_state_of_other_batches_is_refused(other):
    settings = {"seed": 0, "seq_len": 8, "n": 300} | other
    state = TokenBatches(ids(300), 5, 8, seed=0).state_dict()
    with pytest.raises(UserError, match="other batches"):
        TokenBatches(ids(settings["n"]), 5, settings["seq_len"], seed=settings["seed"]).load_state_dict(state)


@pytest.mark.parametrize("n", [0, 1, 8])
def test_a_text_shorter_than_one_window(n):
    with pytest.raises(UserError, match=f"Not enough data: {n} tokens, but one window takes 9"):
        TokenBatches(ids(n), 4, 8)


@pytest.mark.parametrize(("batch_size", "seq_len"), [(0, 8), (4, 0)])
def test_an_empty_batch_is_refused(batch_size, seq_len):
    with pytest.raises(UserError, match="at least 1"):
        TokenBatches(ids(50), batch_size, seq_len)


@settings(deadline=None)
@given(n=st.integers(2, 300), batch_size=st.integers(1, 5), seq_len=st.integers(1, 40))
def test_eval_scores_every_target_exactly_once_and_in_order(n, batch_size, seq_len):
    batches = eval_batches(ids(n), batch_size, seq_len)
    scored = [t for _, y in batches for t in y.flatten().tolist()]
    assert scored == list(range(1, n))
    assert batches.n_tokens == n - 1
    assert len(batches) == len(list(batches))
    assert all((y == x + 1).all().item() for x, y in batches)


@settings(deadline=None)
@given(n=st.integers(2, 300), seq_len=st.integers(1, 20), max_tokens=st.integers(1, 400))
def test_limited_eval_scores_no_target_twice_and_about_as_many_as_asked(n, seq_len, max_tokens):
    batches = eval_batches(ids(n), 3, seq_len, max_tokens=max_tokens)
    scored = [t for _, y in batches for t in y.flatten().tolist()]
    assert scored == sorted(set(scored))
    assert batches.n_tokens == len(scored) <= max(max_tokens, min(seq_len, n - 1))
    assert len(scored) > min(max_tokens, n - 1) - seq_len


def test_limited_eval_is_spread_over_the_data():
    starts = [x[0, 0].item() for x, _ in eval_batches(ids(1001), 1, 10, max_tokens=100)]
    assert starts == list(range(0, 1000, 100))


def test_eval_batches_need_a_target():
    with pytest.raises(UserError, match="Not enough data"):
        eval_batches(ids(1), 2, 8)
    with pytest.raises(UserError, match="max_tokens is 0"):
        eval_batches(ids(9), 2, 8, max_tokens=0)

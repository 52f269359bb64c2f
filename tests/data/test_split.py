"""The split: nothing in both parts, whole documents, about the share asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmxlab.data.corpus import Documents
from lmxlab.data.split import Split, choose_held_out
from lmxlab.errors import UserError


@given(
    texts=st.lists(st.text(alphabet="ab \n", max_size=12), min_size=2, max_size=40),
    val_fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_every_distinct_document_is_in_exactly_one_part(texts, val_fraction, seed):
    distinct = {text for text in texts if text.strip()}
    if len(distinct) < 2:
        return
    split = Split(Documents(texts), val_fraction, seed)
    train, val = list(split.train), split.val
    assert train and val
    assert sorted(train + val) == sorted(distinct)


@pytest.mark.parametrize("val_fraction", [0.05, 0.1, 0.3])
def test_the_part_held_out_has_about_the_size_asked_for(val_fraction):
    sizes = [100 + 7 * (i % 13) for i in range(200)]
    held = choose_held_out(sizes, val_fraction, seed=3)
    part = sum(size for size, h in zip(sizes, held, strict=True) if h) / sum(sizes)
    assert abs(part - val_fraction) < 0.01


def test_the_seed_chooses():
    sizes = [10] * 100
    assert choose_held_out(sizes, 0.1, 1) == choose_held_out(sizes, 0.1, 1)
    assert choose_held_out(sizes, 0.1, 1) != choose_held_out(sizes, 0.1, 2)


@pytest.mark.parametrize(("sizes", "val_fraction"), [([5, 1000], 0.001), ([5, 1000], 0.999), ([1, 1], 0.5)])
def test_at_least_one_document_on_each_side(sizes, val_fraction):
    for seed in range(5):
        assert 0 < sum(choose_held_out(sizes, val_fraction, seed)) < len(sizes)


def test_one_text_is_split_in_order():
    split = Split(Documents(["0123456789", "0123456789", " "]), 0.3, seed=5)
    assert (split.train, split.val, split.running_text) == (["0123456"], ["789"], True)


def test_max_documents():
    split = Split(Documents([str(i) for i in range(10)]), 0.3, seed=0, max_documents=4)
    assert sorted([*split.train, *split.val]) == ["0", "1", "2", "3"]


def test_a_pinned_validation_part_is_kept_and_never_trained_on():
    split = Split(Documents(["a", "v", "b", "a", "c"], validation=["v", "w", "v"]), 0.1, seed=0, max_documents=4)
    assert split.val == ["v", "w"]
    assert list(split.train) == list(split.train) == ["a", "b"]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (Documents([]), "holds no text"),
        (Documents(["", " \n"]), "holds no text"),
        (Documents(["x"]), "too short to hold a part out"),
        (Documents(["v"], validation=["v"]), "no text on one side"),
    ],
)
def test_too_little_text(documents, message):
    with pytest.raises(UserError, match=message):
        Split(documents, 0.1, seed=0)

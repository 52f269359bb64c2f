"""What crosses the border: plain data and nothing else, the same on both sides."""

import json
import math
import time
from collections import Counter, OrderedDict, namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmxlab.eval.confined.guest import decode, encode, same

ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
DATA = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(DATA)
def test_plain_data_survives_json_with_its_types(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert same(value, back)
    assert type(value) is type(back)


def test_subclasses_become_plain():
    point = namedtuple("Point", "x y")(1, 2)
    plain = [decode(encode(v)) for v in (point, Counter("aab"), OrderedDict(a=1), np.float32(2.5), np.arange(3))]
    assert plain == [(1, 2), {"a": 2, "b": 1}, {"a": 1}, 2.5, [0, 1, 2]]
    assert [type(value) for value in plain] == [tuple, dict, dict, float, list]


@pytest.mark.parametrize("value", [object(), len, iter([]), {1: object()}, range(3)])
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(TypeError, match="no plain data"):
        encode(value)


def test_depth_is_limited_both_ways():
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(TypeError, match="64 deep"):
        encode(deep)
    with pytest.raises(ValueError, match="64 deep"):
        decode(deep)


@pytest.mark.parametrize(
    "data",
    [{}, {"list": []}, {"dict": 3}, {"dict": [[[], 1]]}, {"tuple": 3}, {"set": [[]]}, {"bytes": 3}, {"bytes": "€"}]
    + [{"complex": ["a"]}, {"complex": [1, 2, 3]}, {"tuple": [], "set": []}, {"dict": [[1]]}]
    + [{"complex": [10**400, 0]}],
    ids=str,
)
def test_what_no_encoder_wrote_is_refused(data):
    with pytest.raises(ValueError):
        decode(data)


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_items_that_share_their_hashes_do_not_cost_quadratic_time(kind):
    numbers = [k * (2**61 - 1) for k in range(40_000)]
    begun = time.monotonic()
    with pytest.raises(ValueError, match="share their hashes"):
        decode({kind: [[number, 0] for number in numbers] if kind == "dict" else numbers})
    assert time.monotonic() - begun < 5
    assert len(decode(encode(set(range(100_000))))) == 100_000


@pytest.mark.parametrize(
    ("expected", "got", "equal"),
    [
        (1, 1.0, True),
        (0.1 + 0.2, 0.3, True),
        (1.0, 1.001, False),
        (True, 1, False),
        (1, True, False),
        ([1], (1,), False),
        ([1, 2], [1], False),
        ({1: 2.0}, {1: 2}, True),
        ({1: 2}, {1: 2, 3: 4}, False),
        ({1}, frozenset({1}), False),
        ("1", 1, False),
        (1.0, "1", False),
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (math.inf, math.inf, True),
        (math.inf, 1e308, False),
        (2.5, 10**400, False),
        (10**400, 2.5, False),
        ([math.inf], [10**400], False),
        (None, 0, False),
    ],
)
def test_what_counts_as_the_same(expected, got, equal):
    assert same(expected, got, 1e-9) is equal

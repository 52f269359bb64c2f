"""The CPU forms against float64, over the ranges and edges that the modules state."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import special

from lmxlab.core import kernels

pytestmark = [
    pytest.mark.usefixtures("cpu_forms_at_any_size"),
    pytest.mark.skipif(
        not kernels.is_fast(mx.zeros((1 << 20,))), reason="the CPU forms need a CPU device and a compiler"
    ),
]

WIDE = np.concatenate([np.linspace(-30, 30, 60_001), np.geomspace(1e-30, 3e4, 200), -np.geomspace(1e-30, 3e4, 200)])
ACTIVATIONS = {
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * special.expit(x),
}


@pytest.fixture
def exact_mode():
    kernels.exact(True)
    yield
    kernels.exact(False)


def gap(ours: mx.array, reference: np.ndarray) -> float:
    """The largest difference, relative for values above 1: float32 itself resolves no more."""
    return float(np.max(np.abs(np.array(ours, dtype=np.float64) - reference) / np.maximum(1, np.abs(reference))))


def test_exp_is_within_2e_5_relative_over_the_whole_range():
    a = np.linspace(0, 87, 200_001).astype(np.float32)
    ours = np.array(kernels.exp_neg(mx.array(a)), dtype=np.float64)
    assert np.max(np.abs(ours / np.exp(-a.astype(np.float64)) - 1)) < 2e-5


def test_exp_has_exact_limits_and_keeps_nan():
    ours = np.array(kernels.exp_neg(mx.array([0.0, math.inf, 1e30, 200.0, math.nan])))
    assert ours[0] == 1 and np.all(ours[1:4] == 0) and math.isnan(ours[4])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_within_5e_6(name):
    x = WIDE.astype(np.float32)
    assert gap(getattr(kernels, name)(mx.array(x)), ACTIVATIONS[name](x.astype(np.float64))) < 5e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_activations_are_within_1e_5(name):
    x = np.linspace(-30, 30, 60_001)
    step = 1e-5
    slope = (ACTIVATIONS[name](x + step) - ACTIVATIONS[name](x - step)) / (2 * step)
    ours = mx.grad(lambda x: (getattr(kernels, name)(x) * 2).sum())(mx.array(x.astype(np.float32)))
    assert gap(ours, 2 * slope) < 1e-5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_their_limits_at_infinity_and_keep_nan(name):
    x = mx.array([math.inf, 3e38, -3e38, -math.inf, 0.0, math.nan])
    ours = np.array(getattr(kernels, name)(x))
    np.testing.assert_array_equal(ours, np.array([math.inf, 3e38, 0, 0, 0, math.nan], dtype=np.float32))
    slope = np.array(mx.grad(lambda x: getattr(kernels, name)(x).sum())(x))
    np.testing.assert_array_equal(slope, [1, 1, 0, 0, 0.5, math.nan])


def test_swiglu_and_both_its_gradients():
    assert_same_as_float64(kernels.swiglu, [normal(33, 17, scale=2), normal(33, 17, seed=1)])


@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_softmax_is_within_5e_6(spread):
    x = np.random.default_rng(0).normal(0, spread, (64, 300)).astype(np.float32)
    assert gap(kernels.softmax(mx.array(x)), special.softmax(x.astype(np.float64), axis=-1)) < 5e-6


def test_softmax_gives_exactly_zero_to_minus_infinity_and_keeps_nan():
    ours = np.array(kernels.softmax(mx.array([[0.0, -math.inf, 1.0], [0.0, math.nan, 1.0]])))
    assert ours[0, 1] == 0 and abs(ours[0].sum() - 1) < 1e-6
    assert np.all(np.isnan(ours[1]))


def assert_same_as_float64(function, arrays, tolerance=1e-5):
    """Value and gradients of sum(sin(function)) agree with MLX's own operations in float64."""

    def value_and_grad(*arrays):
        return mx.value_and_grad(lambda *a: mx.sin(function(*a)).sum(), argnums=tuple(range(len(arrays))))(*arrays)

    value, gradients = value_and_grad(*arrays)
    expected, expected_gradients = value_and_grad(*(a.astype(mx.float64) for a in arrays))
    assert abs(value.item() - expected.item()) < tolerance * max(1, abs(expected.item()))
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours.shape == theirs.shape
        assert gap(ours, np.array(theirs)) < tolerance


def normal(*shape, seed=0, scale=1.0):
    return mx.random.normal(shape, key=mx.random.key(seed)) * scale


def test_softmax_gradient():
    assert_same_as_float64(kernels.softmax, [normal(5, 7, 31, scale=4)])


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_layer_norm(offset):
    x = normal(3, 5, 64) * 2 + offset  # a mean far from 0 loses digits where the variance is E[x^2] - mean^2
    assert_same_as_float64(
        lambda x, w, b: kernels.layer_norm(x, w, b, 1e-5), [x, normal(64, seed=1), normal(64, seed=2)]
    )
    assert_same_as_float64(lambda x, w: kernels.layer_norm(x, w, None, 1e-5), [x, normal(64, seed=1)])


def test_rms_norm():
    assert_same_as_float64(lambda x, w: kernels.rms_norm(x, w, 1e-5), [normal(3, 5, 64) * 2, normal(64, seed=1)])


def test_linear():
    arrays = [normal(3, 5, 16), normal(8, 16, seed=1), normal(8, seed=2)]
    assert_same_as_float64(kernels.linear, arrays)


MASKS = {
    "none": None,
    "causal": "causal",
    "boolean": mx.arange(7)[:, None] + 4 >= mx.arange(11),
    "per head": mx.random.uniform(shape=(2, 4, 7, 11), key=mx.random.key(9)) > 0.3,
    "additive": mx.random.normal((1, 4, 7, 11), key=mx.random.key(9)),
    "minus infinity": mx.where(mx.arange(7)[:, None] + 4 >= mx.arange(11), 0.0, -math.inf),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_and_its_gradients(mask, kv_heads):
    arrays = [normal(2, 4, 7, 8), normal(2, kv_heads, 11, 8, seed=1), normal(2, kv_heads, 11, 6, seed=2)]
    assert_same_as_float64(lambda q, k, v: kernels.attention(q * 3, k, v, 0.4, mask), arrays, 2e-5)


def test_attention_has_the_gradient_of_an_additive_mask():
    q, k, v = normal(2, 4, 7, 8), normal(2, 2, 7, 8, seed=1), normal(2, 2, 7, 8, seed=2)
    assert_same_as_float64(lambda m: kernels.attention(q, k, v, 0.3, m), [normal(4, 7, 7, seed=3)])


def test_a_query_that_may_see_nothing_is_no_nan():
    q = normal(1, 1, 3, 4)
    assert mx.all(mx.isfinite(kernels.attention(q, q, q, 1.0, mx.zeros((3, 3), dtype=mx.bool_)))).item()


def test_scores_far_from_zero_do_not_overflow():
    q = normal(1, 1, 5, 4) * 300
    assert_same_as_float64(lambda v: kernels.attention(q, q, v, 1.0, "causal"), [normal(1, 1, 5, 4, seed=1)])


def nats_in_float64(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return special.logsumexp(logits, axis=-1) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


def test_cross_entropy_and_its_gradient():
    logits, targets = normal(4, 9, 50, scale=5), mx.random.randint(0, 50, (4, 9), key=mx.random.key(1))
    exact = nats_in_float64(np.array(logits, dtype=np.float64), np.array(targets))
    assert gap(kernels.cross_entropy(logits, targets), exact) < 5e-6
    assert_same_as_float64(lambda z: kernels.cross_entropy(z, targets), [logits])


@pytest.mark.parametrize("chunk_logits", [50, 3 * 50, 10**9])
def test_linear_cross_entropy_does_not_depend_on_its_chunks(monkeypatch, chunk_logits):
    monkeypatch.setattr(kernels.losses, "_CHUNK_LOGITS", chunk_logits)
    hidden, weight = normal(2, 11, 16), normal(50, 16, seed=1)
    targets = mx.random.randint(0, 50, (2, 11), key=mx.random.key(2))
    share = mx.arange(22).reshape(2, 11) / 22

    def chunked(hidden, weight):
        return (kernels.linear_cross_entropy(hidden, weight, targets) * share).sum()

    def plain(hidden, weight):
        return (kernels.cross_entropy(hidden @ weight.T, targets) * share).sum()

    value, gradients = mx.value_and_grad(chunked, argnums=(0, 1))(hidden, weight)
    expected, expected_gradients = mx.value_and_grad(plain, argnums=(0, 1))(hidden, weight)
    assert abs(value.item() / expected.item() - 1) < 1e-6
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert gap(ours, np.array(theirs, dtype=np.float64)) < 1e-5


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_half_precision_uses_the_operations_of_mlx_and_keeps_its_type(dtype):
    x = normal(4, 8).astype(dtype)
    assert kernels.gelu(x).dtype == kernels.layer_norm(x, x[0], None, 1e-5).dtype == dtype
    weight, targets = normal(10, 8, seed=1).astype(dtype), mx.array([1, 2, 3, 4])
    nats = kernels.linear_cross_entropy(x, weight, targets)
    exact = nats_in_float64(np.array((x @ weight.T).astype(mx.float32)), np.array(targets))
    assert nats.dtype == mx.float32 and gap(nats, exact) < 1e-2
    gradients = mx.grad(lambda h, w: kernels.linear_cross_entropy(h, w, targets).sum(), argnums=(0, 1))(x, weight)
    assert gradients[0].dtype == gradients[1].dtype == dtype


def test_exact_mode_gives_the_bits_of_mlx(exact_mode):
    x = normal(8, 16)
    assert mx.array_equal(kernels.softmax(x), mx.softmax(x, axis=-1, precise=True)).item()
    assert not kernels.is_fast(x)


def test_small_arrays_use_the_operations_of_mlx(monkeypatch):
    monkeypatch.setattr(kernels.switch, "FEWEST_ELEMENTS", 100)
    small, large = normal(99), normal(101)
    assert not kernels.is_fast(small) and kernels.is_fast(large) and kernels.is_fast(small, elements=100)
    assert not kernels.is_fast(large, small.astype(mx.float16))


def test_compiled_and_eager_agree():
    x, w = normal(3, 8, 16), normal(16, seed=1)
    function = lambda x: kernels.gelu(kernels.rms_norm(x, w, 1e-5)) + x  # noqa: E731
    assert gap(mx.compile(function)(x), np.array(function(x), dtype=np.float64)) < 1e-6

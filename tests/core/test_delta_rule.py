"""Both forms of the gated delta rule against a loop in float64 that is the paper's recurrence, word for word."""

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.delta_rule import (
    CHUNK,
    FEW_TOKENS,
    delta_rule,
    delta_rule_chunks,
    delta_rule_steps,
    flops_per_token,
    unit_lower_inverse,
)

B, KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM = 2, 2, 4, 6, 10


def draw(length: int) -> list[mx.array]:
    """q, k, v, log_decay, beta, state with decays from almost none to almost all."""
    q, k = (mx.random.normal((B, KEY_HEADS, length, KEY_DIM)) for _ in range(2))
    k = k / mx.linalg.norm(k, axis=-1, keepdims=True)
    log_decay = -mx.exp(2 * mx.random.normal((B, HEADS, length)) - 2)
    beta = mx.sigmoid(2 * mx.random.normal((B, HEADS, length)))
    state = mx.random.normal((B, HEADS, KEY_DIM, VALUE_DIM))
    return [q, k, mx.random.normal((B, HEADS, length, VALUE_DIM)), log_decay, beta, state]


def by_hand(*arrays: mx.array) -> tuple[np.ndarray, np.ndarray]:
    """2412.06464 equation 10: S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T, S (Dv, Dk)."""
    q, k, v, log_decay, beta, state = (np.array(a, dtype=np.float64) for a in arrays)
    out, final = np.zeros(v.shape), np.zeros(state.shape)
    for b in range(B):
        for h in range(HEADS):
            shared = h // (HEADS // KEY_HEADS)
            memory = state[b, h].T
            for t in range(v.shape[2]):
                key, alpha, rate = k[b, shared, t], np.exp(log_decay[b, h, t]), beta[b, h, t]
                memory = memory @ (alpha * (np.eye(KEY_DIM) - rate * np.outer(key, key)))
                memory = memory + rate * np.outer(v[b, h, t], key)
                out[b, h, t] = memory @ q[b, shared, t]
            final[b, h] = memory.T
    return out, final


@pytest.mark.parametrize("length", [1, 3, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_every_form_is_the_recurrence_of_the_paper(length: int) -> None:
    arrays = draw(length)
    expected, final = by_hand(*arrays)
    for form in (delta_rule, delta_rule_steps, delta_rule_chunks, lambda *a: delta_rule_chunks(*a, chunk=16)):
        out, state = form(*arrays)
        np.testing.assert_allclose(np.array(out), expected, atol=5e-5)
        np.testing.assert_allclose(np.array(state), final, atol=5e-5)


@pytest.mark.parametrize("cuts", [[1], [5, 6, 9], [64], [70, 74], [8, 100]])
def test_a_sequence_in_parts_is_the_whole_one(cuts: list[int]) -> None:
    *arrays, start = draw(140)
    whole, end = delta_rule(*arrays, start)
    state, parts = start, []
    for first, last in zip([0, *cuts], [*cuts, 140], strict=True):
        part, state = delta_rule(*(a[:, :, first:last] for a in arrays), state)
        parts.append(part)
    assert mx.abs(mx.concatenate(parts, axis=2) - whole).max() < 5e-5
    assert mx.abs(state - end).max() < 5e-5


def test_without_a_state_it_starts_from_nothing() -> None:
    *arrays, state = draw(12)
    for given, none in zip(delta_rule(*arrays, mx.zeros_like(state)), delta_rule(*arrays), strict=True):
        assert mx.array_equal(given, none)


@pytest.mark.parametrize("length", [70, 2 * CHUNK])
def test_both_forms_have_the_same_gradient(length: int) -> None:
    arrays = draw(length)

    def gradients(form) -> list[mx.array]:
        def loss(*arrays: mx.array) -> mx.array:
            out, state = form(*arrays)
            return (out * mx.arange(VALUE_DIM)).sum() + (state**2).sum()

        return mx.grad(loss, argnums=list(range(6)))(*arrays)

    for steps, chunks in zip(gradients(delta_rule_steps), gradients(delta_rule_chunks), strict=True):
        assert mx.abs(steps - chunks).max() <= 2e-5 * mx.abs(steps).max()


def test_the_gradient_is_that_of_finite_differences() -> None:
    arrays = draw(2 * CHUNK)

    def loss(*arrays: mx.array) -> mx.array:
        return mx.sin(delta_rule_chunks(*arrays)[0]).sum()

    for i, gradient in enumerate(mx.grad(loss, argnums=list(range(6)))(*arrays)):
        way, step = mx.random.normal(gradient.shape), 3e-4

        def moved(by: float, i: int = i, way: mx.array = way) -> np.float64:
            shifted = [a + by * way if i == j else a for j, a in enumerate(arrays)]
            return np.sin(by_hand(*shifted)[0]).sum()

        slope = (moved(step) - moved(-step)) / (2 * step)
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=2e-2, abs=0.05)


def test_later_tokens_change_nothing_at_all_before_them() -> None:
    arrays = draw(100)
    out, _ = delta_rule(*arrays)
    for cut in (1, 30, 63, 64, 99):
        late = mx.arange(100) >= cut
        changed = [mx.where(late.reshape(-1, *[1] * (a.ndim - 3)), a * 0.5 - 0.1, a) for a in arrays[:5]]
        other, _ = delta_rule(*changed, arrays[5])
        assert mx.array_equal(out[:, :, :cut], other[:, :, :cut])
        assert mx.abs(out[:, :, cut:] - other[:, :, cut:]).max() > 1e-3


@pytest.mark.parametrize("form", [delta_rule_steps, delta_rule_chunks])
def test_a_token_without_weight_or_decay_leaves_the_state_as_it_was(form) -> None:
    *arrays, state = draw(9)
    arrays[3], arrays[4] = mx.zeros_like(arrays[3]), mx.zeros_like(arrays[4])
    assert mx.allclose(form(*arrays, state)[1], state, atol=1e-6)


def test_a_fully_trusted_key_finds_its_value_again() -> None:
    *arrays, state = draw(CHUNK + 3)
    arrays[0], arrays[4] = arrays[1], mx.ones_like(arrays[4])  # q = k of unit length, beta 1
    out, _ = delta_rule(*arrays, state)
    assert mx.abs(out - arrays[2]).max() < 2e-5


def test_decay_that_erases_everything_stays_finite() -> None:
    arrays = draw(CHUNK)
    arrays[3] = mx.full(arrays[3].shape, -80.0)
    out, _ = delta_rule(*arrays)
    gradient = mx.grad(lambda g: delta_rule(*arrays[:3], g, *arrays[4:])[0].sum())(arrays[3])
    assert mx.isfinite(out).all() and mx.isfinite(gradient).all()
    assert mx.abs(out - by_hand(*arrays)[0].astype(np.float32)).max() < 1e-5


@pytest.mark.parametrize("size", [8, 16, 64])
def test_the_inverse_of_a_triangular_matrix_is_as_good_as_a_solver_s(size: int) -> None:
    random = 0.5 * mx.random.normal((3, size, size))
    repeated = mx.ones((1, size, size))  # one key again and again: powers of it have entries of 1e17
    for n in (mx.tril(random, -1), mx.tril(repeated, -1)):
        exact = np.linalg.inv(np.eye(size) + np.array(n, dtype=np.float64))
        gap = np.abs(np.array(unit_lower_inverse(n)) - exact).max()
        assert gap <= 1e-5 * np.abs(exact).max()


def test_flops_grow_with_the_length_and_not_with_its_square() -> None:
    sizes = {"heads": 4, "key_heads": 2, "key_dim": 64, "value_dim": 32}
    assert flops_per_token(2**20, **sizes) == pytest.approx(flops_per_token(2**13, **sizes), rel=0.01)
    assert flops_per_token(FEW_TOKENS, **sizes) == 4 * 4 * 64 * 32 < flops_per_token(8192, **sizes)

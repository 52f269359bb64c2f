"""The chunked form against the recurrence written as it stands in the paper, in float64."""

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.ssd import ssd, ssd_flops, ssd_step

pytestmark = pytest.mark.usefixtures("cpu_forms_at_any_size")
HEADS, WIDTH, GROUPS, CHANNELS = 4, 3, 2, 5


def draw(length: int, strength: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    return {
        "u": rng.normal(size=(2, length, HEADS, WIDTH)),
        "log_decay": -strength * rng.exponential(size=(2, length, HEADS)),
        "b": rng.normal(size=(2, length, GROUPS, CHANNELS)),
        "c": rng.normal(size=(2, length, GROUPS, CHANNELS)),
    }


def by_hand(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """2405.21060, equation 1, head by head."""
    u, a, b, c = inputs.values()
    y = np.zeros_like(u)
    for row in range(2):
        for head in range(HEADS):
            group, h = head // (HEADS // GROUPS), np.zeros((CHANNELS, WIDTH))
            for t in range(u.shape[1]):
                h = np.exp(a[row, t, head]) * h + np.outer(b[row, t, group], u[row, t, head])
                y[row, t, head] = c[row, t, group] @ h
    return y


def empty() -> mx.array:
    return mx.zeros((2, GROUPS, CHANNELS, HEADS // GROUPS * WIDTH))


def arrays(inputs: dict[str, np.ndarray], part: slice = slice(None)) -> list[mx.array]:
    return [mx.array(a[:, part].astype(np.float32)) for a in inputs.values()]


@pytest.mark.parametrize("length", [1, 5, 8, 16, 21, 64])
def test_chunks_are_the_recurrence(length: int) -> None:
    inputs = draw(length)
    y, _ = ssd(*arrays(inputs), empty(), chunk=8)
    np.testing.assert_allclose(np.array(y), by_hand(inputs), atol=5e-5)


def test_the_size_of_the_chunk_changes_nothing() -> None:
    inputs = arrays(draw(50))
    y, state = ssd(*inputs, empty(), chunk=50)
    for chunk in (1, 3, 16, 64):
        other, after = ssd(*inputs, empty(), chunk=chunk)
        assert mx.allclose(y, other, atol=1e-4) and mx.allclose(state, after, atol=1e-4)


@pytest.mark.parametrize("parts", [[1] * 20, [7, 13], [8, 8, 4], [3, 1, 16]], ids=str)
def test_chunks_and_steps_continue_from_a_state(parts: list[int]) -> None:
    inputs, state, start, outs = draw(20), empty(), 0, []
    for n in parts:
        run = ssd_step if n == 1 else lambda *a: ssd(*a, chunk=8)
        y, state = run(*arrays(inputs, slice(start, start + n)), state)
        outs.append(y)
        start += n
    whole, after = ssd(*arrays(inputs), empty(), chunk=8)
    np.testing.assert_allclose(np.array(mx.concatenate(outs, axis=1)), np.array(whole), atol=5e-5)
    np.testing.assert_allclose(np.array(state), np.array(after), atol=5e-5)


def test_decays_near_the_end_of_a_chunk_are_exact_after_strong_ones() -> None:
    inputs = draw(256, strength=40.0)  # prefix sums of 10,000: their differences alone would be off by 1e-3
    inputs["log_decay"][:, -8:] *= 1e-3
    y, _ = ssd(*arrays(inputs), empty(), chunk=256)
    np.testing.assert_allclose(np.array(y), by_hand(inputs), atol=1e-4)


def test_gradients_are_those_of_the_recurrence() -> None:
    inputs = arrays(draw(11))

    def loss(form: str, *inputs: mx.array) -> mx.array:
        state, outs = empty(), []
        if form == "chunks":
            return mx.square(ssd(*inputs, state, chunk=4)[0]).sum()
        for t in range(11):
            y, state = ssd_step(*(a[:, t : t + 1] for a in inputs), state)
            outs.append(y)
        return mx.square(mx.concatenate(outs, axis=1)).sum()

    gradients = [
        mx.grad(lambda *a, form=form: loss(form, *a), argnums=(0, 1, 2, 3))(*inputs) for form in ("chunks", "")
    ]
    for chunked, stepped in zip(*gradients, strict=True):
        assert mx.allclose(chunked, stepped, rtol=1e-4, atol=1e-3)


def test_the_cost_does_not_grow_with_the_length() -> None:
    assert ssd_flops(4, 16, 1, 8, 32, 64) == ssd_flops(4, 16, 1, 8, 32, 6400)
    assert ssd_flops(4, 16, 1, 8, 32, 33) == ssd_flops(4, 16, 1, 8, 32, 64) * 64 // 33  # as many chunks are computed
    assert ssd_flops(4, 16, 1, 8, 32, 32) < ssd_flops(4, 16, 1, 8, 32, 64)  # no state is handed on

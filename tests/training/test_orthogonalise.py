"""Orthogonalisation against the singular value decomposition, its polynomials against the method that finds them."""

import math

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.training.orthogonalise import POLAR_EXPRESS, Polynomial, orthogonalise, polynomials


def best_odd_quintic(low: float, high: float) -> Polynomial:
    """a x + b x^3 + c x^5 nearest to 1 on all of [low, high], by Remez's exchange (2505.16932, section 3)."""
    if low / high > 1 - 5e-6:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner = np.array([3 * low + high, low + 3 * high]) / 4
    error, before = math.inf, -math.inf
    while abs(error - before) > 1e-15:
        points = np.array([low, *inner, high])
        matrix = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        before, (a, b, c, error) = error, np.linalg.solve(matrix, np.ones(4))
        inner = np.sqrt((-3 * b + np.array([-1, 1]) * math.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
    return a, b, c


def test_the_polynomials_are_the_best_ones_one_after_another() -> None:
    low, high = 1e-3, 1.0
    for given in POLAR_EXPRESS[:-1]:
        a, b, c = best_odd_quintic(max(low, 0.02407327424182761 * high), high)
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        scale = 2 / sum(ends)  # so that both ends are equally far from 1
        assert given == pytest.approx((a * scale, b * scale, c * scale), rel=1e-8)
        low = ends[0] * scale
        high = 2 - low
    assert POLAR_EXPRESS[-1] == pytest.approx(best_odd_quintic(1 - 1e-9, 1.0), rel=1e-8)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (3, 16, 16)])
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrix = mx.random.normal(shape)
    u, _, vt = np.linalg.svd(np.array(matrix), full_matrices=False)
    for iteration, steps, low, high, near in (
        ("newton_schulz", 10, 0.6, 1.3, 0.4),
        ("polar_express", 5, 0.85, 1.15, 0.2),
        ("polar_express", 12, 0.9999, 1.0001, 1e-3),
    ):
        found = np.array(orthogonalise(matrix, steps, iteration))
        values = np.linalg.svd(found, compute_uv=False)
        assert low < values.min() and values.max() < high, iteration
        np.testing.assert_allclose(found, u @ vt, atol=near)


def test_polar_express_comes_closer_than_newton_schulz_in_as_many_steps() -> None:
    """On singular values spread evenly over two orders of magnitude."""
    matrix = mx.array(np.diag(np.geomspace(1e-2, 1, 16).astype(np.float32)))
    plain, polar = (
        np.abs(np.diag(np.array(orthogonalise(matrix, 5, name))) - 1) for name in ("newton_schulz", "polar_express")
    )
    assert polar.mean() < 0.7 * plain.mean() and polar.max() < 0.25 < plain.max()


def test_stacks_are_orthogonalised_one_by_one() -> None:
    stack = mx.random.normal((3, 6, 4))
    together = orthogonalise(stack)
    for i in range(3):
        assert mx.allclose(together[i], orthogonalise(stack[i]), atol=1e-6)


def test_more_steps_than_polynomials_repeat_the_last() -> None:
    assert len(polynomials("polar_express", 3)) == 3
    assert polynomials("polar_express", 10)[7:] == [POLAR_EXPRESS[-1]] * 3
    for name in ("newton_schulz", "polar_express"):
        assert mx.array_equal(orthogonalise(mx.zeros((4, 4)), 5, name), mx.zeros((4, 4)))

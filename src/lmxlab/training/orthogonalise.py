"""The nearest matrix with singular values of 1, by polynomials: what Muon makes of a momentum."""

from collections.abc import Sequence

import mlx.core as mx

Polynomial = tuple[float, float, float]  # a x + b x^3 + c x^5, applied to every singular value

# One polynomial for every step (Jordan 2024): steep at 0, so that it does not converge but to 0.7 ... 1.2.
NEWTON_SCHULZ: Polynomial = (3.4445, -4.7750, 2.0315)

# The best polynomial for where the singular values still are at each step, from 0.001 to 1 at the first (2505.16932,
# section 4; tests/training/test_orthogonalise.py computes them anew). From the eighth on they stay the same.
POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01  # rounding may carry a singular value beyond 1, where the polynomials would blow it up


def orthogonalise(matrix: mx.array, steps: int = 5, iteration: str = "newton_schulz") -> mx.array:
    """Nearly U V^T of the singular value decomposition U S V^T.

    After 5 steps of "newton_schulz" singular values are between about 0.7 and 1.2, very small ones less;
    "polar_express" brings those above 0.002 to within 0.15 of 1, and converges with more steps.

    matrix (..., rows, columns), any float type; the result has its shape and type.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = mx.swapaxes(matrix, -1, -2) if tall else matrix
    safety = SAFETY if iteration == "polar_express" else 1.0
    x = x / (safety * mx.sqrt(mx.sum(mx.square(x), axis=(-2, -1), keepdims=True)) + 1e-7)
    for a, b, c in polynomials(iteration, steps):
        gram = x @ mx.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return mx.swapaxes(x, -1, -2) if tall else x


def polynomials(iteration: str, steps: int) -> Sequence[Polynomial]:
    """The polynomial of each step."""
    if iteration == "newton_schulz":
        return [NEWTON_SCHULZ] * steps
    *before, last = POLAR_EXPRESS
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in before]
    return [*safe[:steps], *[last] * (steps - len(before))]

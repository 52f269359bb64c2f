"""How far a student's next-token distribution is from its teacher's, in nats per position."""

import mlx.core as mx

from lmxlab.core import kernels
from lmxlab.errors import UnknownNameError, UserError

KINDS = ("forward", "reverse", "jsd")


def check_divergence(kind: str, temperature: float, beta: float) -> None:
    """Raises UserError for a kind that there is not, and numbers that it cannot have."""
    if kind not in KINDS:
        raise UnknownNameError("divergence", kind, KINDS)
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature is {temperature}: it must be above 0")
    if not 0 < beta < 1:
        raise UserError(f"beta is {beta}: it must lie between 0 and 1; its ends are the kinds forward and reverse")


def divergence(
    student: mx.array, teacher: mx.array, kind: str = "forward", temperature: float = 1.0, beta: float = 0.5
) -> mx.array:
    """Between q = softmax(student / T) and p = softmax(teacher / T), logits (N, V) -> (N,) float32.

    | kind | | |
    |---|---|---|
    | forward | KL(p, q) = sum p log(p / q) | q must cover all that p does (1503.02531) |
    | reverse | KL(q, p) | q may leave out what p does, and is drawn to its peaks (2306.08543) |
    | jsd | beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q | between both (2306.13649, equation 1) |

    The teacher gets no gradient.
    """
    return kernels.divergence(student / temperature, teacher / temperature, kind, beta)


def coarse_divergence(student: mx.array, teacher: mx.array, kind: str = "forward", beta: float = 0.5) -> mx.array:
    """As `divergence`, of log-probabilities over few outcomes, (..., K) -> (...).

    An outcome of probability 0 (log-probability -inf) adds nothing to a sum that it weighs.
    """
    if kind == "forward":
        return _kl(teacher, student)
    if kind == "reverse":
        return _kl(student, teacher)
    mixture = mx.logaddexp(student + mx.log1p(mx.array(-beta)), teacher + mx.log(mx.array(beta)))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: mx.array, q: mx.array) -> mx.array:
    """sum exp(p) (p - q) over the last axis, of log-probabilities."""
    possible = p > -mx.inf
    terms = mx.exp(p) * (mx.where(possible, p, 0.0) - mx.where(possible, q, 0.0))
    return terms.sum(axis=-1)

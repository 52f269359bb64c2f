"""exp and the activations: on a CPU only arithmetic, abs and sign, which the compiler vectorises.

exp(-a) is 1 / p(a / 64)^64 with a polynomial p: relative error under 2e-5, exp(-inf) exactly 0, NaN kept.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.kernels.passes import flat, kernel, with_vjp
from lmxlab.core.kernels.switch import is_fast

# exp(t) = 1 + c1 t + ... with the least relative error: on [0, 1.37], so that exp(64 t) reaches e^87 (the range of
# float32), and on [0, 0.27], enough where only what is far from 0 or 1 matters.
_EXP = (1.0, 1.000000682, 0.4999858958, 0.1667628167, 0.0413629702, 8.834327620e-3, 9.489423419e-4, 3.862022912e-4)
_EXP_17 = (1.0, 0.9999967880, 0.5001181694, 0.1653330069, 0.0474971679)


def exp_neg(a: mx.array) -> mx.array:
    """exp(-a) for a >= 0."""
    return flat(_exp_neg, a) if is_fast(a) else mx.exp(-a)


def gelu(x: mx.array) -> mx.array:
    """x Phi(x), Phi the standard normal distribution (1606.08415)."""
    return _gelu(x) if is_fast(x) else nn.gelu(x)


def gelu_tanh(x: mx.array) -> mx.array:
    """x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), GPT-2's form of GELU."""
    return _gelu_tanh(x) if is_fast(x) else nn.gelu_approx(x)


def silu(x: mx.array) -> mx.array:
    """x sigmoid(x)."""
    return _silu(x) if is_fast(x) else nn.silu(x)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, both of one shape."""
    return _swiglu(gate, up) if is_fast(gate, up) else nn.silu(gate) * up


def _power(a: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """exp(a) for a >= 0; grows without bound beyond the range of the polynomial."""
    terms = [c / 64.0**i for i, c in enumerate(coefficients)]
    p = terms[-1] * a + terms[-2]
    for term in reversed(terms[:-2]):
        p = p * a + term
    for _ in range(6):
        p = p * p
    return p


@kernel
def _exp_neg(a: mx.array) -> mx.array:
    return 1 / _power(a, _EXP)


def _tanh_half(a: mx.array) -> mx.array:
    """tanh(a / 2) for a >= 0."""
    return 1 - 2 / (1 + _power(a, _EXP_17))


def _elementwise(forward: Callable[..., mx.array], backward: Callable[..., Any]) -> Callable[..., mx.array]:
    """An elementwise operation of arrays of one shape; backward(*inputs, cotangent) gives a cotangent per input."""
    forward_kernel, backward_kernel = kernel(forward), kernel(backward)

    def apply(*inputs: mx.array) -> mx.array:
        out: mx.array = flat(forward_kernel, *inputs)
        return out

    def pull_back(inputs: Any, cotangent: mx.array, _output: mx.array) -> Any:
        inputs = (inputs,) if isinstance(inputs, mx.array) else inputs
        return flat(backward_kernel, *inputs, cotangent)

    return with_vjp(apply, pull_back)


def _normal(x: mx.array) -> tuple[mx.array, mx.array]:
    """erf(|x| / sqrt 2) by Abramowitz and Stegun 7.1.26 (error under 1.5e-7), and exp(-x^2 / 2)."""
    density = 1 / _power(0.5 * (x * x), _EXP)
    t = 1 / (1 + (0.3275911 / math.sqrt(2)) * mx.abs(x))
    p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return 1 - p * density, density


def _half_sum(x: mx.array, odd: mx.array) -> mx.array:
    """x (1 + sign(x) odd) / 2, without a sum that overflows before x does."""
    half = 0.5 * x
    return half + mx.abs(half) * odd


def _gelu_forward(x: mx.array) -> mx.array:
    erf, _ = _normal(x)
    return _half_sum(x, erf)


def _gelu_backward(x: mx.array, cotangent: mx.array) -> mx.array:
    erf, density = _normal(x)
    return cotangent * (0.5 + 0.5 * mx.sign(x) * erf + x * density * (1 / math.sqrt(2 * math.pi)))


_TANH_GELU = 2 * math.sqrt(2 / math.pi)


def _gelu_tanh_forward(x: mx.array) -> mx.array:
    return _half_sum(x, _tanh_half(mx.abs(x) * (_TANH_GELU + (_TANH_GELU * 0.044715) * (x * x))))


def _gelu_tanh_backward(x: mx.array, cotangent: mx.array) -> mx.array:
    a, square = mx.abs(x), x * x
    t = _tanh_half(a * (_TANH_GELU + (_TANH_GELU * 0.044715) * square))
    slope = x * (1 - t * t) * (_TANH_GELU / 4 + (_TANH_GELU / 4 * 3 * 0.044715) * square)
    return cotangent * (0.5 + 0.5 * mx.sign(x) * t + slope)


def _silu_forward(x: mx.array) -> mx.array:
    return _half_sum(x, _tanh_half(mx.abs(x)))


def _silu_slope(x: mx.array) -> mx.array:
    t = _tanh_half(mx.abs(x))
    return 0.5 + 0.5 * mx.sign(x) * t + 0.25 * x * (1 - t * t)


_gelu = _elementwise(_gelu_forward, _gelu_backward)
_gelu_tanh = _elementwise(_gelu_tanh_forward, _gelu_tanh_backward)
_silu = _elementwise(_silu_forward, lambda x, cotangent: cotangent * _silu_slope(x))
_swiglu = _elementwise(
    lambda gate, up: _silu_forward(gate) * up,
    lambda gate, up, cotangent: (cotangent * up * _silu_slope(gate), cotangent * _silu_forward(gate)),
)

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
_TANH_GELU = 2 * math.sqrt(2 / math.pi)
_SQRT_2PI = math.sqrt(2 * math.pi)


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


def _root(a: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """exp(a / 16) for a >= 0; grows without bound beyond the polynomial's range. Pairs of terms keep it shallow."""
    c = [value / 64.0**i for i, value in enumerate(coefficients)]
    square = a * a
    low = (c[0] + c[1] * a) + square * (c[2] + c[3] * a)
    fourth = square * square
    high = fourth * c[4] if len(c) == 5 else fourth * ((c[4] + c[5] * a) + square * (c[6] + c[7] * a))
    p = low + high
    p = p * p
    return p * p


def _power(root: mx.array) -> mx.array:
    """root^16."""
    for _ in range(4):
        root = root * root
    return root


@kernel
def _exp_root(a: mx.array) -> mx.array:
    return _root(a, _EXP)


@kernel
def _reciprocal_power(root: mx.array) -> mx.array:
    return 1 / _power(root)


def _exp_neg(a: mx.array) -> mx.array:
    return _reciprocal_power(_exp_root(a))


def _elementwise(forward: Callable[..., mx.array], backward: Callable[..., Any]) -> Callable[..., mx.array]:
    """An elementwise operation of arrays of one shape; backward(*inputs, cotangent) gives a cotangent per input."""

    def apply(*inputs: mx.array) -> mx.array:
        out: mx.array = flat(forward, *inputs)
        return out

    def pull_back(inputs: Any, cotangent: mx.array, _output: mx.array) -> Any:
        inputs = (inputs,) if isinstance(inputs, mx.array) else inputs
        return flat(backward, *inputs, cotangent)

    return with_vjp(apply, pull_back)


# All three activations are x times a distribution function F, and with the tail s = F(-|x|) they are
# max(x, 0) - |x| s, and their slopes 1/2 + sign(x) (1/2 - s + |x| F'(x)). Beyond _EDGE each tail is 0 in float32;
# |x| stops there, because infinity times 0 is no number.
_EDGE = 200.0


def _magnitude(x: mx.array) -> mx.array:
    return mx.minimum(mx.abs(x), _EDGE)


def _value(x: mx.array, tail: mx.array) -> mx.array:
    return mx.maximum(x, 0.0) - _magnitude(x) * tail


def _slope(x: mx.array, tail: mx.array, rise: mx.array) -> mx.array:
    """From the tail and |x| F'(x)."""
    return 0.5 + mx.sign(x) * ((0.5 - tail) + rise)


def _logistic_tail(root: mx.array) -> mx.array:
    """1 / (1 + exp(a)) from exp(a / 16)."""
    return 1 / (1 + _power(root))


_logistic_tail_kernel = kernel(_logistic_tail)


@kernel
def _value_of_root(x: mx.array, root: mx.array) -> mx.array:
    return _value(x, _logistic_tail(root))


# --- GELU by erf: 1 - q exp(-x^2 / 2) is erf(|x| / sqrt 2), Abramowitz and Stegun 7.1.26 (error under 1.5e-7)


@kernel
def _density_root(x: mx.array) -> mx.array:
    return _root(0.5 * (x * x), _EXP)


@kernel
def _erf_factor(x: mx.array) -> mx.array:
    t = 1 / (1 + (0.3275911 / math.sqrt(2)) * mx.abs(x))
    square = t * t
    high = (1.421413741 - 1.453152027 * t) + square * 1.061405429
    return t * ((0.254829592 - 0.284496736 * t) + square * high)


@kernel
def _gelu_of(x: mx.array, q: mx.array, density: mx.array) -> mx.array:
    return _value(x, 0.5 * (q * density))


@kernel
def _gelu_slope(x: mx.array, q: mx.array, density: mx.array, cotangent: mx.array) -> mx.array:
    return cotangent * _slope(x, 0.5 * (q * density), (1 / _SQRT_2PI) * (_magnitude(x) * density))


def _gelu_forward(x: mx.array) -> mx.array:
    return _gelu_of(x, _erf_factor(x), _reciprocal_power(_density_root(x)))


def _gelu_backward(x: mx.array, cotangent: mx.array) -> mx.array:
    return _gelu_slope(x, _erf_factor(x), _reciprocal_power(_density_root(x)), cotangent)


# --- GELU by tanh


@kernel
def _gelu_tanh_root(x: mx.array) -> mx.array:
    return _root(mx.abs(x) * (_TANH_GELU + (_TANH_GELU * 0.044715) * (x * x)), _EXP_17)


@kernel
def _gelu_tanh_slope(x: mx.array, tail: mx.array, cotangent: mx.array) -> mx.array:
    size = _magnitude(x)
    rate = _TANH_GELU + (_TANH_GELU * 3 * 0.044715) * (size * size)
    return cotangent * _slope(x, tail, (size * rate) * (tail * (1 - tail)))


def _gelu_tanh_forward(x: mx.array) -> mx.array:
    return _value_of_root(x, _gelu_tanh_root(x))


def _gelu_tanh_backward(x: mx.array, cotangent: mx.array) -> mx.array:
    return _gelu_tanh_slope(x, _logistic_tail_kernel(_gelu_tanh_root(x)), cotangent)


# --- SiLU, alone and as a gate


@kernel
def _silu_root(x: mx.array) -> mx.array:
    return _root(mx.abs(x), _EXP_17)


def _silu_slope_of(x: mx.array, tail: mx.array) -> mx.array:
    return _slope(x, tail, _magnitude(x) * (tail * (1 - tail)))


@kernel
def _silu_slope(x: mx.array, tail: mx.array, cotangent: mx.array) -> mx.array:
    return cotangent * _silu_slope_of(x, tail)


@kernel
def _gated(gate: mx.array, root: mx.array, up: mx.array) -> mx.array:
    return _value(gate, _logistic_tail(root)) * up


@kernel
def _gated_slopes(gate: mx.array, tail: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    return cotangent * up * _silu_slope_of(gate, tail), cotangent * _value(gate, tail)


def _silu_forward(x: mx.array) -> mx.array:
    return _value_of_root(x, _silu_root(x))


def _silu_backward(x: mx.array, cotangent: mx.array) -> mx.array:
    return _silu_slope(x, _logistic_tail_kernel(_silu_root(x)), cotangent)


def _swiglu_forward(gate: mx.array, up: mx.array) -> mx.array:
    return _gated(gate, _silu_root(gate), up)


def _swiglu_backward(gate: mx.array, up: mx.array, cotangent: mx.array) -> Any:
    return _gated_slopes(gate, _logistic_tail_kernel(_silu_root(gate)), up, cotangent)


_gelu = _elementwise(_gelu_forward, _gelu_backward)
_gelu_tanh = _elementwise(_gelu_tanh_forward, _gelu_tanh_backward)
_silu = _elementwise(_silu_forward, _silu_backward)
_swiglu = _elementwise(_swiglu_forward, _swiglu_backward)

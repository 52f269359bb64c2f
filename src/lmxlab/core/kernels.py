"""Operations whose fastest form depends on the device (placeholder: the plain MLX forms)."""

import mlx.core as mx
import mlx.nn as nn


def softmax(x: mx.array) -> mx.array:
    return mx.softmax(x, axis=-1, precise=True)


def gelu(x: mx.array) -> mx.array:
    return nn.gelu(x)


def gelu_tanh(x: mx.array) -> mx.array:
    return nn.gelu_approx(x)


def silu(x: mx.array) -> mx.array:
    return nn.silu(x)


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, weight, eps)


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array | None, eps: float) -> mx.array:
    return mx.fast.layer_norm(x, weight, bias, eps)


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None = None) -> mx.array:
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D); mask None, "causal", boolean or additive."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Nats per token: logits (..., V), targets (...) -> (...)."""
    return nn.losses.cross_entropy(logits, targets)


def linear_cross_entropy(hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
    """Nats per token of logits = hidden @ weight.T: hidden (..., D), weight (V, D), targets (...) -> (...)."""
    return nn.losses.cross_entropy(hidden @ weight.T, targets)

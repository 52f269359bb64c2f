import dataclasses
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.config import BlockConfig
from lmxlab.core.ffn import GatedFFN, GatedReluSquaredFFN, NoneFFN, ReluSquaredFFN, StandardFFN
from lmxlab.core.norm import LayerNorm, RMSNorm, layer_norm, rms_norm

CONFIG = BlockConfig(d_model=8, n_heads=2, d_ff=12)


def affine(linear: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ np.array(linear.weight, dtype=np.float64).T + np.array(linear.bias, dtype=np.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def relu2(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) ** 2


@pytest.mark.parametrize(
    ("kind", "config", "activation"),
    [
        (StandardFFN, CONFIG, gelu),
        (StandardFFN, dataclasses.replace(CONFIG, activation="gelu_tanh"), gelu_tanh),
        (ReluSquaredFFN, CONFIG, relu2),
        (GatedFFN, CONFIG, silu),
        (GatedReluSquaredFFN, CONFIG, relu2),
    ],
)
def test_an_ffn_is_its_formula(kind: type, config: BlockConfig, activation: object) -> None:
    ffn, x = kind(config), 3 * mx.random.normal((2, 5, 8))
    values = np.array(x, dtype=np.float64)
    if "gate" in ffn:
        hidden = activation(affine(ffn.gate, values)) * affine(ffn.up, values)  # type: ignore[operator]
    else:
        hidden = activation(affine(ffn.up, values))  # type: ignore[operator]
    np.testing.assert_allclose(np.array(ffn(x)), affine(ffn.down, hidden), atol=2e-5)


def test_an_ffn_without_bias_has_none() -> None:
    for kind in (StandardFFN, ReluSquaredFFN, GatedFFN, GatedReluSquaredFFN):
        linears = kind(dataclasses.replace(CONFIG, bias=False)).leaf_modules().values()
        assert all("bias" not in linear for linear in linears)


def test_none_is_the_identity() -> None:
    x = mx.random.normal((1, 2, 8))
    assert NoneFFN(CONFIG)(x) is x


def test_norms_are_their_formulas() -> None:
    x = 2 + 3 * mx.random.normal((2, 5, 8))
    values = np.array(x, dtype=np.float64)
    config = dataclasses.replace(CONFIG, norm_eps=0.1)
    rms, layer = rms_norm(config), layer_norm(config)
    rms.weight, layer.weight, layer.bias = (mx.random.normal((8,)) for _ in range(3))
    expected = values / np.sqrt((values**2).mean(-1, keepdims=True) + 0.1) * np.array(rms.weight)
    np.testing.assert_allclose(np.array(rms(x)), expected, atol=1e-5)
    centred = values - values.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * np.array(layer.weight)
    np.testing.assert_allclose(np.array(layer(x)), expected + np.array(layer.bias), atol=1e-5)


def test_norms_are_those_of_mlx_and_keep_the_dtype() -> None:
    assert isinstance(RMSNorm(CONFIG), nn.RMSNorm) and isinstance(LayerNorm(CONFIG), nn.LayerNorm)
    for norm in (RMSNorm(CONFIG), LayerNorm(CONFIG)):
        norm.set_dtype(mx.bfloat16)
        assert norm(mx.ones((1, 1, 8), mx.bfloat16)).dtype == mx.bfloat16
    assert "bias" not in LayerNorm(dataclasses.replace(CONFIG, bias=False))


@pytest.mark.parametrize("kind", [StandardFFN, ReluSquaredFFN, GatedFFN, GatedReluSquaredFFN])
def test_activations_computed_again_give_the_same_gradients(kind: type) -> None:
    ffn, x = kind(CONFIG), mx.random.normal((5, 8))

    def gradients() -> dict[str, mx.array]:
        own = ffn.parameters()
        found = mx.grad(lambda parameters: ffn.update(parameters)(x).square().sum())(own)
        ffn.update(own)
        return dict(tree_flatten(found))

    again = gradients()
    ffn.eval()
    for name, kept in gradients().items():
        np.testing.assert_allclose(np.array(again[name]), np.array(kept), rtol=1e-5, atol=1e-6)
        assert np.abs(kept).max() > 0

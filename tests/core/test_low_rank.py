"""A layer with an adapter: the formula, its types, and what is trained."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.linear import Linear
from lmxlab.core.low_rank import LoRALinear, LoRAQuantizedLinear, LowRank
from lmxlab.core.quantize import float_weight

X = mx.random.normal((5, 64), key=mx.random.key(1))


def drawn(layer: LowRank) -> LowRank:
    """The layer with an adapter that does something."""
    layer.lora_B = 0.1 * mx.random.normal(layer.lora_B.shape)
    if "lora_magnitude" in layer:
        layer.lora_magnitude = mx.random.uniform(0.5, 2, layer.lora_magnitude.shape)
    return layer


def adapted(quantised: bool, dtype: mx.Dtype = mx.float32, **options: bool | float) -> LowRank:
    linear = Linear(64, 48, bias=True)
    linear.bias = mx.random.normal((48,))
    linear.set_dtype(dtype)
    if quantised:
        return LoRAQuantizedLinear.from_quantized(nn.QuantizedLinear.from_linear(linear, 32, 8), 4, 2.0, **options)
    return LoRALinear.from_linear(linear, 4, 2.0, **options)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_the_output_is_that_of_the_formula(dora: bool, quantised: bool) -> None:
    layer = adapted(quantised, dora=dora)
    w = np.array(float_weight(layer, mx.float32) if quantised else layer.weight, dtype=np.float64)
    x, bias = np.array(X, dtype=np.float64), np.array(layer.bias)
    np.testing.assert_allclose(np.array(layer(X)), x @ w.T + bias, atol=1e-5)  # new: it changes nothing
    layer = drawn(layer)
    w = w + 0.5 * (np.array(layer.lora_A) @ np.array(layer.lora_B)).T
    if dora:
        w *= (np.array(layer.lora_magnitude) / np.linalg.norm(w, axis=1))[:, None]
    np.testing.assert_allclose(np.array(layer(X)), x @ w.T + bias, atol=2e-5)
    np.testing.assert_allclose(np.array(layer.merged_weight()), w, atol=1e-6)
    plain = layer.to_float(mx.float32) if isinstance(layer, LoRAQuantizedLinear) else layer
    assert isinstance(plain, LoRALinear)
    np.testing.assert_allclose(np.array(plain(X)), x @ w.T + bias, atol=2e-5)
    np.testing.assert_allclose(np.array(plain.to_linear()(X)), x @ w.T + bias, atol=2e-5)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_float32_and_the_output_has_the_type_of_the_model(
    dora: bool, dtype: mx.Dtype, quantised: bool
) -> None:
    layer = drawn(adapted(quantised, dtype, dora=dora))
    assert {array.dtype for _, array in tree_flatten(layer.trainable_parameters())} == {mx.float32}
    x = X.astype(dtype)
    assert layer(x).dtype == dtype
    gradients = nn.value_and_grad(layer, lambda x: layer(x).astype(mx.float32).square().sum())(x)[1]
    assert {array.dtype for _, array in tree_flatten(gradients)} == {mx.float32}


@pytest.mark.parametrize("quantised", [False, True])
def test_only_the_adapter_is_trained(quantised: bool) -> None:
    assert sorted(adapted(quantised).trainable_parameters()) == ["lora_A", "lora_B"]
    assert sorted(adapted(quantised, dora=True).trainable_parameters()) == ["lora_A", "lora_B", "lora_magnitude"]
    layer = LoRALinear(6, 5, rank=2, alpha=3.0, bias=True)
    assert (layer.lora_A.shape, layer.lora_B.shape, layer.weight.shape) == ((6, 2), (2, 5), (5, 6))
    assert layer.scaling == 1.5 and layer.rank == 2 and "bias" in layer
    assert "bias" not in LoRALinear(6, 5) and sorted(layer.trainable_parameters()) == ["lora_A", "lora_B"]
    packed = LoRAQuantizedLinear(64, 5, bias=True, group_size=32, bits=8)
    assert packed(X).shape == (5, 5) and sorted(packed.trainable_parameters()) == ["lora_A", "lora_B"]


def test_rank_stabilised_scaling_goes_by_the_root_of_the_rank() -> None:
    assert LoRALinear(8, 8, rank=4, alpha=6.0, rslora=True).scaling == 3.0


def test_dropout_hides_the_input_from_the_update_alone_and_only_while_training() -> None:
    layer = drawn(adapted(False, dropout=0.5))
    base = X @ layer.weight.T + layer.bias
    update = layer.scaling * (X @ layer.lora_A) @ layer.lora_B
    np.testing.assert_allclose(np.array(layer.eval()(X)), np.array(base + update), atol=1e-5)
    layer.train()
    mean = sum(layer(X) - base for _ in range(3000)) / 3000
    assert not mx.allclose(layer(X), layer(X))
    np.testing.assert_allclose(np.array(mean), np.array(update), atol=5 * float(mx.abs(update).max()) / 55)


def test_an_adapter_survives_quantising_and_dequantising_of_its_weight() -> None:
    layer = drawn(adapted(False, dora=True, dropout=0.1)).eval()
    packed = layer.to_quantized(32, 8, "affine")
    assert (packed.rank, packed.scaling, packed.dropout, packed.training) == (4, 0.5, 0.1, False)
    np.testing.assert_allclose(np.array(packed(X)), np.array(layer(X)), atol=0.05)
    again = packed.to_float(mx.float32)
    np.testing.assert_allclose(np.array(again(X)), np.array(packed(X)), atol=2e-5)
    assert again.lora_A is layer.lora_A and sorted(again.trainable_parameters()) == sorted(layer.trainable_parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be an integer above 0"),
        ({"alpha": float("nan")}, "alpha is nan; it must be a number other than 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRALinear(4, 4, **given)
    with pytest.raises(TypeError, match="options are .*, got .'dorra'"):
        LoRALinear(4, 4, dorra=True)

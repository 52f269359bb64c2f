"""Adapters over quantised weights, which stay as they are."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.lora import apply_lora
from lmxlab.core.low_rank import LoRALinear, LoRAQuantizedLinear
from lmxlab.core.qlora import apply_qlora
from lmxlab.core.quantize import dequantize_model, quantize_model
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config, llama_tiny

X = mx.array([[1, 2, 3, 90], [7, 7, 250, 0]])


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_gradients_are_those_of_the_same_adapter_over_the_dequantised_weights(mode: str) -> None:
    model = LanguageModel(llama_config(256, 64, 4, 2, 2, 128, 64, tie_embeddings=True))
    quantize_model(model, mode=mode)
    before = model(X)[0]
    apply_qlora(model, 4, 8.0, ["attention", "ffn"], dora=True)
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(before), atol=1e-5)
    for _, layer in model.named_modules():
        if isinstance(layer, LoRAQuantizedLinear):
            layer.lora_B = 0.1 * mx.random.normal(layer.lora_B.shape)

    def gradients() -> dict[str, mx.array]:
        loss, tree = nn.value_and_grad(model, lambda x: model.nats(x, x).mean())(X)
        return {"loss": loss, **dict(tree_flatten(tree))}

    packed = gradients()
    dequantize_model(model)
    whole = gradients()
    assert packed.keys() == whole.keys() and len(packed) == 1 + 2 * 7 * 3
    for name, gradient in packed.items():
        np.testing.assert_allclose(np.array(gradient), np.array(whole[name]), atol=1e-5, err_msg=name)


def test_layers_that_were_left_whole_get_an_adapter_too() -> None:
    model = LanguageModel(llama_config(256, 64, 4, 2, 2, 96, 64))
    assert sorted(quantize_model(model, skip_narrow=True)) == ["blocks.0.ffn.down", "blocks.1.ffn.down"]
    apply_qlora(model, 4, targets=["ffn"])
    assert isinstance(model.blocks[0].ffn.up, LoRAQuantizedLinear)
    assert isinstance(model.blocks[0].ffn.down, LoRALinear)
    assert {name.rpartition(".")[2] for name, _ in tree_flatten(model.trainable_parameters())} == {"lora_A", "lora_B"}


def test_quantised_weights_take_a_fraction_of_the_memory() -> None:
    model = LanguageModel(llama_tiny())
    whole = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    apply_lora(model, 2)
    quantize_model(model, 4)
    adapters = sum(array.nbytes for _, array in tree_flatten(model.trainable_parameters()) if array.ndim == 2)
    packed = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert packed - adapters < 0.17 * whole  # 4 bits, and two float32 numbers for 64 weights: 5 / 32

"""Every mode of MLX runs, tied or not, and going back gives the weights that the quantised ones stand for."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.quantize import check_quantization, dequantize_model, quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_config, llama_tiny

AFFINE = [("affine", bits, size) for bits, size in ((1, 64), (2, 32), (3, 64), (4, 128), (5, 32), (6, 64), (8, 128))]
MODES = [*AFFINE, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
# Largest error of a weight, in parts of the largest one; in the affine mode it is a step of the widest group.
WORST = {"mxfp4": 0.26, "mxfp8": 0.07, "nvfp4": 0.2}
X = mx.array([[1, 2, 3, 90], [7, 7, 250, 0]])


def model_of(tied: bool = False, dtype: mx.Dtype = mx.float32) -> LanguageModel:
    model = LanguageModel(llama_config(256, 128, 4, 2, 2, 256, 64, tie_embeddings=tied))
    model.set_dtype(dtype)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("mode", "bits", "group_size"), MODES)
def test_a_quantised_model_runs_and_equals_its_dequantised_self(
    mode: str, bits: int, group_size: int, tied: bool
) -> None:
    model = model_of(tied)
    norm, embedding, count = model.blocks[0].attn_norm, model.embed.weight, model.count_parameters()
    assert quantize_model(model, bits, group_size, mode) == []
    assert isinstance(model.embed, nn.QuantizedEmbedding) and model.embed.mode == mode
    assert isinstance(model.blocks[1].ffn.down, nn.QuantizedLinear) and model.blocks[1].ffn.down.bits == bits
    assert model.blocks[0].attn_norm is norm and model.count_parameters() == count
    logits, nats = model(X)[0], model.nats(X, X)
    assert logits.dtype == mx.float32 and model.embed(X).shape == (2, 4, 128)
    expected = nn.losses.cross_entropy(logits, X, reduction="none")
    np.testing.assert_allclose(np.array(nats), np.array(expected), atol=1e-4)
    tokens = generate(model, X, max_tokens=3, temperature=0.0)
    dequantize_model(model)
    assert type(model.embed) is nn.Embedding and model.embed.weight.dtype == mx.float32
    assert isinstance(model.blocks[1].ffn.down, nn.Linear)
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(logits), atol=1e-5)
    assert generate(model, X, max_tokens=3, temperature=0.0).tolist() == tokens.tolist()
    step = 2 / (2**bits - 1) if mode == "affine" else WORST[mode]
    assert mx.abs(model.embed.weight - embedding).max() <= step * mx.abs(embedding).max() * 1.05


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_the_type_of_the_model_is_kept(mode: str, dtype: mx.Dtype) -> None:
    model = model_of(tied=True, dtype=dtype)
    quantize_model(model, mode=mode)
    hidden, _ = model.hidden_states(X)
    assert hidden.dtype == model(X)[0].dtype == dtype
    dequantize_model(model)
    assert {model.embed.weight.dtype, model.blocks[0].ffn.up.weight.dtype} == {dtype}
    assert model(X)[0].dtype == dtype


def test_biases_and_the_mode_of_the_model_stay() -> None:
    model = LanguageModel(gpt_tiny()).eval()
    up = model.blocks[0].ffn.up
    up.bias = mx.random.normal(up.bias.shape)
    quantize_model(model)
    assert mx.array_equal(model.blocks[0].ffn.up.bias, up.bias)
    assert not any(module.training for module in model.modules())
    dequantize_model(model)
    assert mx.array_equal(model.blocks[0].ffn.up.bias, up.bias)
    assert not any(module.training for module in model.modules())


def test_a_dequantised_model_can_be_trained_as_a_whole() -> None:
    model = model_of()
    names = sorted(dict(tree_flatten(model.trainable_parameters())))
    quantize_model(model)
    dequantize_model(model)
    assert sorted(dict(tree_flatten(model.trainable_parameters()))) == names


def test_the_modes_own_sizes_stand_behind_the_defaults() -> None:
    assert check_quantization(4, 64, "affine") == (4, 64)
    assert check_quantization(4, 64, "nvfp4") == (4, 16)
    assert check_quantization(4, 64, "mxfp8") == (8, 32)


@pytest.mark.parametrize(
    ("bits", "group_size", "mode", "message"),
    [
        (7, 64, "affine", "bits is 7; affine has 1, 2, 3, 4, 5, 6, 8"),
        (4, 16, "affine", "group_size is 16; affine has 32, 64, 128"),
        (8, 32, "mxfp4", "bits is 8; mxfp4 has 4"),
        (8, 64, "mxfp8", "group_size is 64; mxfp8 has 32"),
        (4, 64, "mxfp5", "Unknown quantisation mode 'mxfp5'; did you mean 'mxfp"),
    ],
)
def test_what_a_mode_does_not_have_is_refused(bits: int, group_size: int, mode: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantize_model(model_of(), bits, group_size, mode)


def test_rows_that_do_not_divide_are_refused_or_left_whole_and_told() -> None:
    config = llama_tiny()
    model = LanguageModel(replace(config, block=replace(config.block, d_ff=96)))
    narrow = ["blocks.0.ffn.down", "blocks.1.ffn.down"]
    with pytest.raises(UserError, match="rows of blocks.0.ffn.down, blocks.1.ffn.down are no multiple of 64"):
        quantize_model(model)
    assert type(model.embed) is nn.Embedding  # nothing was changed
    assert sorted(quantize_model(model, skip_narrow=True)) == narrow
    assert "scales" not in model.blocks[0].ffn.down and "scales" in model.blocks[0].ffn.up
    assert model(X)[0].shape == (2, 4, 256)
    quantize_model(model, group_size=32, skip_narrow=True)  # what was left whole can be quantised later
    with pytest.raises(UserError, match="quantised already"):
        quantize_model(model)

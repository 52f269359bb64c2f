"""Adapters and quantisation of stacked experts: each expert is as the single matrix that it stands for."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.adapters import adapters_of
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.experts import ExpertLinear, QuantizedExpertLinear
from lmxlab.core.lora import apply_lora, load_lora_adapters, merge_lora, save_lora_adapters
from lmxlab.core.lora_experts import LoRAExpertLinear
from lmxlab.core.qlora import apply_qlora
from lmxlab.core.quantize import dequantize_model, quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.training import TrainConfig, Trainer

X = mx.array([[1, 2, 3, 40], [7, 7, 50, 0]])


def mixture(ffn: str = "moe") -> LanguageModel:
    mx.random.seed(4)
    block = BlockConfig(
        **{"attention": "gqa", "ffn": ffn, "norm": "rms_norm", "position": "rope", "bias": False},
        **{"d_model": 64, "n_heads": 2, "d_ff": 64, "moe_d_ff": 32, "n_experts": 4, "max_seq_len": 32},
    )
    model = LanguageModel(ModelConfig(block, vocab_size=64, n_layers=2))
    mx.eval(model.parameters())
    return model


def tuned(model: LanguageModel, **options: Any) -> LanguageModel:
    quantised = any("scales" in layer for _, layer in model.named_modules())
    (apply_qlora if quantised else apply_lora)(model, 3, 6.0, ["ffn"], **options)
    for layer in adapters_of(model).values():
        layer.lora_B = 0.3 * mx.random.normal(layer.lora_B.shape)
    return model


def gradients(model: LanguageModel) -> dict[str, mx.array]:
    return dict(tree_flatten(nn.value_and_grad(model, lambda x: model.nats(x, x).mean())(X)[1]))


@pytest.mark.parametrize("quantised", [False, True])
def test_merging_keeps_what_the_mixture_computes(quantised: bool) -> None:
    model = mixture("shared_moe")
    if quantised:
        quantize_model(model, 8, 32)
        assert isinstance(model.blocks[0].ffn.experts.up, QuantizedExpertLinear)
    before = model(X)[0]
    tuned(model)
    up = model.blocks[0].ffn.experts.up
    assert isinstance(up, LoRAExpertLinear) and up.lora_A.shape == (4, 64, 3) and up.lora_B.shape == (4, 3, 32)
    after, packed = model(X)[0], gradients(model)
    assert mx.abs(after - before).max() > 0.01
    dequantize_model(model)
    for name, gradient in gradients(model).items():
        np.testing.assert_allclose(np.array(gradient), np.array(packed[name]), atol=1e-5, err_msg=name)
    merge_lora(model)
    assert type(model.blocks[0].ffn.experts.up) is ExpertLinear and not adapters_of(model)
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(after), atol=2e-5)


def test_every_expert_has_its_own_update() -> None:
    model = tuned(mixture())
    up = model.blocks[0].ffn.experts.up
    for e in range(4):
        expected = up.weight[e] + 2.0 * (up.lora_A[e] @ up.lora_B[e]).T
        np.testing.assert_allclose(np.array(up.merged_weight()[e]), np.array(expected), atol=1e-6)


def test_adapters_of_experts_come_back_from_files(tmp_path: Any) -> None:
    model = tuned(mixture())
    save_lora_adapters(tmp_path, model)
    other = mixture()
    load_lora_adapters(tmp_path, other)
    np.testing.assert_allclose(np.array(other(X)[0]), np.array(model(X)[0]), atol=1e-6)


def test_quantised_experts_equal_their_dequantised_selves_and_keep_adapters() -> None:
    model = mixture()
    quantize_model(model, mode="mxfp8")
    before = model(X)[0]
    dequantize_model(model)
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(before), atol=1e-5)
    tuned(model)
    whole = model(X)[0]
    quantize_model(model, 8, 32)
    assert mx.abs(model(X)[0] - whole).max() < 0.03 * mx.abs(whole).max()
    assert model.blocks[0].ffn.experts.down.scaling == 2.0


@pytest.mark.parametrize("compiled", [True, False])
def test_training_moves_the_adapters_alone_not_even_the_balancing_bias(compiled: bool) -> None:
    model = tuned(mixture("shared_moe"), dropout=0.1)
    before = dict(tree_flatten(model.parameters()))
    config = TrainConfig(learning_rate=1e-2, warmup_steps=1, max_steps=10, compile_step=compiled)
    losses = [step["loss"] for step in Trainer(model, config).train([(X, mx.roll(X, -1, 1))] * 10)]
    assert losses[-1] < losses[0]
    after = dict(tree_flatten(model.parameters()))
    moved = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert moved == {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert {name.rpartition(".")[2] for name in moved} == {"lora_A", "lora_B"}


def test_half_types_are_kept_and_dora_is_refused() -> None:
    model = mixture()
    model.set_dtype(mx.bfloat16)
    tuned(model)
    assert model(X)[0].dtype == mx.bfloat16
    assert {array.dtype for array in gradients(model).values()} == {mx.float32}
    with pytest.raises(UserError, match="stacked experts can have LoRA, but no DoRA"):
        apply_lora(mixture(), dora=True, targets=["ffn"])

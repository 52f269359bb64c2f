"""Which layers a target means, and that none is passed over in silence."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from lmxlab.core.adapters import adapters_of, choose, without_adapters
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.lora import apply_lora
from lmxlab.core.qlora import apply_qlora
from lmxlab.core.quantize import quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_config

LLAMA = llama_config(64, 32, 4, 2, 11, 64, 32)  # 11 layers: "blocks.1" is the beginning of "blocks.10"
ATTENTION = ["attention.k_proj", "attention.o_proj", "attention.q_proj", "attention.v_proj"]
FFN = ["ffn.down", "ffn.gate", "ffn.up"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, [f"blocks.{i}.{name}" for i in range(11) for name in ATTENTION]),
        (["ffn"], [f"blocks.{i}.{name}" for i in range(11) for name in FFN]),
        (["q_proj", "v_proj"], [f"blocks.{i}.attention.{name}" for i in range(11) for name in ("q_proj", "v_proj")]),
        (["blocks.1"], [f"blocks.1.{name}" for name in ATTENTION + FFN]),
        ("blocks.10.ffn.up", ["blocks.10.ffn.up"]),
        (["head"], ["head"]),
        (["all-linear"], [f"blocks.{i}.{name}" for i in range(11) for name in ATTENTION + FFN]),
        (["all-linear", "head"], ["head", *(f"blocks.{i}.{name}" for i in range(11) for name in ATTENTION + FFN)]),
    ],
)
def test_a_target_means_the_layers_that_it_names(targets: list[str] | None, expected: list[str]) -> None:
    model = LanguageModel(LLAMA)
    assert sorted(choose(model, targets)) == sorted(expected)
    apply_lora(model, 2, targets=targets)
    assert sorted(adapters_of(model)) == sorted(expected)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_prj", "Unknown target 'q_prj'; did you mean 'q_proj'"),
        ("embed", "'embed' means no linear layer.*no embedding"),
        ("attn_norm", "'attn_norm' means no linear layer"),
        ("head", "'head' means no linear layer.*tied head"),
    ],
)
def test_a_target_without_a_linear_layer_is_refused(target: str, message: str) -> None:
    model = LanguageModel(gpt_tiny())
    with pytest.raises(UserError, match=message):
        apply_lora(model, targets=["attention", target])
    assert not adapters_of(model) and model.trainable_parameters()["embed"]  # nothing was changed


def test_adapters_are_not_stacked_but_may_come_in_turns() -> None:
    model = LanguageModel(gpt_tiny())
    apply_lora(model, 2)
    with pytest.raises(UserError, match="have an adapter already; merge_lora first"):
        apply_lora(model, 2)
    apply_lora(model, 3, targets=["ffn"])
    trained = model.trainable_parameters()["blocks"][0]
    assert sorted(trained["attention"]["q_proj"]) == sorted(trained["ffn"]["up"]) == ["lora_A", "lora_B"]


def test_quantised_layers_need_qlora_and_qlora_needs_quantised_layers() -> None:
    model = LanguageModel(gpt_tiny())
    with pytest.raises(UserError, match="none of the layers is quantised; call quantize_model first"):
        apply_qlora(model)
    quantize_model(model)
    with pytest.raises(UserError, match="are quantised; use apply_qlora"):
        apply_lora(model)


def test_an_adapter_takes_over_the_mode_of_its_layer() -> None:
    model = LanguageModel(gpt_tiny()).eval()
    apply_lora(model, 2, dropout=0.5)
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.blocks[0].attention.q_proj.draws
    assert isinstance(model.blocks[0].ffn.up, nn.Linear)


@pytest.mark.parametrize("kind", ["lora", "dora", "quantised", "experts"])
def test_without_its_adapters_a_model_computes_what_it_did_before(kind: str) -> None:
    mx.random.seed(0)
    ffn = {"ffn": "moe", "moe_d_ff": 32, "n_experts": 4} if kind == "experts" else {"ffn": "gated", "bias": True}
    sizes = {"d_model": 32, "n_heads": 2, "d_ff": 32, "max_seq_len": 32}
    block = BlockConfig(attention="gqa", norm="rms_norm", position="rope", **sizes, **ffn)
    model = LanguageModel(ModelConfig(block, vocab_size=32, n_layers=1))
    x = mx.array([[1, 2, 3, 4]])
    if kind == "quantised":
        quantize_model(model, group_size=32)
    before = model(x)[0]
    apply = apply_qlora if kind == "quantised" else apply_lora
    apply(model, 2, 4.0, ["attention", "ffn"], dora=kind == "dora")
    model.update(tree_map(lambda a: a + 0.3, model.trainable_parameters()))
    after = model(x)[0]
    with without_adapters(model):
        assert mx.allclose(model(x)[0], before, atol=1e-6)
    assert mx.array_equal(model(x)[0], after) and not mx.allclose(after, before, atol=1e-2)
    with pytest.raises(ZeroDivisionError), without_adapters(model):
        raise ZeroDivisionError
    assert mx.array_equal(model(x)[0], after)

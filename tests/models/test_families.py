import dataclasses

import pytest

import lmxlab.models
from lmxlab.errors import UnknownNameError
from lmxlab.models import gemma, gemma3, gpt, llama, llama4, mistral, mixtral
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES, resolve

from .architectures import tokens


def test_gpt_is_what_the_api_says() -> None:
    config = gpt.gpt_config()
    block = config.block
    assert (block.attention, block.ffn, block.norm, block.position) == ("mha", "standard", "layer_norm", "sinusoidal")
    assert (block.d_model, block.n_heads, block.d_ff, block.max_seq_len) == (768, 12, 3072, 1024)
    assert (config.vocab_size, config.n_layers, config.tie_embeddings) == (50257, 12, True)
    assert block.bias and block.pre_norm and not block.mup
    assert gpt.gpt_small() == config
    mup = gpt.gpt_config(mup_base_width=128)
    assert mup.block.mup and mup.width_mult == 6.0


def test_gpt2_is_what_was_published() -> None:
    config = gpt.gpt2()
    assert (config.block.position, config.block.activation, config.block.max_seq_len) == ("learned", "gelu_tanh", 1024)
    assert (config.block.d_model, config.block.n_heads, config.n_layers, config.block.d_ff) == (768, 12, 12, 3072)
    assert config.embed_scale == 1.0 and config.tie_embeddings


def test_llama_is_what_the_api_says() -> None:
    config = llama.llama_config()
    block = config.block
    assert (block.attention, block.ffn, block.norm, block.position) == ("gqa", "gated", "rms_norm", "rope")
    assert (block.d_model, block.n_heads, block.n_kv_heads, block.d_ff) == (4096, 32, 8, 11008)
    assert (config.vocab_size, config.n_layers, config.tie_embeddings) == (32000, 32, False)
    assert not block.bias and block.max_seq_len == 4096 and config == llama.llama_7b()
    scaling = llama.llama31_8b().block.rope_scaling
    assert scaling is not None and (scaling.kind, scaling.factor, scaling.original_max_seq_len) == ("llama3", 8.0, 8192)


def test_gemma_is_what_was_published_and_the_api_says() -> None:
    config = gemma.gemma_config()
    block = config.block
    assert (block.attention, block.ffn, block.norm, block.position) == ("gqa", "gated", "rms_norm", "rope")
    assert (block.d_model, block.n_heads, block.n_kv_heads, block.d_ff) == (2048, 8, 1, 16384)
    assert (config.vocab_size, config.n_layers, config.tie_embeddings) == (256000, 18, True)
    assert block.norm_plus_one and block.activation == "gelu_tanh" and config.embed_scale == 2048**0.5


def test_windows_are_where_they_were_published() -> None:
    config = gemma3.gemma3_config()
    kinds = [config.get_block_config(i).attention for i in range(12)]
    assert kinds == (["sliding_window_gqa"] * 5 + ["gqa"]) * 2
    assert config.block.attention == "sliding_window_gqa" and config.block.window_size == 4096
    published = gemma3.gemma3_1b()
    assert [published.get_block_config(i).rope_theta for i in (0, 5)] == [1e4, 1e6]
    assert [gemma.gemma2_2b().get_block_config(i).window_size for i in (0, 1)] == [4096, None]
    assert mistral.mistral_7b().block.window_size == 4096


@pytest.mark.parametrize(
    ("preset", "billions"),
    [
        ("llama2_7b", 6.738),
        ("llama2_13b", 13.016),
        ("llama3_8b", 8.030),
        ("mixtral_8x7b", 46.70),
        ("mixtral_8x22b", 140.62),
        ("qwen3_30b_a3b", 30.53),
        ("qwen3_235b_a22b", 235.09),
        ("deepseek_v2", 235.74),
        ("deepseek_v2_lite", 15.71),
        ("deepseek_v3_671b", 671.03),
        ("deepseek_v32_exp", 671.88),
        ("llama4_scout_17b_16e", 107.77),
        ("llama4_maverick_17b_128e", 400.71),
    ],
)
def test_a_preset_has_as_many_parameters_as_were_published(preset: str, billions: float) -> None:
    assert LanguageModel(resolve(preset)).count_parameters() / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_found_by_its_name_and_its_presets(family: str) -> None:
    entry = FAMILIES[family]
    assert entry.name == family and entry.description
    assert resolve(family) == entry.config()
    assert {entry.config.__name__, entry.tiny.__name__} <= set(lmxlab.models.__all__)
    assert entry.presets
    for name, preset in entry.presets.items():
        assert resolve(name) == preset()
    assert LanguageModel(entry.tiny())(tokens(1, 5))[0].shape == (1, 5, 256)


def test_mixtral_is_what_the_api_says() -> None:
    config = mixtral.mixtral_config()
    block = config.block
    assert (block.attention, block.ffn, block.n_experts, block.top_k_experts) == ("gqa", "moe", 8, 2)
    assert (block.rope_theta, block.max_seq_len, block.d_ff, config.vocab_size) == (1e6, 32768, 14336, 32000)
    tiny = mixtral.mixtral_tiny()
    assert (tiny.block.d_model, tiny.n_layers, tiny.block.n_experts, tiny.block.top_k_experts) == (64, 2, 4, 2)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Unknown architecture 'lama'; did you mean 'llama'"):
        resolve("lama")


def test_llama4_is_what_the_api_says_and_what_was_published() -> None:
    config = llama4.llama4_scout_config()
    layers = [config.get_block_config(i) for i in range(8)]
    assert [layer.attention for layer in layers] == (["chunked_gqa"] * 3 + ["gqa"]) * 2
    assert [layer.position for layer in layers] == (["rope"] * 3 + ["none"]) * 2
    assert {(layer.ffn, layer.n_experts, layer.top_k_experts, layer.d_ff) for layer in layers} == {
        ("shared_moe", 16, 1, 8192)
    }
    assert (config.block.attention_chunk_size, config.block.max_seq_len, config.vocab_size) == (8192, 65536, 202048)
    assert llama4.llama4_maverick_config().block.n_experts == 128
    scout, maverick = llama4.llama4_scout_17b_16e(), llama4.llama4_maverick_17b_128e()
    assert scout.block.qk_l2_norm and not maverick.block.qk_l2_norm and maverick.block.rope_scaling is None
    assert [maverick.get_block_config(i).ffn for i in range(4)] == ["gated", "shared_moe"] * 2
    assert maverick.get_block_config(0).d_ff == 16384 and maverick.get_block_config(1).d_ff == 8192
    tiny, fast = llama4.llama4_scout_tiny().block, llama4.llama4_maverick_tiny().block
    assert (tiny.attention_chunk_size, tiny.n_experts, tiny.top_k_experts) == (16, 4, 2)
    assert (fast.n_experts, fast.top_k_experts) == (8, 1)


def test_tiny_configs_are_those_of_the_api() -> None:
    tiny = gpt.gpt_tiny()
    assert (tiny.vocab_size, tiny.block.d_model, tiny.block.n_heads, tiny.n_layers) == (256, 64, 2, 2)
    tiny = llama.llama_tiny()
    assert (tiny.block.n_heads, tiny.block.n_kv_heads, tiny.block.d_ff, tiny.block.max_seq_len) == (4, 2, 128, 128)
    assert dataclasses.replace(tiny, n_layers=3).n_layers == 3

"""LLaMA: RMSNorm, grouped-query attention, SwiGLU, RoPE, no biases."""

from collections.abc import Mapping
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf
from lmxlab.models.weight_map import Rule, per_layer, rename


def llama_config(
    vocab_size: int = 32000,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    n_layers: int = 32,
    d_ff: int = 11008,
    max_seq_len: int = 4096,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = False,
    dropout: float = 0.0,
    mup_base_width: int | None = None,
    rope_scaling: RopeScaling | None = None,
) -> ModelConfig:
    """A pre-norm LLaMA (2302.13971, 2407.21783); `mup_base_width` also sets the block's muP scale."""
    block = decoder_block(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        dropout=dropout,
        mup=mup_base_width is not None,
        rope_scaling=rope_scaling,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings, mup_base_width=mup_base_width)


def llama_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, 4 query and 2 key/value heads."""
    return llama_config(vocab_size=256, d_model=64, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=128, max_seq_len=128)


def llama_10m() -> ModelConfig:
    """About 9.9 M parameters: 14 layers, 128 wide, GPT-2's vocabulary, tied."""
    return llama_config(
        vocab_size=50257, d_model=128, n_heads=4, n_kv_heads=2, n_layers=14, d_ff=512, tie_embeddings=True
    )


def llama_30m() -> ModelConfig:
    """About 30.6 M parameters: 18 layers, 256 wide, GPT-2's vocabulary, tied."""
    return llama_config(
        vocab_size=50257, d_model=256, n_heads=8, n_kv_heads=4, n_layers=18, d_ff=1024, tie_embeddings=True
    )


def llama_7b() -> ModelConfig:
    """32 layers, 4096 wide, grouped queries: 5.9 B parameters, no published model. That is `llama2_7b`."""
    return llama_config()


def llama_13b() -> ModelConfig:
    """40 layers, 5120 wide, grouped queries: 11.4 B parameters, no published model. That is `llama2_13b`."""
    return llama_config(d_model=5120, n_heads=40, n_kv_heads=10, n_layers=40, d_ff=13824)


def llama2_7b() -> ModelConfig:
    """Llama 2 7B, 6.74 B parameters, as many key/value as query heads (2307.09288, table 1; its config.json)."""
    return llama_config(n_kv_heads=32)


def llama2_13b() -> ModelConfig:
    """Llama 2 13B, 13.02 B parameters, as many key/value as query heads (2307.09288, table 1; its config.json)."""
    return llama_config(d_model=5120, n_heads=40, n_kv_heads=40, n_layers=40, d_ff=13824)


def llama3_8b() -> ModelConfig:
    """Llama 3 8B, 8.03 B parameters (2407.21783, table 3)."""
    return llama_config(vocab_size=128256, d_ff=14336, max_seq_len=8192, rope_theta=500000.0)


def llama31_8b() -> ModelConfig:
    """Llama 3.1 8B: Llama 3 8B with its context stretched from 8,192 to 131,072 tokens (2407.21783, section 3.4.2)."""
    return llama_config(
        vocab_size=128256,
        d_ff=14336,
        max_seq_len=131072,
        rope_theta=500000.0,
        rope_scaling=RopeScaling("llama3", factor=8.0, original_max_seq_len=8192),
    )


def llama32_1b() -> ModelConfig:
    """Llama 3.2 1B, 1.24 B parameters (its released config.json)."""
    return llama_config(
        vocab_size=128256,
        d_model=2048,
        n_heads=32,
        n_kv_heads=8,
        n_layers=16,
        d_ff=8192,
        max_seq_len=131072,
        rope_theta=500000.0,
        tie_embeddings=True,
        rope_scaling=RopeScaling("llama3", factor=32.0, original_max_seq_len=8192),
    )


def config_from_llama(hf: HFConfig) -> ModelConfig:
    """The config of a LlamaForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    block = block_from_hf(hf, bias=hf.get("mlp_bias", False), attention_bias=hf.get("attention_bias", False))
    return decoder(hf, [block] * hf["num_hidden_layers"])


def llama_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a LlamaForCausalLM."""
    return decoder_to_hf(config, mlp_bias=config.block.bias, attention_bias=config.block.effective_attention_bias)


# Module names of LlamaForCausalLM, which most later families keep: outside the layers, and within each.
LLAMA_OUTER = {"model.embed_tokens": "embed", "model.norm": "final_norm", "lm_head": "head"}
LLAMA_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.o_proj": "attention.o_proj",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.down",
}
QK_NORM = {"self_attn.q_norm": "attention.q_norm", "self_attn.k_norm": "attention.k_norm"}


def llama_rules(layer: Mapping[str, str], *special: Rule) -> list[Rule]:
    """Weight rules in LLaMA's frame: the names within a layer, and before them rules that do more than rename."""
    return [*rename(LLAMA_OUTER), *per_layer("model.layers.{i}.", [*special, *rename(layer)])]


LLAMA = Converter("llama", "LlamaForCausalLM", config_from_llama, llama_to_hf, llama_rules(LLAMA_LAYER))

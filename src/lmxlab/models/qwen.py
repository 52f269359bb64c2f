"""Qwen 2 (2407.10671): LLaMA with biases on q, k, v. Qwen 3 (2505.09388): with normalised heads instead."""

from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import (
    Converter,
    HFConfig,
    block_from_hf,
    decoder,
    decoder_to_hf,
    layer_types_to_hf,
    windowed,
)
from lmxlab.models.llama import LLAMA_LAYER, QK_NORM, llama_rules


def qwen2_config(
    vocab_size: int = 152064,
    d_model: int = 3584,
    n_heads: int = 28,
    n_kv_heads: int = 4,
    n_layers: int = 28,
    d_ff: int = 18944,
    max_seq_len: int = 32768,
    rope_theta: float = 1000000.0,
    tie_embeddings: bool = False,
) -> ModelConfig:
    """RMSNorm, grouped-query attention with biases on q, k and v, SwiGLU, RoPE."""
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_ff": d_ff}
    biases = {"attention_bias": True, "output_bias": False}
    block = decoder_block(**sizes, max_seq_len=max_seq_len, rope_theta=rope_theta, norm_eps=1e-6, **biases)
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def qwen2_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide."""
    return qwen2_config(256, 64, 4, 2, 2, 128, max_seq_len=128)


def qwen2_0_5b() -> ModelConfig:
    """Qwen2 0.5B, 0.49 B parameters (2407.10671, table 1)."""
    return qwen2_config(151936, 896, 14, 2, 24, 4864, tie_embeddings=True)


def qwen2_7b() -> ModelConfig:
    """Qwen2 7B, 7.6 B parameters (2407.10671, table 1)."""
    return qwen2_config()


def qwen3_config(
    vocab_size: int = 151936,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    n_layers: int = 36,
    d_ff: int = 12288,
    head_dim: int = 128,
    max_seq_len: int = 40960,
    rope_theta: float = 1000000.0,
    tie_embeddings: bool = False,
) -> ModelConfig:
    """RMSNorm, grouped-query attention with RMSNorm on the heads of q and k, SwiGLU, RoPE; no biases."""
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_ff": d_ff, "head_dim": head_dim}
    block = decoder_block(**sizes, max_seq_len=max_seq_len, rope_theta=rope_theta, norm_eps=1e-6, qk_norm=True)
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def qwen3_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, heads of 32 channels."""
    return qwen3_config(256, 64, 4, 2, 2, 128, head_dim=32, max_seq_len=128)


def qwen3_0_6b() -> ModelConfig:
    """Qwen3 0.6B, 0.6 B parameters (2505.09388, table 1; its released config.json)."""
    return qwen3_config(d_model=1024, n_heads=16, n_layers=28, d_ff=3072, tie_embeddings=True)


def qwen3_8b() -> ModelConfig:
    """Qwen3 8B, 8.2 B parameters (2505.09388, table 1; its released config.json)."""
    return qwen3_config()


def config_from_qwen2(hf: HFConfig) -> ModelConfig:
    """The config of a Qwen2ForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    return decoder(hf, _layers(hf, block_from_hf(hf, attention_bias=True, output_bias=False)))


def config_from_qwen3(hf: HFConfig) -> ModelConfig:
    """The config of a Qwen3ForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    head_dim, bias = hf.get("head_dim", 128), hf.get("attention_bias", False)
    return decoder(hf, _layers(hf, block_from_hf(hf, head_dim=head_dim, attention_bias=bias, qk_norm=True)))


def _layers(hf: HFConfig, block: BlockConfig) -> list[BlockConfig]:
    """With `use_sliding_window`, the layers from `max_window_layers` on see a window."""
    n_layers, first = hf["num_hidden_layers"], hf.get("max_window_layers", 28)
    windows = hf.get("use_sliding_window", False)
    kinds = ["sliding_attention" if windows and i >= first else "full_attention" for i in range(n_layers)]
    return windowed(hf, block, kinds)


def qwen2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Qwen2ForCausalLM."""
    windows = layer_types_to_hf(config)
    if "sliding_attention" not in windows["layer_types"]:
        return decoder_to_hf(config, use_sliding_window=False)
    # Its modules go by layer_types; mlx-lm, by max_window_layers.
    first = windows["layer_types"].index("sliding_attention")
    return decoder_to_hf(config, use_sliding_window=True, max_window_layers=first, **windows)


def qwen3_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Qwen3ForCausalLM."""
    return qwen2_to_hf(config) | {"attention_bias": config.block.effective_attention_bias}


QWEN2 = Converter("qwen2", "Qwen2ForCausalLM", config_from_qwen2, qwen2_to_hf, llama_rules(LLAMA_LAYER))
QWEN3 = Converter("qwen3", "Qwen3ForCausalLM", config_from_qwen3, qwen3_to_hf, llama_rules(LLAMA_LAYER | QK_NORM))

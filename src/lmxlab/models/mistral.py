"""Mistral: LLaMA with sliding-window attention (2310.06825)."""

from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.errors import UserError
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf, windowed
from lmxlab.models.llama import LLAMA_LAYER, llama_rules


def mistral_config(
    vocab_size: int = 32000,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    n_layers: int = 32,
    d_ff: int = 14336,
    max_seq_len: int = 32768,
    rope_theta: float = 10000.0,
    window_size: int | None = 4096,
    tie_embeddings: bool = False,
) -> ModelConfig:
    """RMSNorm, grouped-query attention to the last `window_size` tokens (None: to all), SwiGLU, RoPE."""
    block = decoder_block(
        attention="gqa" if window_size is None else "sliding_window_gqa",
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        window_size=window_size,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def mistral_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, a window of 16."""
    return mistral_config(256, 64, 4, 2, 2, 128, max_seq_len=128, window_size=16)


def mistral_7b() -> ModelConfig:
    """Mistral 7B v0.1, 7.24 B parameters (2310.06825, table 1; its released config.json)."""
    return mistral_config()


def config_from_mistral(hf: HFConfig) -> ModelConfig:
    """The config of a MistralForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    kinds = ["sliding_attention"] * hf["num_hidden_layers"]
    # Its class has a window in all layers or in none.
    if hf.get_or_off("sliding_window", 4096) and "full_attention" in hf.get("layer_types", kinds):
        raise UserError("Unsupported layer_types in a mistral config: with sliding_window all layers must have one")
    return decoder(hf, windowed(hf, block_from_hf(hf), kinds))


def mistral_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a MistralForCausalLM."""
    # No layer_types: mlx-lm, which has no windows for Mistral, cannot load a model that has them in every layer.
    return decoder_to_hf(config, sliding_window=config.block.window_size)


MISTRAL = Converter("mistral", "MistralForCausalLM", config_from_mistral, mistral_to_hf, llama_rules(LLAMA_LAYER))

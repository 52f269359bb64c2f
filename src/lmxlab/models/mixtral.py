"""Mixtral: Mistral with a mixture of experts in the place of its feed-forward network (2401.04088)."""

from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.models.decoder import decoder_block
from lmxlab.models.experts import expert_rules
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf, windowed
from lmxlab.models.llama import LLAMA_LAYER, llama_rules

LAB = {"n_experts": 4, "d_ff": 168}  # at laboratory size


def mixtral_config(
    vocab_size: int = 32000,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    n_layers: int = 32,
    d_ff: int = 14336,
    n_experts: int = 8,
    top_k_experts: int = 2,
    max_seq_len: int = 32768,
    rope_theta: float = 1000000.0,
    tie_embeddings: bool = False,
) -> ModelConfig:
    """RMSNorm, grouped-query attention, RoPE, and `top_k_experts` of `n_experts` SwiGLU networks of `d_ff` channels."""
    block = decoder_block(
        ffn="moe",
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        n_experts=n_experts,
        top_k_experts=top_k_experts,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def mixtral_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, 2 of 4 experts."""
    return mixtral_config(256, 64, 4, 2, 2, 128, n_experts=4, max_seq_len=128)


def mixtral_8x7b() -> ModelConfig:
    """Mixtral 8x7B, 46.7 B parameters (2401.04088, table 1)."""
    return mixtral_config()


def mixtral_8x22b() -> ModelConfig:
    """Mixtral 8x22B v0.1, 140.6 B parameters (its released config.json)."""
    return mixtral_config(d_model=6144, n_heads=48, n_layers=56, d_ff=16384, max_seq_len=65536)


def config_from_mixtral(hf: HFConfig) -> ModelConfig:
    """The config of a MixtralForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    hf.get("router_jitter_noise", 0.0)  # of training
    experts = {"n_experts": hf.get("num_local_experts", 8), "top_k_experts": hf.get("num_experts_per_tok", 2)}
    block = block_from_hf(hf, default_theta=1e6, ffn="moe", norm_eps=hf.get("rms_norm_eps", 1e-5), **experts)
    window = hf.get_or_off("sliding_window", None)
    kinds = ["sliding_attention" if window else "full_attention"] * hf["num_hidden_layers"]
    return decoder(hf, windowed(hf, block, kinds))


def mixtral_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a MixtralForCausalLM."""
    block = config.block
    return decoder_to_hf(
        config,
        sliding_window=block.window_size,
        num_local_experts=block.n_experts,
        num_experts_per_tok=block.top_k_experts,
    )


MIXTRAL = Converter(
    "mixtral",
    "MixtralForCausalLM",
    config_from_mixtral,
    mixtral_to_hf,
    llama_rules(LLAMA_LAYER, *expert_rules("block_sparse_moe", ("w1", "w3", "w2"))),
)

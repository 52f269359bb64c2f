"""Qwen 3 with a mixture of experts (2505.09388, section 2)."""

import dataclasses
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.models.decoder import decoder_block
from lmxlab.models.experts import dense_layers, expert_rules
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf, windowed
from lmxlab.models.llama import LLAMA_LAYER, QK_NORM, llama_rules

LAB = {"n_experts": 4, "top_k_experts": 2, "moe_d_ff": 168}  # at laboratory size


def qwen3_moe_config(
    vocab_size: int = 151936,
    d_model: int = 2048,
    n_heads: int = 32,
    n_kv_heads: int = 4,
    n_layers: int = 48,
    moe_d_ff: int = 768,
    head_dim: int = 128,
    n_experts: int = 128,
    top_k_experts: int = 8,
    max_seq_len: int = 40960,
    rope_theta: float = 1000000.0,
    tie_embeddings: bool = False,
    d_ff: int = 6144,
) -> ModelConfig:
    """Qwen 3 with `top_k_experts` of `n_experts` SwiGLU networks of `moe_d_ff` channels in every layer.

    `d_ff` is the width of layers without experts, of which the published models have none.
    """
    block = decoder_block(
        ffn="moe",
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        moe_d_ff=moe_d_ff,
        head_dim=head_dim,
        n_experts=n_experts,
        top_k_experts=top_k_experts,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        norm_eps=1e-6,
        qk_norm=True,
        router_normalized=True,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def qwen3_moe_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, heads of 32 channels, 2 of 4 experts."""
    return qwen3_moe_config(256, 64, 4, 2, 2, 48, head_dim=32, n_experts=4, top_k_experts=2, max_seq_len=128, d_ff=128)


def qwen3_30b_a3b() -> ModelConfig:
    """Qwen3-30B-A3B, 30.5 B parameters, 3.3 B of them active (2505.09388, table 2; its released config.json)."""
    return qwen3_moe_config()


def qwen3_235b_a22b() -> ModelConfig:
    """Qwen3-235B-A22B, 235 B parameters, 22 B of them active (2505.09388, table 2; its released config.json)."""
    return qwen3_moe_config(d_model=4096, n_heads=64, n_layers=94, moe_d_ff=1536, d_ff=12288)


def config_from_qwen3_moe(hf: HFConfig) -> ModelConfig:
    """The config of a Qwen3MoeForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    bias, n_layers = hf.get("attention_bias", False), hf["num_hidden_layers"]
    plain = block_from_hf(hf, attention_bias=bias, qk_norm=True)
    sparse = dataclasses.replace(
        plain,
        ffn="moe",
        n_experts=hf.get("num_experts", hf.get("num_local_experts", 128)),
        top_k_experts=hf.get("num_experts_per_tok", 8),
        moe_d_ff=hf.get("moe_intermediate_size", 768),
        router_normalized=hf.get("norm_topk_prob", False),
    )
    step, dense = hf.get("decoder_sparse_step", 1), hf.get("mlp_only_layers", [])
    hf.get("max_window_layers", None)  # a window is one of all layers
    windows = hf.get("use_sliding_window", False)
    kinds = ["sliding_attention" if windows else "full_attention"] * n_layers
    plains, sparses = windowed(hf, plain, kinds), windowed(hf, sparse, kinds)
    layers = [plains[i] if i in dense or (i + 1) % step else sparses[i] for i in range(n_layers)]
    return decoder(hf, layers)


def qwen3_moe_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Qwen3MoeForCausalLM."""
    dense = dense_layers(config)
    sparse = next((config.get_block_config(i) for i in range(config.n_layers) if i not in dense), config.block)
    return decoder_to_hf(
        config,
        attention_bias=config.block.effective_attention_bias,
        num_experts=sparse.n_experts,
        num_experts_per_tok=sparse.top_k_experts,
        moe_intermediate_size=sparse.moe_d_ff,
        norm_topk_prob=sparse.router_normalized is not False,
        decoder_sparse_step=1,
        mlp_only_layers=dense,
        use_sliding_window=sparse.window_size is not None,
        sliding_window=sparse.window_size,
    )


QWEN3_MOE = Converter(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    config_from_qwen3_moe,
    qwen3_moe_to_hf,
    llama_rules(LLAMA_LAYER | QK_NORM, *expert_rules()),
)

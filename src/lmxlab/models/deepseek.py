"""DeepSeek-V2 (2405.04434) and V3 (2412.19437): latent attention, and experts beside shared ones."""

import dataclasses
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.models.decoder import decoder_block, layered

V2_YARN = RopeScaling("yarn", 40.0, 4096, mscale=0.707, mscale_all_dim=0.707)
V3_YARN = RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
V3_EXPERT_SHARE = 9  # d_ff / moe_d_ff as published

# Sizes of the latents and of the parts of a head at laboratory size.
LAB = {"kv_lora_rank": 32, "q_lora_rank": 48, "rope_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
V3_LAB = LAB | {"n_experts": 4, "top_k_experts": 2, "moe_d_ff": 112}


def deepseek_config(
    vocab_size: int = 102400,
    d_model: int = 5120,
    n_heads: int = 128,
    n_layers: int = 60,
    d_ff: int = 12288,
    kv_lora_rank: int = 512,
    q_lora_rank: int | None = 1536,
    rope_dim: int = 64,
    max_seq_len: int = 4096,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = False,
    *,
    qk_nope_head_dim: int = 128,
    v_head_dim: int = 128,
    rope_scaling: RopeScaling | None = None,
    n_experts: int | None = None,
    top_k_experts: int = 6,
    n_shared_experts: int = 2,
    moe_d_ff: int | None = None,
    moe_n_groups: int = 1,
    moe_topk_groups: int = 1,
    moe_routed_scaling_factor: float = 1.0,
    n_dense_layers: int = 1,
) -> ModelConfig:
    """Latent attention and SwiGLU; with `n_experts`, DeepSeek-V2's mixture after the first `n_dense_layers`.

    Weights of the experts are softmax scores, not normalised over the selection; groups go by their best score.
    """
    dense = latent_block(
        d_model=d_model,
        n_heads=n_heads,
        d_ff=d_ff,
        kv_lora_rank=kv_lora_rank,
        q_lora_rank=q_lora_rank,
        rope_dim=rope_dim,
        qk_nope_head_dim=qk_nope_head_dim,
        v_head_dim=v_head_dim,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
    )
    if n_experts is None:
        return layered([dense] * n_layers, vocab_size, tie_embeddings)
    sparse = v2_mixture(
        dense,
        n_experts=n_experts,
        top_k_experts=top_k_experts,
        n_shared_experts=n_shared_experts,
        moe_d_ff=moe_d_ff,
        moe_n_groups=moe_n_groups,
        moe_topk_groups=moe_topk_groups,
        moe_routed_scaling_factor=moe_routed_scaling_factor,
    )
    return layered([dense] * n_dense_layers + [sparse] * (n_layers - n_dense_layers), vocab_size, tie_embeddings)


def deepseek_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, a latent of 16 channels, without experts."""
    return deepseek_config(256, 64, 4, 2, 128, 16, 32, 8, max_seq_len=128, qk_nope_head_dim=16, v_head_dim=16)


def deepseek_v2() -> ModelConfig:
    """DeepSeek-V2, 236 B parameters, 21 B of them active (2405.04434, section 3.1.2; its released config.json)."""
    return deepseek_config(
        max_seq_len=163840,
        rope_scaling=V2_YARN,
        n_experts=160,
        moe_d_ff=1536,
        moe_n_groups=8,
        moe_topk_groups=3,
        moe_routed_scaling_factor=16.0,
    )


def deepseek_v2_lite() -> ModelConfig:
    """DeepSeek-V2-Lite, 15.7 B parameters, 2.4 B active (2405.04434, appendix B; its released config.json)."""
    return deepseek_config(
        d_model=2048,
        n_heads=16,
        n_layers=27,
        d_ff=10944,
        q_lora_rank=None,
        max_seq_len=163840,
        rope_scaling=V2_YARN,
        n_experts=64,
        moe_d_ff=1408,
    )


def deepseek_v3_config(
    vocab_size: int = 129280,
    d_model: int = 7168,
    n_heads: int = 128,
    n_layers: int = 61,
    d_ff: int = 18432,
    kv_lora_rank: int = 512,
    q_lora_rank: int | None = 1536,
    rope_dim: int = 64,
    n_experts: int = 256,
    top_k_experts: int = 8,
    n_shared_experts: int = 1,
    n_dense_layers: int = 1,
    max_seq_len: int = 4096,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = False,
    *,
    qk_nope_head_dim: int = 128,
    v_head_dim: int = 128,
    rope_scaling: RopeScaling | None = None,
    moe_d_ff: int | None = None,
    moe_n_groups: int = 1,
    moe_topk_groups: int = 1,
    moe_routed_scaling_factor: float = 2.5,
) -> ModelConfig:
    """Latent attention, SwiGLU in the first `n_dense_layers`, experts balanced by a bias in the others.

    Weights are sigmoid scores normalised over the selection; groups go by the sum of their two best scores. Experts
    have `moe_d_ff` channels, a ninth of `d_ff` when not given, as published.
    """
    dense = latent_block(
        d_model=d_model,
        n_heads=n_heads,
        d_ff=d_ff,
        kv_lora_rank=kv_lora_rank,
        q_lora_rank=q_lora_rank,
        rope_dim=rope_dim,
        qk_nope_head_dim=qk_nope_head_dim,
        v_head_dim=v_head_dim,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
    )
    sparse = v3_mixture(
        dense,
        n_experts=n_experts,
        top_k_experts=top_k_experts,
        n_shared_experts=n_shared_experts,
        moe_d_ff=moe_d_ff or max(1, d_ff // V3_EXPERT_SHARE),
        moe_n_groups=moe_n_groups,
        moe_topk_groups=moe_topk_groups,
        moe_routed_scaling_factor=moe_routed_scaling_factor,
    )
    return layered([dense] * n_dense_layers + [sparse] * (n_layers - n_dense_layers), vocab_size, tie_embeddings)


def deepseek_v3_tiny() -> ModelConfig:
    """For tests: 4 layers of which 1 is dense, 64 wide, 2 of 4 experts and a shared one."""
    return deepseek_v3_config(
        *(256, 64, 4, 4, 128, 16, 32, 8, 4, 2, 1, 1),
        max_seq_len=128,
        qk_nope_head_dim=16,
        v_head_dim=16,
        moe_d_ff=32,
    )


def deepseek_v3_671b() -> ModelConfig:
    """DeepSeek-V3, 671 B parameters, 37 B of them active (2412.19437, section 4.2; its released config.json)."""
    return deepseek_v3_config(
        n_dense_layers=3,
        max_seq_len=163840,
        rope_scaling=V3_YARN,
        moe_d_ff=2048,
        moe_n_groups=8,
        moe_topk_groups=4,
    )


def latent_block(**fields: Any) -> BlockConfig:
    """A layer of latent attention and SwiGLU."""
    return decoder_block(**{"attention": "mla", "position": "none", "norm_eps": 1e-6, **fields})


def v2_mixture(dense: BlockConfig, **fields: Any) -> BlockConfig:
    """The layer with DeepSeek-V2's mixture in the place of its SwiGLU."""
    router: dict[str, Any] = {"router_scores": "softmax", "router_normalized": False, "router_balanced": False}
    return dataclasses.replace(dense, ffn="shared_moe", **router, **fields)


def v3_mixture(dense: BlockConfig, **fields: Any) -> BlockConfig:
    """The layer with DeepSeek-V3's mixture in the place of its SwiGLU."""
    return dataclasses.replace(dense, ffn="shared_moe", **fields)

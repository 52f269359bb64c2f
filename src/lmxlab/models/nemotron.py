"""Nemotron-H (2504.03624) and Nemotron 3 (2512.20856): one norm and one mixer per layer, no positions."""

import dataclasses
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.errors import UserError
from lmxlab.models.mamba import inner_width

KINDS = "ME*-"


# At laboratory size.
LAB = {
    "hybrid_override_pattern": "MEMEM*E-",
    **{"mamba_n_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 32, "mamba_n_groups": 1, "mamba_chunk_size": 32},
    **{"n_experts": 8, "top_k_experts": 2, "moe_latent_size": 64, "moe_d_ff": 128, "shared_expert_d_ff": 256},
    **{"moe_routed_scaling_factor": 1.0, "moe_n_groups": 1, "moe_topk_groups": 1},
}


def nemotron3_config(
    hybrid_override_pattern: str = "MEME*ME*",
    vocab_size: int = 256000,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 2,
    d_ff: int = 16384,
    mamba_n_heads: int = 128,
    mamba_head_dim: int = 64,
    ssm_state_size: int = 128,
    mamba_expand: int = 2,
    mamba_n_groups: int = 8,
    mamba_chunk_size: int = 128,
    n_experts: int = 512,
    top_k_experts: int = 22,
    moe_latent_size: int | None = 1024,
    moe_d_ff: int = 1024,
    shared_expert_d_ff: int = 16384,
    moe_routed_scaling_factor: float = 5.0,
    moe_n_groups: int = 8,
    moe_topk_groups: int = 4,
    max_seq_len: int = 4096,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = False,
    conv_kernel_size: int = 4,
    head_dim: int | None = None,
    norm_eps: float = 1e-5,
    bias: bool = False,
    router_normalized: bool | None = None,
    mamba_options: MambaOptions | None = None,
) -> ModelConfig:
    """A norm and a mixer per layer.

    Args:
        hybrid_override_pattern: the layers' kinds: M for Mamba-2, E for experts, * for attention, - for a squared-ReLU
            feed-forward network.
        moe_latent_size: channels that the experts work between; None: the model's own (Nemotron 3 Nano).
        rope_theta: of the config alone: no layer rotates.
        bias: of the feed-forward networks.
        mamba_options: of the M layers; their inner width is mamba_n_heads * mamba_head_dim whatever stands there.
    """
    unknown = sorted(set(hybrid_override_pattern) - set(KINDS))
    if unknown or not hybrid_override_pattern:
        raise UserError(f"Unknown pattern {unknown or hybrid_override_pattern!r}: each layer is one of {list(KINDS)}")
    options = _options(mamba_options, inner_width(d_model, mamba_expand, mamba_n_heads, mamba_head_dim))
    common: dict[str, Any] = {
        "norm": "rms_norm",
        "position": "none",
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "d_ff": d_ff,
        "bias": bias,
        "attention_bias": False,
        "norm_eps": norm_eps,
        "rope_theta": rope_theta,
        "max_seq_len": max_seq_len,
    }
    own: dict[str, dict[str, Any]] = {
        "M": {
            "attention": "mamba2",
            "ffn": "none",
            "mamba_n_heads": mamba_n_heads,
            "mamba_head_dim": mamba_head_dim,
            "ssm_state_size": ssm_state_size,
            "mamba_expand": mamba_expand,
            "mamba_n_groups": mamba_n_groups,
            "mamba_chunk_size": mamba_chunk_size,
            "conv_kernel_size": conv_kernel_size,
            "mamba_options": options,
        },
        "E": {
            "attention": "none",
            "ffn": "shared_moe" if moe_latent_size is None else "latent_moe",
            "activation": "relu2",
            "n_experts": n_experts,
            "top_k_experts": top_k_experts,
            "moe_latent_size": moe_latent_size,
            "moe_d_ff": moe_d_ff,
            "shared_expert_d_ff": shared_expert_d_ff,
            "moe_routed_scaling_factor": moe_routed_scaling_factor,
            "moe_n_groups": moe_n_groups,
            "moe_topk_groups": moe_topk_groups,
            "router_normalized": router_normalized,
        },
        "*": {"attention": "gqa", "ffn": "none"},
        "-": {"attention": "none", "ffn": "relu2"},
    }
    blocks = {kind: BlockConfig(**common, **own[kind]) for kind in set(hybrid_override_pattern)}
    layers = tuple(blocks[kind] for kind in hybrid_override_pattern)
    return ModelConfig(layers[0], vocab_size, len(layers), tie_embeddings, layers)


def nemotron3_tiny() -> ModelConfig:
    """For tests: Mamba-2, experts, Mamba-2, attention; 64 wide, 2 of 4 experts."""
    return nemotron3_config(
        "MEM*",
        vocab_size=256,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        d_ff=128,
        max_seq_len=128,
        mamba_n_heads=4,
        mamba_head_dim=32,
        ssm_state_size=16,
        mamba_n_groups=2,
        mamba_chunk_size=32,
        n_experts=4,
        top_k_experts=2,
        moe_latent_size=32,
        moe_d_ff=32,
        shared_expert_d_ff=64,
        moe_n_groups=1,
        moe_topk_groups=1,
    )


def nemotron3_8b() -> ModelConfig:
    """Nemotron-H 8B, dense, 8.1 B parameters (2504.03624, table 1, and nvidia/Nemotron-H-8B-Base-8K)."""
    pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    return nemotron3_config(
        pattern,
        vocab_size=131072,
        n_kv_heads=8,
        d_ff=21504,
        head_dim=128,
        max_seq_len=8192,
    )


def nemotron3_nano() -> ModelConfig:
    """Nemotron 3 Nano, 31.6 B parameters, 3.2 B of them active (nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B)."""
    return nemotron3_config(
        "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        vocab_size=131072,
        d_model=2688,
        d_ff=1856,
        head_dim=128,
        max_seq_len=262144,
        mamba_n_heads=64,
        n_experts=128,
        top_k_experts=6,
        moe_latent_size=None,
        moe_d_ff=1856,
        shared_expert_d_ff=3712,
        moe_routed_scaling_factor=2.5,
        moe_n_groups=1,
        moe_topk_groups=1,
    )


def nemotron3_super() -> ModelConfig:
    """Nemotron 3 Super, 120.7 B parameters, 12 B of them active (nvidia/NVIDIA-Nemotron-3-Super-120B-A12B)."""
    return nemotron3_config(
        "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
        vocab_size=131072,
        d_ff=2688,
        head_dim=128,
        max_seq_len=262144,
        moe_d_ff=2688,
        shared_expert_d_ff=5376,
        moe_n_groups=1,
        moe_topk_groups=1,
    )


def _options(options: MambaOptions | None, width: int | None) -> MambaOptions | None:
    made = dataclasses.replace(options or MambaOptions(), d_inner=width)
    return None if made == MambaOptions() else made

"""Which of BlockConfig's optional fields each component reads: one that is set and not read would be a silent mistake.

A component that is not listed, such as one that a user registers, is not judged.
"""

from typing import Any

from lmxlab.core.mamba_options import MambaOptions
from lmxlab.errors import UserError

# Attention whose q and k the block's rope rotates.
ROTATED = ("mha", "gqa", "sliding_window_gqa", "chunked_gqa", "sparse_gqa", "gqa_mamba2")

# What everything reads that has scores.
SCORES = ("attention_scale", "attention_softcap")
# What rotated attention reads, and of it what says how the block's rope is used.
SOFTMAX = (*SCORES, "qk_norm", "output_gate", "rope_interleaved", "qk_l2_norm", "temperature_floor")
OF_ROPE = ("rope_interleaved", "qk_l2_norm")
# What latent attention reads; it rotates a part of its own, so that the block has no rope.
LATENT = (*SCORES, "kv_lora_rank", "q_lora_rank", "rope_dim", "qk_nope_head_dim", "v_head_dim")
ROTATES_ITSELF = ("mla", "dsa")
# Mixers that are causal by themselves: a bias on scores does not reach them.
UNBIASED = ("sparse_gqa", "gated_deltanet", "mamba1", "mamba2", "mamba3")
# Mixtures of experts, and what every one of them reads.
MIXTURES = ("moe", "shared_moe", "latent_moe")
ROUTED = ("n_experts", "moe_d_ff", "router_scores", "router_normalized", "router_balanced", "router_scales_input")

READS: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": {
        "mha": SOFTMAX,
        "gqa": SOFTMAX,
        "sliding_window_gqa": (*SOFTMAX, "window_size"),
        "chunked_gqa": (*SOFTMAX, "attention_chunk_size"),
        "mla": LATENT,
        "dsa": (*LATENT, "index_n_heads", "index_head_dim", "index_top_k"),
        "sparse_gqa": (
            *("sparse_compress_ratio", "sparse_select_k", "window_size"),
            *(*SCORES, "qk_norm", "rope_interleaved"),
        ),
        "gated_deltanet": (
            *("use_short_conv", "linear_n_key_heads", "linear_n_value_heads"),
            *("linear_key_head_dim", "linear_value_head_dim"),
        ),
        "mamba1": ("mamba_bc_norm", "mamba_options"),
        "mamba2": ("mamba_n_heads", "mamba_head_dim", "mamba_options"),
        "gqa_mamba2": (*SOFTMAX, "mamba_n_heads", "mamba_head_dim", "mamba_options"),
        "mamba3": (
            *("mamba_n_heads", "mamba_head_dim", "mamba_options"),
            *("mamba_bc_norm", "mamba_trapezoidal", "mamba_complex_a"),
        ),
    },
    "ffn": {
        "standard": (),
        "gated": (),
        "relu2": (),
        "gated_relu2": (),
        "moe": ROUTED,
        "shared_moe": (*ROUTED, "n_shared_experts", "shared_expert_d_ff", "shared_expert_gate"),
        "latent_moe": (*ROUTED, "moe_latent_size", "shared_expert_d_ff"),
    },
}

# Of `mamba_options`, what a mixer does not read.
OPTIONS_UNREAD = {
    "mamba1": ("norm", "norm_groups", "dt_min", "dt_max"),
    **dict.fromkeys(("mamba2", "mamba3", "gqa_mamba2"), ("dt_rank",)),
}


def check_all_read(config: Any) -> None:
    """Raises UserError for a field of a BlockConfig that is set and that its component does not read."""
    for slot, components in READS.items():
        component = getattr(config, slot)
        if component not in components:
            continue
        for name in sorted({field for fields in components.values() for field in fields}):
            if getattr(config, name) and name not in components[component]:
                raise UserError(
                    f"{name} {getattr(config, name)!r} would be ignored: {slot} {component!r} does not read it; "
                    f"leave it out, or choose the {slot} that it belongs to"
                )
    for name in OPTIONS_UNREAD.get(config.attention, ()) if config.mamba_options is not None else ():
        value = getattr(config.mamba_options, name)
        if value != getattr(MambaOptions(), name):
            raise UserError(
                f"mamba_options.{name} {value!r} would be ignored: attention {config.attention!r} does not read it; "
                "leave it out"
            )
    if config.position == "alibi" and config.attention in UNBIASED:
        raise UserError(
            f"position 'alibi' would be ignored: attention {config.attention!r} has no place for its bias; "
            "choose another position, such as 'none'"
        )
    for name in OF_ROPE:
        if getattr(config, name) and config.position != "rope":
            raise UserError(f"{name} would be ignored: position is {config.position!r}; set position='rope'")
    if config.partial_rotary_factor != 1 and config.position != "rope":
        raise UserError(
            f"partial_rotary_factor {config.partial_rotary_factor} would be ignored: position is {config.position!r}; "
            "set position='rope'"
        )

"""Cases of state-space models and their hybrids for test_parity, and architectures for test_properties."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.core.mamba_options import Multipliers
from lmxlab.models.falcon import falcon_h1_config
from lmxlab.models.jamba import jamba_config
from lmxlab.models.mamba import mamba2_config, mamba_config
from lmxlab.models.nemotron import nemotron3_config

MAMBA = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 6}
MAMBA2 = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 8,
    "num_heads": 4,
    "head_dim": 16,
    "n_groups": 2,
    "chunk_size": 8,
}
FALCON_H1 = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "mamba_d_ssm": 48,
    "mamba_n_heads": 3,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
JAMBA = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "mamba_d_state": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_mamba_kernels": False},
    **{"num_experts": 4, "mamba_dt_rank": 8, "attn_layer_period": 4, "attn_layer_offset": 2},
}
NEMOTRON_H = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12},
    **{"ssm_state_size": 8, "mamba_num_heads": 3, "mamba_head_dim": 16, "n_groups": 3, "chunk_size": 8},
}
EXPERTS = {
    **{"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "routed_scaling_factor": 2.5},
    **{"moe_shared_expert_intermediate_size": 40, "n_group": 4, "topk_group": 2},
}
FACTORS = {
    "embedding_multiplier": 1.7,
    "lm_head_multiplier": 0.6,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.9,
    "key_multiplier": 0.7,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.8,
    "ssm_multipliers": [0.9, 1.1, 1.2, 0.7, 1.4],
    "mlp_multipliers": [1.3, 0.6],
}
# The reference adds a recurrence up token by token; what either sum is off by, the norms behind it enlarge: its own
# float32 is up to 3.8e-5 from its float64 here.
SLACK = 6
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", MAMBA),
    "mamba, biases, own rank, untied": (
        "mamba",
        MAMBA
        | {"use_bias": True, "use_conv_bias": False, "time_step_rank": 5, "conv_kernel": 3, "expand": 3}
        | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ),
    "mamba2": ("mamba2", MAMBA2),
    "mamba2, one group, biases, tied": (
        "mamba2",
        MAMBA2 | {"n_groups": 1, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True},
    ),
    "mamba2, limited steps, a group per head": (
        "mamba2",
        MAMBA2 | {"n_groups": 4, "time_step_limit": [0.6, 0.75], "chunk_size": 16, "layer_norm_epsilon": 1e-3},
    ),
    "falcon_h1": ("falcon_h1", FALCON_H1),
    "falcon_h1, multipliers, norm after the gate, own head_dim": (
        "falcon_h1",
        FALCON_H1
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "head_dim": 12, "mamba_n_groups": 3}
        | FACTORS,
    ),
    "falcon_h1, norm before the gate, biases, limited steps, tied": (
        "falcon_h1",
        FALCON_H1
        | {"mamba_rms_norm": True, "mamba_d_ssm": None, "mamba_n_heads": 4, "time_step_limit": [0.6, 0.75]}
        | {"mamba_proj_bias": True, "projectors_bias": True, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "jamba": ("jamba", JAMBA),
    "jamba, no experts, biases": (
        "jamba",
        JAMBA
        | {
            "num_experts": 1,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "mamba_dt_rank": "auto",
            "mamba_d_conv": 3,
        }
        | {"mamba_d_conv": 3, "mamba_expand": 3, "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    ),
    "nemotron_h, dense": ("nemotron_h", NEMOTRON_H | {"hybrid_override_pattern": "M-*-M"}),
    "nemotron_h, experts": ("nemotron_h", NEMOTRON_H | EXPERTS | {"hybrid_override_pattern": "ME*EM-"}),
    "nemotron_h, latent experts, biases": (
        "nemotron_h",
        NEMOTRON_H
        | EXPERTS
        | {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "moe_latent_size": 20}
        | {"use_bias": True, "mlp_bias": True, "use_conv_bias": False, "norm_topk_prob": False, "n_group": 1}
        | {"topk_group": 1, "layer_norm_epsilon": 1e-3},
    ),
}
GREEDY = [
    "jamba",
    "nemotron_h, experts",
    "falcon_h1, multipliers, norm after the gate, own head_dim",
    "mamba, biases, own rank, untied",
    "mamba2",
]

SIZE = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "max_seq_len": 40}
HYBRID: dict[str, Any] = {
    **{"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "max_seq_len": 40},
    **{"mamba_n_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "mamba_n_groups": 2, "mamba_chunk_size": 5},
}


def _mamba3(**flags: bool) -> ModelConfig:
    config = mamba2_config(**SIZE, mamba_head_dim=16, ssm_state_size=8, mamba_n_groups=2, mamba_chunk_size=5)
    block = dataclasses.replace(config.block, attention="mamba3", **flags)  # type: ignore[arg-type]
    return dataclasses.replace(config, block=block)


ROUTED: dict[str, Any] = {"n_experts": 8, "top_k_experts": 2, "moe_d_ff": 24, "shared_expert_d_ff": 40}
ARCHITECTURES: dict[str, Callable[[], ModelConfig]] = {
    "jamba": lambda: jamba_config(**HYBRID, n_layers=4, mixer="mamba1", attn_offset=2, moe_offset=1, n_experts=4),
    "jamba-mamba2": lambda: jamba_config(**HYBRID, n_layers=4, attn_every=2, moe_every=2, n_experts=4),
    "nemotron": lambda: nemotron3_config("M-*M", **HYBRID),
    "nemotron-experts": lambda: nemotron3_config(
        "ME*", **HYBRID, **ROUTED, moe_latent_size=16, moe_n_groups=4, moe_topk_groups=2
    ),
    "nemotron-wide-experts": lambda: nemotron3_config(
        "ME*", **HYBRID, **ROUTED, moe_latent_size=None, moe_n_groups=1, moe_topk_groups=1
    ),
    "mamba3": lambda: _mamba3(mamba_trapezoidal=True, mamba_bc_norm=True, mamba_complex_a=True),
    "mamba3-trapezoidal": lambda: _mamba3(mamba_trapezoidal=True),
    "falcon-h1": lambda: falcon_h1_config("HH", **HYBRID, multipliers=Multipliers(1.2, 0.9, 0.8, 1.1, 0.7, 1.3)),
    "falcon-h1-layers": lambda: falcon_h1_config("M*", **HYBRID),
    "mamba": lambda: mamba_config(**SIZE, ssm_state_size=6),
    "mamba2": lambda: mamba2_config(**SIZE, mamba_head_dim=16, ssm_state_size=8, mamba_n_groups=2, mamba_chunk_size=5),
}

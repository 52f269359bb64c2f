"""Cases of hybrids of Gated DeltaNet and attention for test_parity, and architectures for test_properties."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.qwen3_next import qwen3_next_config
from lmxlab.models.qwen35 import qwen35_config

QWEN35 = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # of a head that finds nearly nothing, a smaller one would make noise, in any library
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 24,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
}
QWEN3_NEXT = QWEN35 | {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
}
# What is found is brought to unit size, however small, and rounding with it: the reference's own float32 is up to
# 1.4e-5 from its float64 here.
SLACK = 5
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen35": ("qwen3_5_text", QWEN35),
    "qwen35, attention bias, half rotated, wide convolution, tied": (
        "qwen3_5_text",
        QWEN35
        | {"attention_bias": True, "linear_conv_kernel_dim": 6, "tie_word_embeddings": True, "head_dim": 8}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "qwen3_next": ("qwen3_next", QWEN3_NEXT),
    "qwen3_next, a layer without experts, as many key heads": (
        "qwen3_next",
        QWEN3_NEXT
        | {"mlp_only_layers": [1], "linear_num_key_heads": 4, "norm_topk_prob": False, "num_experts_per_tok": 6}
        | {"num_hidden_layers": 5, "layer_types": None, "full_attention_interval": 2},
    ),
}
GREEDY = ["qwen35", "qwen3_next"]

SIZE = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "max_seq_len": 40}


def _decoder(**fields: Any) -> ModelConfig:
    common = {"attention": "gqa", "ffn": "gated", "norm": "rms_norm", "position": "rope", "bias": False}
    sizes = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "max_seq_len": 40}
    return ModelConfig(BlockConfig(**{**common, **sizes, **fields}), 61, 2, tie_embeddings=False)


def _steady(config: ModelConfig) -> ModelConfig:
    """With a larger eps, as in QWEN35 above and for its reason."""
    layers = tuple(dataclasses.replace(config.get_block_config(i), norm_eps=1e-3) for i in range(config.n_layers))
    return dataclasses.replace(config, block=layers[0], block_configs=layers)


DELTA = {"attention": "gated_deltanet", "position": "none"}
ARCHITECTURES: dict[str, Callable[[], ModelConfig]] = {
    "gated-deltanet": lambda: _decoder(**DELTA, use_short_conv=True),
    "gated-deltanet-grouped": lambda: _decoder(**DELTA, linear_n_key_heads=2, linear_n_value_heads=6),
    "sparse": lambda: _decoder(attention="sparse_gqa", sparse_compress_ratio=3, sparse_select_k=2, window_size=4),
    "output-gate": lambda: _decoder(output_gate=True, partial_rotary_factor=0.5),
    "qwen3_next": lambda: _steady(
        qwen3_next_config(
            **SIZE,
            **{"moe_d_ff": 24, "shared_expert_d_ff": 20, "n_experts": 4, "top_k_experts": 2, "head_dim": 8},
            **{"linear_n_key_heads": 2, "linear_n_value_heads": 4},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 16, "global_every": 2},
        )
    ),
    "qwen35": lambda: _steady(qwen35_config(**SIZE, d_ff=48, global_every=2, linear_n_value_heads=8)),
}

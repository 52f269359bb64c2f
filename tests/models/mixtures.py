"""Cases of mixtures of experts for test_parity."""

from typing import Any

from .dense import LLAMA, ROPE

QWEN3_MOE = LLAMA | {
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
DEEPSEEK = LLAMA | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
DEEPSEEK_YARN = ROPE["yarn"] | {"mscale": 0.7, "mscale_all_dim": 0.9}
DEEPSEEK_V32 = DEEPSEEK | {
    "n_group": 4,
    "topk_group": 2,
    "index_n_heads": 8,
    "index_head_dim": 12,
    "index_topk": 9,
}
LLAMA4 = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "floor_scale": 4,
    "attn_scale": 0.5,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE),
    "qwen3_moe, weights not normalised, some layers dense, windows": (
        "qwen3_moe",
        QWEN3_MOE
        | {"norm_topk_prob": False, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
        | {"use_sliding_window": True, "sliding_window": 8, "attention_bias": True},
    ),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK | {"n_routed_experts": 6, "num_experts_per_tok": 3}),
    "deepseek_v2, groups, plain queries, yarn": (
        "deepseek_v2",
        DEEPSEEK
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.0}
        | {"q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN, "attention_bias": True},
    ),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK | {"n_group": 4, "topk_group": 2}),
    "deepseek_v32": ("deepseek_v32", DEEPSEEK_V32),
    "deepseek_v32, few tokens seen, yarn, another layer dense": (
        "deepseek_v32",
        DEEPSEEK_V32
        | {"index_topk": 4, "rope_parameters": DEEPSEEK_YARN, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    ),
    "deepseek_v3, no groups, plain queries, yarn, all dense but one": (
        "deepseek_v3",
        DEEPSEEK
        | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 2}
        | {"q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN},
    ),
    "llama4": ("llama4_text", LLAMA4),
    "llama4, as Scout": (
        "llama4_text",
        LLAMA4
        | {"interleave_moe_layer_step": 1, "rope_parameters": ROPE["llama3"] | {"high_freq_factor": 1.0}}
        | {"tie_word_embeddings": True, "head_dim": 16, "num_experts_per_tok": 1},
    ),
    "llama4, as Maverick": (
        "llama4_text",
        LLAMA4 | {"use_qk_norm": False, "num_experts_per_tok": 1, "attention_bias": True},
    ),
    "llama4, other layers": (
        "llama4_text",
        LLAMA4
        | {"no_rope_layers": [0, 1, 1, 0], "moe_layers": [0, 3], "attn_temperature_tuning": False}
        | {"layer_types": ["chunked_attention", "full_attention", "chunked_attention", "full_attention"]},
    ),
    "mixtral": ("mixtral", LLAMA | {"num_local_experts": 4}),
    "mixtral, every expert, a window": (
        "mixtral",
        LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 8},
    ),
}
GREEDY = ["qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3", "deepseek_v32", "llama4", "llama4, as Scout"]

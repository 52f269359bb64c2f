"""Cases of dense transformers for test_parity."""

from typing import Any

GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 48}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, **BANDS},
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16},
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
GEMMA3 = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": GEMMA3_ROPE,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2, exact gelu, wide ffn, untied": (
        "gpt2",
        GPT2 | {"activation_function": "gelu", "n_inner": 80, "tie_word_embeddings": False},
    ),
    "llama": ("llama", LLAMA),
    "llama, as many kv heads, tied": ("llama", LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, one kv head": ("llama", LLAMA | {"num_key_value_heads": 1}),
    "llama, own head_dim": ("llama", LLAMA | {"head_dim": 16}),
    "llama, attention bias": ("llama", LLAMA | {"attention_bias": True}),
    "llama, mlp bias, large eps": ("llama", LLAMA | {"mlp_bias": True, "rms_norm_eps": 1e-3}),
    "llama, dynamic rope beyond its context": (
        "llama",
        LLAMA | {"rope_parameters": ROPE["dynamic"], "max_position_embeddings": 16},
    ),
    "mistral, window": ("mistral", LLAMA | {"sliding_window": 8}),
    "mistral, no window": ("mistral", LLAMA | {"sliding_window": None}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2, windows in the upper layers": (
        "qwen2",
        LLAMA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, attention bias, windows": (
        "qwen3",
        LLAMA
        | {"head_dim": 16, "attention_bias": True, "use_sliding_window": True}
        | {"sliding_window": 8, "max_window_layers": 2},
    ),
    "olmo2": ("olmo2", LLAMA),
    "olmo2, as many kv heads": ("olmo2", LLAMA | {"num_key_value_heads": 4}),
    "smollm3": ("smollm3", LLAMA | {"num_hidden_layers": 5}),
    "smollm3, windows where nothing turns": (
        "smollm3",
        LLAMA | {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 8},
    ),
    "gemma": ("gemma", LLAMA | {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("gemma2", LLAMA | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma2, low caps": (
        "gemma2",
        LLAMA
        | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 4}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    ),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3, linear scaling of the global layers": (
        "gemma3_text",
        GEMMA3
        | {
            "rope_parameters": GEMMA3_ROPE
            | {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0}}
        },
    ),
    "gemma3, scaling of the windows' layers": (
        "gemma3_text",
        GEMMA3
        | {
            "rope_parameters": GEMMA3_ROPE
            | {"sliding_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 30.0}}
        },
    ),
} | {f"llama, rope {kind}": ("llama", LLAMA | {"rope_parameters": rope}) for kind, rope in ROPE.items()}
GREEDY = [
    *("gpt2", "llama", "llama, rope llama3", "llama, rope yarn", "mistral, window", "qwen2", "qwen3", "olmo2"),
    *("smollm3", "gemma", "gemma2", "gemma3"),
]

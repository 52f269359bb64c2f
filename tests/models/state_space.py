"""Cases of state-space models and their hybrids for test_parity, and architectures for test_properties."""

from collections.abc import Callable
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.models.mamba import mamba2_config, mamba_config

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
}
GREEDY = ["mamba, biases, own rank, untied", "mamba2"]

SIZE = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "max_seq_len": 40}
ARCHITECTURES: dict[str, Callable[[], ModelConfig]] = {
    "mamba": lambda: mamba_config(**SIZE, ssm_state_size=6),
    "mamba2": lambda: mamba2_config(**SIZE, mamba_head_dim=16, ssm_state_size=8, mamba_n_groups=2, mamba_chunk_size=5),
}

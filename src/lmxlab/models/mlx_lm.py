"""What mlx-lm makes of the folders that `export` writes: where its classes fall short of the published ones.

`tests/models/test_export.py` holds this page to mlx-lm itself.
"""

import math

import mlx.core as mx

from lmxlab.core.config import BlockConfig, ModelConfig

# Its classes that always have a head of their own: a tied matrix is written for them a second time.
ALWAYS_A_HEAD = frozenset({"deepseek_v2", "deepseek_v3", "deepseek_v32", "nemotron_h"})
HAS_WINDOWS = frozenset({"gemma3_text"})
UNKNOWN = {
    "qwen3_5_text": "has Qwen 3.5 only with images",
    "llama4_text": "has Llama 4 only with images",
    "deepseek_v32": "is not tested against the sparse attention of DeepSeek-V3.2",
}


def mlx_lm_lacks(config: ModelConfig, model_type: str) -> str | None:
    """Why mlx-lm would not compute this model's logits from its exported folder; None where it does, to 1e-4.

    Args:
        model_type: what `export_model` returns.
    """
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    if model_type in UNKNOWN:
        return UNKNOWN[model_type]
    if model_type not in HAS_WINDOWS and any(map(_windowed, layers)):
        return f"has no sliding windows in {model_type}"
    one = layers[0]
    found = {
        "gpt2": [
            (not config.tie_embeddings, "has only tied embeddings in gpt2"),
            (one.d_ff != 4 * one.d_model, "has only d_ff = 4 d_model in gpt2"),
        ],
        "gemma": [(True, "computes the exact GELU in gemma, where the published model has the tanh form")],
        "gemma3_text": [(not _is_bfloat16(config.block.d_model), "rounds sqrt(d_model) to bfloat16 in gemma3_text")],
        "deepseek_v2": [(one.rope_scaling is None, "has no deepseek_v2 without yarn")],
        "mamba2": [(one.mamba_n_groups > 1, "computes another norm for more than one group in mamba2")],
        "jamba": [(any(layer.n_experts for layer in layers), "weighs the experts of jamba otherwise")],
        "falcon_h1": [(any(map(_normed, layers)), "computes another gated norm in falcon_h1")],
    }
    return next((why for applies, why in found.get(model_type, []) if applies), None)


def _windowed(block: BlockConfig) -> bool:
    return block.window_size is not None and block.window_size < block.max_seq_len


def _normed(block: BlockConfig) -> bool:
    return block.mamba_options is None or block.mamba_options.norm != "none"


def _is_bfloat16(d_model: int) -> bool:
    scale = math.sqrt(d_model)
    return mx.array(scale).astype(mx.bfloat16).item() == mx.array(scale).item()

"""Gemma 3, text: windows with a short rotary base, every sixth layer global with a long one, normalised heads
(2503.19786)."""

import dataclasses
import math
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.models.gemma import (
    GEMMA2_LAYER,
    gemma2_to_hf,
    gemma_block,
    gemma_block_from_hf,
    gemma_model,
    scores_from_hf,
)
from lmxlab.models.hf_config import Converter, HFConfig, rope_from_hf, rope_to_hf, windowed
from lmxlab.models.llama import QK_NORM, llama_rules

LOCAL_THETA = 10000.0


def gemma3_config(
    vocab_size: int = 256000,
    d_model: int = 2048,
    n_heads: int = 8,
    n_kv_heads: int = 4,
    n_layers: int = 26,
    d_ff: int = 16384,
    max_seq_len: int = 8192,
    rope_theta: float = 10000.0,
    window_size: int = 4096,
    global_every: int = 6,
    tie_embeddings: bool = True,
    head_dim: int | None = None,
    rope_scaling: RopeScaling | None = None,
    attention_scale: float | None = None,
) -> ModelConfig:
    """Sliding-window layers with rotary base 10,000, every `global_every`-th layer global with base `rope_theta`.

    `rope_scaling` is the global layers'. Norms before and after each branch, RMSNorm on the heads of q and k, GeGLU.
    """
    local = gemma_block(
        attention="sliding_window_gqa",
        window_size=window_size,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        head_dim=head_dim,
        max_seq_len=max_seq_len,
        rope_theta=LOCAL_THETA,
        qk_norm=True,
        norm_placement="sandwich",
        attention_scale=attention_scale,
    )
    far = dataclasses.replace(
        local, attention="gqa", window_size=None, rope_theta=rope_theta, rope_scaling=rope_scaling
    )
    layers = tuple(far if (i + 1) % global_every == 0 else local for i in range(n_layers))
    return ModelConfig(
        local, vocab_size, n_layers, tie_embeddings, block_configs=layers, embed_scale=math.sqrt(d_model)
    )


def gemma3_tiny() -> ModelConfig:
    """For tests: 4 layers, the last one global, windows of 16, 64 wide."""
    return gemma3_config(256, 64, 4, 2, 4, 128, max_seq_len=128, window_size=16, global_every=4)


def gemma3_1b() -> ModelConfig:
    """Gemma 3 1B, 1.0 B parameters (2503.19786, tables 1 and 2; its released config.json)."""
    return gemma3_config(
        vocab_size=262144,
        d_model=1152,
        n_heads=4,
        n_kv_heads=1,
        d_ff=6912,
        max_seq_len=32768,
        rope_theta=1000000.0,
        window_size=512,
        head_dim=256,
    )


def config_from_gemma3(hf: HFConfig) -> ModelConfig:
    """The config of a Gemma3ForCausalLM (`gemma3_text`)."""
    every, n_layers = hf.get("sliding_window_pattern", 6), hf["num_hidden_layers"]
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(n_layers)]
    theta, scaling = _rope(hf, "full_attention", "rope_theta", 1e6)
    local_theta, local_scaling = _rope(hf, "sliding_attention", "rope_local_base_freq", LOCAL_THETA)
    own = {"qk_norm": True, "norm_placement": "sandwich", **scores_from_hf(hf, softcap=None)}
    block = gemma_block_from_hf(hf, rope_theta=theta, rope_scaling=scaling, **own)
    layers = [
        dataclasses.replace(layer, rope_theta=local_theta, rope_scaling=local_scaling)
        if kind == "sliding_attention"
        else layer
        for layer, kind in zip(windowed(hf, block, kinds), hf.get("layer_types", kinds), strict=True)
    ]
    return gemma_model(hf, layers, hf.get_or_off("final_logit_softcapping", None))


def _rope(hf: HFConfig, kind: str, older: str, default: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one kind of layer: in `rope_parameters[kind]`, or in older files under names of their own."""
    base = hf.get(older, default)
    if "rope_parameters" in hf.fields:
        theta, scaling = rope_from_hf(hf, hf.get("max_position_embeddings", 131072), kind, base)
        return theta, scaling
    if kind == "sliding_attention":
        return float(base), None
    return rope_from_hf(hf, hf.get("max_position_embeddings", 131072), default_theta=base)


def gemma3_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Gemma3ForCausalLM, with the rotary fields of the first releases, which all tools read."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    far = [layer for layer in layers if layer.attention == "gqa"]
    near = [layer for layer in layers if layer.attention != "gqa"]
    fields = gemma2_to_hf(config, **rope_to_hf((far or near)[0]), rope_local_base_freq=(near or far)[0].rope_theta)
    # mlx-lm goes by the pattern, transformers by layer_types.
    first = next((i for i, layer in enumerate(layers) if layer.attention == "gqa"), config.n_layers)
    fields |= {"sliding_window_pattern": first + 1}
    if near and near[0].rope_scaling is not None:  # which only the newer layout can say
        kinds = {"sliding_attention": near[0], "full_attention": (far or near)[0]}
        ropes = {kind: rope_to_hf(layer) for kind, layer in kinds.items()}
        fields["rope_parameters"] = {
            kind: {"rope_type": "default", "rope_theta": rope["rope_theta"], **(rope["rope_scaling"] or {})}
            for kind, rope in ropes.items()
        }
    return fields


GEMMA3 = Converter(
    "gemma3_text", "Gemma3ForCausalLM", config_from_gemma3, gemma3_to_hf, llama_rules(GEMMA2_LAYER | QK_NORM)
)

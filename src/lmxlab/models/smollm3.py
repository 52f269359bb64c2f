"""SmolLM3: LLaMA without rotation in every fourth layer (huggingface.co/blog/smollm3, after 2501.18795)."""

import dataclasses
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import (
    Converter,
    HFConfig,
    block_from_hf,
    decoder,
    decoder_to_hf,
    layer_types_to_hf,
    windowed,
)
from lmxlab.models.llama import LLAMA_LAYER, llama_rules


def smollm3_config(
    vocab_size: int = 128256,
    d_model: int = 2048,
    n_heads: int = 16,
    n_kv_heads: int = 4,
    n_layers: int = 36,
    d_ff: int = 11008,
    max_seq_len: int = 65536,
    rope_theta: float = 5000000.0,
    nope_every: int = 4,
    tie_embeddings: bool = True,
) -> ModelConfig:
    """RMSNorm, grouped-query attention, SwiGLU; RoPE in all layers but every `nope_every`-th."""
    block = decoder_block(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        norm_eps=1e-6,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
    )
    rotated = [(i + 1) % nope_every != 0 for i in range(n_layers)]
    return ModelConfig(
        block, vocab_size, n_layers, tie_embeddings, block_configs=tuple(_layers([block] * n_layers, rotated))
    )


def smollm3_tiny() -> ModelConfig:
    """For tests: 4 layers, the last one without rotation, 64 wide."""
    return smollm3_config(256, 64, 4, 2, 4, 128, max_seq_len=128)


def smollm3_3b() -> ModelConfig:
    """SmolLM3 3B, 3.08 B parameters (its released config.json)."""
    return smollm3_config()


def config_from_smollm3(hf: HFConfig) -> ModelConfig:
    """The config of a SmolLM3ForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    n_layers, every = hf["num_hidden_layers"], hf.get("no_rope_layer_interval", 4)
    rotated = hf.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(n_layers)])
    windows = hf.get("use_sliding_window", False) and hf.get("sliding_window", None)
    kinds = ["sliding_attention" if windows and not turns else "full_attention" for turns in rotated]
    biases = {"attention_bias": hf.get("attention_bias", False), "bias": hf.get("mlp_bias", False)}
    block = block_from_hf(hf, default_theta=2e6, **biases)
    return decoder(hf, _layers(windowed(hf, block, kinds), rotated), tied=True)


def smollm3_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a SmolLM3ForCausalLM."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    windows = layer_types_to_hf(config)
    if "sliding_attention" not in windows["layer_types"]:
        windows = {}
    rotated = next((layer for layer in layers if layer.position == "rope"), config.block)
    return decoder_to_hf(
        config,
        rotated,
        no_rope_layers=[int(layer.position == "rope") for layer in layers],
        use_sliding_window=bool(windows),
        attention_bias=config.block.effective_attention_bias,
        mlp_bias=config.block.bias,
        **windows,
    )


def _layers(blocks: list[BlockConfig], rotated: list[bool] | list[int]) -> list[BlockConfig]:
    unrotated = {"position": "none", "rope_scaling": None}
    return [
        block if turns else dataclasses.replace(block, **unrotated)  # type: ignore[arg-type]
        for block, turns in zip(blocks, rotated, strict=True)
    ]


SMOLLM3 = Converter("smollm3", "SmolLM3ForCausalLM", config_from_smollm3, smollm3_to_hf, llama_rules(LLAMA_LAYER))

"""Qwen 3.5, text: three layers of Gated DeltaNet for one of attention, which has an output gate, normalised heads and
rotates a quarter of their channels (transformers, models/qwen3_5)."""

import dataclasses
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.deltanet import sizes
from lmxlab.errors import UserError
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import (
    Converter,
    HFConfig,
    block_from_hf,
    decoder,
    decoder_to_hf,
    partial_rotary_from_hf,
    rope_from_hf,
)
from lmxlab.models.llama import LLAMA_LAYER, QK_NORM, llama_rules
from lmxlab.models.weight_map import Rule, rename, rule

ROTATED_SHARE = 0.25


def qwen35_config(
    vocab_size: int = 151936,
    d_model: int = 2048,
    n_heads: int = 16,
    n_kv_heads: int = 4,
    n_layers: int = 28,
    d_ff: int = 5504,
    max_seq_len: int = 32768,
    rope_theta: float = 1000000.0,
    global_every: int = 4,
    tie_embeddings: bool = False,
    head_dim: int | None = None,
    linear_n_key_heads: int | None = None,
    linear_n_value_heads: int | None = None,
    linear_key_head_dim: int | None = None,
    linear_value_head_dim: int | None = None,
) -> ModelConfig:
    """Gated DeltaNet with short convolutions, every `global_every`-th layer grouped-query attention with RoPE.

    RMSNorms by 1 + weight, SwiGLU, no biases. The linear layers' sizes are `n_heads` and `head_dim` when not given.
    """
    far = hybrid_attention(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        head_dim=head_dim,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
    )
    linear = linear_layer(
        far,
        linear_n_key_heads=linear_n_key_heads,
        linear_n_value_heads=linear_n_value_heads,
        linear_key_head_dim=linear_key_head_dim,
        linear_value_head_dim=linear_value_head_dim,
    )
    layers = tuple(far if (i + 1) % global_every == 0 else linear for i in range(n_layers))
    return ModelConfig(linear, vocab_size, n_layers, tie_embeddings, block_configs=layers)


def hybrid_attention(**fields: Any) -> BlockConfig:
    """The attention layers' block: `decoder_block` with what Qwen3-Next and Qwen3.5 add to it."""
    own = {"norm_plus_one": True, "norm_eps": 1e-6, "qk_norm": True, "output_gate": True}
    return decoder_block(**{**own, "partial_rotary_factor": ROTATED_SHARE, **fields})


def linear_layer(far: BlockConfig, **linear: int | None) -> BlockConfig:
    """The block of the Gated DeltaNet layers beside those of attention."""
    plain: dict[str, Any] = {"position": "none", "rope_scaling": None, "partial_rotary_factor": 1.0}
    plain |= {"qk_norm": False, "output_gate": False, "attention_bias": None}
    return dataclasses.replace(far, attention="gated_deltanet", use_short_conv=True, **{**plain, **linear})


def qwen35_tiny() -> ModelConfig:
    """For tests: 4 layers, the last one of attention, 64 wide."""
    return qwen35_config(256, 64, 4, 2, 4, 128, max_seq_len=128)


def qwen35_9b() -> ModelConfig:
    """Qwen3.5 9B, 8.95 B parameters without its vision tower (the defaults of transformers' Qwen3_5TextConfig)."""
    return qwen35_config(
        vocab_size=248320,
        d_model=4096,
        n_layers=32,
        d_ff=12288,
        max_seq_len=262144,
        rope_theta=1e7,
        head_dim=256,
        linear_n_key_heads=16,
        linear_n_value_heads=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
    )


def qwen35_27b() -> ModelConfig:
    """Qwen3.5 27B, 26.9 B parameters without its vision tower (its released config.json)."""
    return qwen35_config(
        vocab_size=248320,
        d_model=5120,
        n_heads=24,
        n_layers=64,
        d_ff=17408,
        max_seq_len=262144,
        rope_theta=1e7,
        head_dim=256,
        linear_n_key_heads=16,
        linear_n_value_heads=48,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
    )


def config_from_qwen35(hf: HFConfig) -> ModelConfig:
    """The config of a Qwen3_5ForCausalLM (`qwen3_5_text`)."""
    return decoder(hf, hybrid_layers(hf))


def hybrid_layers(hf: HFConfig, **own: Any) -> list[BlockConfig]:
    """A block per layer from `layer_types`: "linear_attention" or "full_attention"."""
    hf.refuse_unless(hidden_act="silu")
    # Sections of channels turn by the row and column of an image patch; of text all are the same position.
    length = hf.get("max_position_embeddings", 32768)
    theta, scaling = rope_from_hf(hf, length, partial=True, harmless=("mrope_section", "mrope_interleaved"))
    far = block_from_hf(
        hf,
        rope_theta=theta,
        rope_scaling=scaling,
        max_seq_len=length,
        head_dim=hf.get("head_dim", 256),
        attention_bias=hf.get("attention_bias", False),
        norm_plus_one=True,
        qk_norm=True,
        output_gate=True,
        partial_rotary_factor=partial_rotary_from_hf(hf, ROTATED_SHARE),
        **own,
    )
    linear = linear_layer(
        far,
        conv_kernel_size=hf.get("linear_conv_kernel_dim", 4),
        linear_n_key_heads=hf.get("linear_num_key_heads", 16),
        linear_n_value_heads=hf.get("linear_num_value_heads", 32),
        linear_key_head_dim=hf.get("linear_key_head_dim", 128),
        linear_value_head_dim=hf.get("linear_value_head_dim", 128),
    )
    n_layers, every = hf["num_hidden_layers"], hf.get("full_attention_interval", 4)
    usual = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(n_layers)]
    table, kinds = {"linear_attention": linear, "full_attention": far}, hf.get("layer_types", usual)
    if len(kinds) != n_layers or not set(kinds) <= table.keys():
        raise UserError(f"Unsupported layer_types in a {hf.model_type} config: {kinds}; {n_layers} of {sorted(table)}")
    return [table[kind] for kind in kinds]


def qwen35_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Qwen3_5ForCausalLM."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    linear = next((layer for layer in layers if layer.attention == "gated_deltanet"), config.block)
    far = next((layer for layer in layers if layer.attention != "gated_deltanet"), None)
    kinds = ["linear_attention" if layer.attention == "gated_deltanet" else "full_attention" for layer in layers]
    first = kinds.index("full_attention") + 1 if far else config.n_layers + 1
    key_heads, value_heads, key_dim, value_dim = sizes(linear)
    return decoder_to_hf(
        config,
        far,
        attention_bias=bool(far and far.effective_attention_bias),
        partial_rotary_factor=far.partial_rotary_factor if far else ROTATED_SHARE,
        layer_types=kinds,
        full_attention_interval=first,  # mlx-lm goes by it, transformers by layer_types
        linear_conv_kernel_dim=linear.conv_kernel_size,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim,
    )


def is_linear(layer: BlockConfig) -> bool:
    """Whether a layer is of Gated DeltaNet."""
    return layer.attention == "gated_deltanet"


# What the Gated DeltaNet layers of Qwen3-Next and Qwen3.5 name alike.
LINEAR_RULES = [
    *rename(
        {
            "linear_attn.conv1d": "attention.conv",
            "linear_attn.A_log": "attention.A_log",
            "linear_attn.dt_bias": "attention.dt_bias",
            "linear_attn.norm": "attention.norm",
        }
    ),
    rule("linear_attn.out_proj", "attention.o_proj", when=is_linear),
]
QWEN35_LINEAR: list[Rule] = [
    *LINEAR_RULES,
    *rename(
        {
            "linear_attn.in_proj_qkv": "attention.qkv_proj",
            "linear_attn.in_proj_z": "attention.gate_proj",
            "linear_attn.in_proj_b": "attention.beta_proj",
            "linear_attn.in_proj_a": "attention.decay_proj",
        }
    ),
]
QWEN35 = Converter(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    config_from_qwen35,
    qwen35_to_hf,
    llama_rules(LLAMA_LAYER | QK_NORM, *QWEN35_LINEAR),
    ignored=r"mtp\..*",
)

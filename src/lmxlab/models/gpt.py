"""GPT: LayerNorm, full attention, GELU; with sinusoidal positions, or as GPT-2 really is."""

import math
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.hf_config import Converter, HFConfig
from lmxlab.models.weight_map import Split, Transpose, per_layer, rename, rule


def gpt_config(
    vocab_size: int = 50257,
    d_model: int = 768,
    n_heads: int = 12,
    n_layers: int = 12,
    d_ff: int = 3072,
    max_seq_len: int = 1024,
    tie_embeddings: bool = True,
    dropout: float = 0.0,
    mup_base_width: int | None = None,
) -> ModelConfig:
    """A pre-norm GPT with sinusoidal positions and biases; `mup_base_width` also sets the block's muP scale.

    Embeddings are scaled by sqrt(d_model), as Vaswani et al. 2017 (section 3.4) do where they add sinusoids: these
    have amplitude 1 and would drown embeddings of standard deviation 0.02. Under muP the scale is that of the base
    width, for it may not grow with the width.
    """
    block = BlockConfig(
        attention="mha",
        ffn="standard",
        norm="layer_norm",
        position="sinusoidal",
        d_model=d_model,
        n_heads=n_heads,
        d_ff=d_ff,
        max_seq_len=max_seq_len,
        dropout=dropout,
        mup=mup_base_width is not None,
    )
    return ModelConfig(
        block,
        vocab_size,
        n_layers,
        tie_embeddings,
        mup_base_width=mup_base_width,
        embed_scale=math.sqrt(mup_base_width or d_model),
    )


def gpt_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide."""
    return gpt_config(vocab_size=256, d_model=64, n_heads=2, n_layers=2, d_ff=128, max_seq_len=128)


def gpt_small() -> ModelConfig:
    """12 layers, 768 wide."""
    return gpt_config()


def gpt_medium() -> ModelConfig:
    """24 layers, 1024 wide."""
    return gpt_config(d_model=1024, n_heads=16, n_layers=24, d_ff=4096)


def gpt_10m() -> ModelConfig:
    """About 9.6 M parameters: 16 layers, 128 wide, GPT-2's vocabulary."""
    return gpt_config(d_model=128, n_heads=4, n_layers=16, d_ff=512, max_seq_len=512)


def gpt_30m() -> ModelConfig:
    """About 30.2 M parameters: 22 layers, 256 wide, GPT-2's vocabulary."""
    return gpt_config(d_model=256, n_heads=8, n_layers=22, d_ff=1024)


def gpt2_config(
    vocab_size: int = 50257,
    d_model: int = 768,
    n_heads: int = 12,
    n_layers: int = 12,
    d_ff: int | None = None,
    max_seq_len: int = 1024,
    dropout: float = 0.0,
    bias: bool = True,
) -> ModelConfig:
    """GPT-2 as published: learned positions, tanh-GELU, tied embeddings (Radford et al. 2019).

    Args:
        d_ff: 4 d_model when None.
        dropout: 0.1 in the published training.
        bias: False is nanoGPT's variant without any bias.
    """
    block = BlockConfig(
        attention="mha",
        ffn="standard",
        norm="layer_norm",
        position="learned",
        d_model=d_model,
        n_heads=n_heads,
        d_ff=4 * d_model if d_ff is None else d_ff,
        max_seq_len=max_seq_len,
        dropout=dropout,
        bias=bias,
        activation="gelu_tanh",
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings=True)


def gpt2_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide."""
    return gpt2_config(vocab_size=256, d_model=64, n_heads=2, n_layers=2, d_ff=128, max_seq_len=128)


def gpt2() -> ModelConfig:
    """GPT-2 small, 124 M parameters (Radford et al. 2019, table 2)."""
    return gpt2_config()


def gpt2_medium() -> ModelConfig:
    """GPT-2 medium, 355 M parameters (Radford et al. 2019, table 2)."""
    return gpt2_config(d_model=1024, n_heads=16, n_layers=24)


def gpt2_large() -> ModelConfig:
    """GPT-2 large, 774 M parameters (Radford et al. 2019, table 2)."""
    return gpt2_config(d_model=1280, n_heads=20, n_layers=36)


def gpt2_xl() -> ModelConfig:
    """GPT-2 XL, 1558 M parameters (Radford et al. 2019, table 2)."""
    return gpt2_config(d_model=1600, n_heads=25, n_layers=48)


def config_from_gpt2(hf: HFConfig) -> ModelConfig:
    """The config of a GPT2LMHeadModel. Dropout is a choice of training and is not taken over."""
    hf.require("vocab_size", "n_embd", "n_layer", "n_head")
    hf.refuse_unless(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False, pruned_heads={}
    )
    block = BlockConfig(
        attention="mha",
        ffn="standard",
        norm="layer_norm",
        position="learned",
        d_model=hf["n_embd"],
        n_heads=hf["n_head"],
        d_ff=hf.get("n_inner", 4 * hf["n_embd"]),
        max_seq_len=hf.get("n_positions", 1024),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=hf.choose(
            "activation_function",
            {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"},
            default="gelu_new",
        ),
    )
    return ModelConfig(block, hf["vocab_size"], hf["n_layer"], tie_embeddings=hf.get("tie_word_embeddings", True))


def gpt2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a GPT2LMHeadModel."""
    block = config.block
    return {
        "vocab_size": config.vocab_size,
        "n_embd": block.d_model,
        "n_layer": config.n_layers,
        "n_head": block.n_heads,
        "n_inner": block.d_ff,
        "n_positions": block.max_seq_len,
        "n_ctx": block.max_seq_len,
        "layer_norm_epsilon": block.norm_eps,
        "activation_function": "gelu_new" if block.activation == "gelu_tanh" else "gelu",
        "tie_word_embeddings": config.tie_embeddings,
    }


# The names of the published files; save_pretrained puts "transformer." before most of them. Its matrices are (in, out).
GPT2_RULES = [
    *rename({"wte": "embed", "wpe": "embed_position", "ln_f": "final_norm", "lm_head": "head"}),
    *per_layer(
        "h.{i}.",
        [
            *rename({"ln_1": "attn_norm", "ln_2": "ffn_norm"}),
            rule(
                "attn.c_attn",
                ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                *(Transpose(1, 0), Split(0)),
            ),
            rule("attn.c_proj", "attention.o_proj", Transpose(1, 0)),
            rule("mlp.c_fc", "ffn.up", Transpose(1, 0)),
            rule("mlp.c_proj", "ffn.down", Transpose(1, 0)),
        ],
    ),
]
GPT2 = Converter("gpt2", "GPT2LMHeadModel", config_from_gpt2, gpt2_to_hf, GPT2_RULES, prefix="transformer.")

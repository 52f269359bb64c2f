"""Falcon-H1 (2507.22448): attention and Mamba-2 in parallel in every block, with constant multipliers found by muP."""

from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.core.mamba2 import heads_of
from lmxlab.core.mamba_options import MambaOptions, Multipliers
from lmxlab.errors import UserError
from lmxlab.models.decoder import decoder_block, layered
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf
from lmxlab.models.mamba import MAMBA2_MIXER, dt_limits, dt_limits_to_hf, inner_width, under
from lmxlab.models.weight_map import per_layer, rename

# The mixer of each kind of layer, and whether it rotates.
KINDS = {
    "M": {"attention": "mamba2", "position": "none"},
    "*": {"attention": "gqa", "position": "rope"},
    "H": {"attention": "gqa_mamba2", "position": "rope"},
}


# At laboratory size.
LAB = {
    "hybrid_pattern": "HHHH",
    **{"mamba_n_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 32, "mamba_n_groups": 1, "mamba_chunk_size": 32},
}


def falcon_h1_config(
    hybrid_pattern: str = "MMMM*MMM*MMM*MMM*",
    vocab_size: int = 65024,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    d_ff: int = 14336,
    mamba_n_heads: int = 64,
    mamba_head_dim: int = 64,
    ssm_state_size: int = 128,
    mamba_expand: int = 2,
    mamba_n_groups: int = 8,
    mamba_chunk_size: int = 256,
    conv_kernel_size: int = 4,
    max_seq_len: int = 8192,
    rope_theta: float = 500000.0,
    tie_embeddings: bool = False,
    head_dim: int | None = None,
    mamba_norm: str = "after_gate",
    multipliers: Multipliers | None = None,
    embed_scale: float = 1.0,
    logit_scale: float = 1.0,
) -> ModelConfig:
    """Blocks of a mixer and a gated FFN.

    Args:
        hybrid_pattern: the mixer of each layer: M for Mamba-2, * for attention, H for both in parallel, which is what
            the published models have in every layer.
        mamba_norm: where the mixer's norm stands, see `MambaOptions`.
        multipliers, embed_scale, logit_scale: constant factors; `multipliers` goes with H alone.
    """
    unknown = sorted(set(hybrid_pattern) - KINDS.keys())
    if unknown or not hybrid_pattern:
        raise UserError(f"Unknown pattern {unknown or hybrid_pattern!r}: each layer is one of {list(KINDS)}")
    width = inner_width(d_model, mamba_expand, mamba_n_heads, mamba_head_dim)
    options = MambaOptions(d_inner=width, norm=mamba_norm)
    mamba = {
        "mamba_n_heads": mamba_n_heads,
        "mamba_head_dim": mamba_head_dim,
        "ssm_state_size": ssm_state_size,
        "mamba_expand": mamba_expand,
        "mamba_n_groups": mamba_n_groups,
        "mamba_chunk_size": mamba_chunk_size,
        "conv_kernel_size": conv_kernel_size,
        "mamba_options": None if options == MambaOptions() else options,
    }
    common = {
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "d_ff": d_ff,
        "max_seq_len": max_seq_len,
        "rope_theta": rope_theta,
        "multipliers": multipliers,
    }
    blocks = [decoder_block(**common, **KINDS[kind], **({} if kind == "*" else mamba)) for kind in hybrid_pattern]
    return layered(blocks, vocab_size, tie_embeddings, embed_scale=embed_scale, logit_scale=logit_scale)


def falcon_h1_tiny() -> ModelConfig:
    """For tests: three layers of Mamba-2 and one of attention, 64 wide."""
    return falcon_h1_config(
        "MMM*",
        vocab_size=256,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        d_ff=128,
        mamba_n_heads=4,
        mamba_head_dim=32,
        ssm_state_size=16,
        mamba_n_groups=2,
        mamba_chunk_size=32,
        max_seq_len=128,
    )


def falcon_h1_10m() -> ModelConfig:
    """About 9.9 M parameters: 12 layers, every fourth of attention, 128 wide, GPT-2's vocabulary, tied."""
    return falcon_h1_config(
        "MMM*" * 3,
        vocab_size=50257,
        d_model=128,
        n_heads=4,
        n_kv_heads=2,
        d_ff=512,
        mamba_n_heads=4,
        mamba_head_dim=64,
        ssm_state_size=32,
        mamba_n_groups=1,
        max_seq_len=2048,
        tie_embeddings=True,
    )


def falcon_h1_0_5b() -> ModelConfig:
    """Falcon-H1 0.5B, 521 M parameters (2507.22448, table 2, and tiiuae/Falcon-H1-0.5B-Base)."""
    return falcon_h1_config(
        "H" * 36,
        vocab_size=32784,
        d_model=1024,
        n_heads=8,
        n_kv_heads=2,
        head_dim=64,
        d_ff=2048,
        mamba_n_heads=24,
        mamba_n_groups=1,
        mamba_chunk_size=128,
        max_seq_len=16384,
        rope_theta=1e11,
        mamba_norm="none",
        multipliers=Multipliers(
            attention_out=0.9375,
            key=0.390625,
            ssm_in=1.25,
            ssm_out=0.23570226039551587,
            ssm_z=0.3535533905932738,
            ssm_x=0.25,
            ssm_b=0.3535533905932738,
            ssm_c=0.5,
            ssm_dt=0.3535533905932738,
            mlp_gate=0.8838834764831844,
            mlp_down=0.5859375,
        ),
        embed_scale=5.656854249492381,
        logit_scale=0.0390625,
    )


def config_from_falcon_h1(hf: HFConfig) -> ModelConfig:
    """The config of a FalconH1ForCausalLM."""
    hf.refuse_unless(hidden_act="silu", mamba_use_mlp=True, sliding_window=None)
    for name in ("num_logits_to_keep", "mlp_expansion_factor", "attn_layer_indices", "rope_traditional"):
        hf.get(name, None)
    ssm_bias = hf.get("mamba_proj_bias", False)
    hf.refuse_unless(projectors_bias=ssm_bias)
    d_model, expand = hf.get("hidden_size", 0), hf.get("mamba_expand", 2)
    width, heads = hf.get("mamba_d_ssm", None) or expand * d_model, hf.get("mamba_n_heads", 128)
    head_dim = hf.get("mamba_d_head", "auto")
    gated = "before_gate" if hf.get("mamba_norm_before_gate", True) else "after_gate"
    z, x, b, c, dt = hf.get("ssm_multipliers", None) or [1.0] * 5
    mlp_gate, mlp_down = hf.get("mlp_multipliers", None) or [1.0] * 2
    factors = Multipliers(
        attention_in=hf.get("attention_in_multiplier", 1.0),
        attention_out=hf.get("attention_out_multiplier", 1.0),
        key=hf.get("key_multiplier", 1.0),
        ssm_in=hf.get("ssm_in_multiplier", 1.0),
        ssm_out=hf.get("ssm_out_multiplier", 1.0),
        ssm_z=z,
        ssm_x=x,
        ssm_b=b,
        ssm_c=c,
        ssm_dt=dt,
        mlp_gate=mlp_gate,
        mlp_down=mlp_down,
    )
    block = block_from_hf(
        hf,
        **KINDS["H"],
        bias=hf.get("mlp_bias", False),
        attention_bias=hf.get("attention_bias", False),
        norm_eps=hf.get("rms_norm_eps", 1e-5),
        mamba_n_heads=heads,
        mamba_head_dim=width // heads if head_dim == "auto" else head_dim,
        ssm_state_size=hf.get("mamba_d_state", 256),
        mamba_expand=expand,
        mamba_n_groups=hf.get("mamba_n_groups", 1),
        mamba_chunk_size=hf.get("mamba_chunk_size", 256),
        conv_kernel_size=hf.get("mamba_d_conv", 4),
        mamba_options=MambaOptions(
            d_inner=None if width == expand * d_model else width,
            bias=None if ssm_bias == hf.get("mlp_bias", False) else ssm_bias,
            conv_bias=hf.get("mamba_conv_bias", True),
            norm=gated if hf.get("mamba_rms_norm", False) else "none",
            **dt_limits(hf),
        ),
        multipliers=None if factors == Multipliers() else factors,
    )
    scales = {"embed_scale": hf.get("embedding_multiplier", 1.0), "logit_scale": hf.get("lm_head_multiplier", 1.0)}
    return decoder(hf, [block] * hf["num_hidden_layers"], **scales)


def falcon_h1_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a FalconH1ForCausalLM."""
    block = config.block
    options, factors = block.mamba_options or MambaOptions(), block.multipliers or Multipliers()
    bias = block.bias if options.bias is None else options.bias
    heads, head_dim = heads_of(block)
    return decoder_to_hf(
        config,
        attention_bias=block.effective_attention_bias,
        mlp_bias=block.bias,
        projectors_bias=bias,
        mamba_proj_bias=bias,
        mamba_conv_bias=options.conv_bias,
        mamba_d_ssm=heads * head_dim,
        mamba_n_heads=heads,
        mamba_d_head=head_dim,
        mamba_n_groups=block.mamba_n_groups,
        mamba_d_state=block.ssm_state_size,
        mamba_d_conv=block.conv_kernel_size,
        mamba_expand=block.mamba_expand,
        mamba_chunk_size=block.mamba_chunk_size,
        mamba_rms_norm=options.norm != "none",
        mamba_norm_before_gate=options.norm == "before_gate",
        time_step_limit=dt_limits_to_hf(options),
        embedding_multiplier=config.embed_scale,
        lm_head_multiplier=config.logit_scale,
        attention_in_multiplier=factors.attention_in,
        attention_out_multiplier=factors.attention_out,
        key_multiplier=factors.key,
        ssm_in_multiplier=factors.ssm_in,
        ssm_out_multiplier=factors.ssm_out,
        ssm_multipliers=[factors.ssm_z, factors.ssm_x, factors.ssm_b, factors.ssm_c, factors.ssm_dt],
        mlp_multipliers=[factors.mlp_gate, factors.mlp_down],
    )


OUTER = {"model.embed_tokens": "embed", "model.final_layernorm": "final_norm", "lm_head": "head"}
LAYER = {
    "input_layernorm": "attn_norm",
    "pre_ff_layernorm": "ffn_norm",
    **under("self_attn", {name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}, "attention.gqa"),
    **under("mamba", MAMBA2_MIXER, "attention.mamba"),
    **under("feed_forward", {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}, "ffn"),
}
FALCON_H1 = Converter(
    "falcon_h1",
    "FalconH1ForCausalLM",
    config_from_falcon_h1,
    falcon_h1_to_hf,
    [*rename(OUTER), *per_layer("model.layers.{i}.", rename(LAYER))],
)

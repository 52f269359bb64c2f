"""Jamba (2403.19887): Mamba mixers with attention in every eighth layer, experts in every second, no positions."""

import math
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.errors import UserError
from lmxlab.models.decoder import decoder_block
from lmxlab.models.experts import expert_rules
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf
from lmxlab.models.mamba import MAMBA1_MIXER, OF_OTHERS, inner_width, under
from lmxlab.models.weight_map import per_layer, rename, rule

# At laboratory size.
LAB = {"mixer": "mamba1", "attn_every": 4, "attn_offset": 2, "moe_offset": 1, "n_experts": 4}


def jamba_config(
    vocab_size: int = 65536,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    n_layers: int = 32,
    d_ff: int = 14336,
    mamba_n_heads: int = 64,
    mamba_head_dim: int = 64,
    ssm_state_size: int = 16,
    mamba_expand: int = 2,
    mamba_n_groups: int = 1,
    mamba_chunk_size: int = 256,
    conv_kernel_size: int = 4,
    n_experts: int = 16,
    top_k_experts: int = 2,
    moe_every: int = 2,
    attn_every: int = 4,
    max_seq_len: int = 4096,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = False,
    mixer: str = "mamba2",
    attn_offset: int | None = None,
    moe_offset: int | None = None,
) -> ModelConfig:
    """Mamba layers and attention layers, each with a gated FFN or a mixture of such as experts.

    The published models are `mixer="mamba1", attn_every=8, attn_offset=4, moe_offset=1`.

    Args:
        mamba_n_heads, mamba_head_dim, mamba_n_groups, mamba_chunk_size: of Mamba-2 alone.
        attn_every, attn_offset: attention in the layers i with i % attn_every == attn_offset; the offset is that of the
            last layer of each period when not given.
        moe_every, moe_offset: experts in the layers i with i % moe_every == moe_offset; without an offset in every
            moe_every-th attention layer and in no other.
        rope_theta: of the config alone: no layer rotates.
        mixer: "mamba2", or "mamba1" with norms on dt, B and C.
    """
    if mixer not in ("mamba1", "mamba2"):
        raise UserError(f"mixer is {mixer!r}; it must be 'mamba1' or 'mamba2'")
    common = {
        "position": "none",
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
        "norm_eps": 1e-6,
        "max_seq_len": max_seq_len,
        "rope_theta": rope_theta,
    }
    mamba: dict[str, Any] = {
        "attention": mixer,
        "ssm_state_size": ssm_state_size,
        "mamba_expand": mamba_expand,
        "conv_kernel_size": conv_kernel_size,
    }
    if mixer == "mamba1":
        mamba["mamba_bc_norm"] = True
    else:
        width = inner_width(d_model, mamba_expand, mamba_n_heads, mamba_head_dim)
        mamba |= {
            "mamba_n_heads": mamba_n_heads,
            "mamba_head_dim": mamba_head_dim,
            "mamba_n_groups": mamba_n_groups,
            "mamba_chunk_size": mamba_chunk_size,
            "mamba_options": None if width is None else MambaOptions(d_inner=width),
        }
    experts = {"ffn": "moe", "n_experts": n_experts, "top_k_experts": top_k_experts, "router_normalized": False}
    attends = _periodic(n_layers, attn_every, attn_every - 1 if attn_offset is None else attn_offset)
    if moe_offset is None:
        routes = [attends[i] and sum(attends[: i + 1]) % moe_every == 0 for i in range(n_layers)]
    else:
        routes = _periodic(n_layers, moe_every, moe_offset)
    blocks = [
        decoder_block(**common, **({} if attention else mamba), **(experts if moe else {}))
        for attention, moe in zip(attends, routes, strict=True)
    ]
    return ModelConfig(blocks[0], vocab_size, n_layers, tie_embeddings, tuple(blocks))


def jamba_tiny() -> ModelConfig:
    """For tests: 8 layers, 64 wide, attention in two of them, 2 of 4 experts in one."""
    return jamba_config(
        vocab_size=256,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        n_layers=8,
        d_ff=128,
        mamba_n_heads=4,
        mamba_head_dim=32,
        mamba_chunk_size=32,
        n_experts=4,
        max_seq_len=128,
    )


def jamba_10m() -> ModelConfig:
    """About 9.7 M parameters: 12 layers, 128 wide, GPT-2's vocabulary, tied."""
    return jamba_config(
        vocab_size=50257,
        d_model=128,
        n_heads=4,
        n_kv_heads=2,
        n_layers=12,
        d_ff=384,
        mamba_n_heads=4,
        mamba_head_dim=64,
        n_experts=4,
        max_seq_len=2048,
        tie_embeddings=True,
    )


def jamba_v0_1() -> ModelConfig:
    """Jamba v0.1, 51.57 B parameters (2403.19887, section 3, and ai21labs/Jamba-v0.1)."""
    return jamba_config(mixer="mamba1", attn_every=8, attn_offset=4, moe_offset=1, max_seq_len=262144)


def jamba_1_5_mini() -> ModelConfig:
    """Jamba 1.5 Mini: the shape of Jamba v0.1, trained further (2408.12570)."""
    return jamba_v0_1()


def _periodic(n_layers: int, every: int, offset: int) -> list[bool]:
    return [i % every == offset for i in range(n_layers)]


def config_from_jamba(hf: HFConfig) -> ModelConfig:
    """The config of a JambaForCausalLM."""
    hf.refuse_unless(hidden_act="silu", sliding_window=None)
    for name in (*OF_OTHERS, "use_mamba_kernels", "num_logits_to_keep", "mamba_inner_layernorms"):
        hf.get(name, None)
    hf.require("hidden_size", "num_hidden_layers")
    n_layers, n_experts = hf["num_hidden_layers"], hf.get("num_experts", 16)
    rank, derived = hf.get("mamba_dt_rank", "auto"), math.ceil(hf["hidden_size"] / 16)
    options = MambaOptions(
        bias=hf.get("mamba_proj_bias", False) or None,
        conv_bias=hf.get("mamba_conv_bias", True),
        dt_rank=None if rank in ("auto", derived) else rank,
    )
    experts = {
        "ffn": "moe",
        "n_experts": n_experts,
        "top_k_experts": hf.get("num_experts_per_tok", 2),
        "router_normalized": False,
    }
    mamba = {
        "attention": "mamba1",
        "ssm_state_size": hf.get("mamba_d_state", 16),
        "mamba_expand": hf.get("mamba_expand", 2),
        "conv_kernel_size": hf.get("mamba_d_conv", 4),
        "mamba_bc_norm": True,
        "mamba_options": None if options == MambaOptions() else options,
    }
    attends = _periodic(n_layers, hf.get("attn_layer_period", 8), hf.get("attn_layer_offset", 4))
    routes = _periodic(n_layers, hf.get("expert_layer_period", 2), hf.get("expert_layer_offset", 1))
    position = {"position": "none", "rope_theta": 10000.0, "rope_scaling": None}
    for name in ("rope_theta", "rope_parameters", "rope_scaling"):
        hf.get(name, None)  # no layer rotates
    blocks = [
        block_from_hf(hf, **position, **({} if attention else mamba), **(experts if moe and n_experts > 1 else {}))
        for attention, moe in zip(attends, routes, strict=True)
    ]
    return decoder(hf, blocks)


def jamba_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a JambaForCausalLM."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    mamba = next((layer for layer in layers if layer.attention == "mamba1"), config.block)
    routed = next((layer for layer in layers if layer.ffn == "moe"), None)
    options = mamba.mamba_options or MambaOptions()
    attn_every, attn_offset = _period([layer.attention != "mamba1" for layer in layers])
    moe_every, moe_offset = _period([layer.ffn == "moe" for layer in layers])
    return decoder_to_hf(
        config,
        attn_layer_period=attn_every,
        attn_layer_offset=attn_offset,
        expert_layer_period=moe_every,
        expert_layer_offset=moe_offset,
        num_experts=1 if routed is None else routed.n_experts,
        num_experts_per_tok=1 if routed is None else routed.top_k_experts,
        mamba_d_state=mamba.ssm_state_size,
        mamba_d_conv=mamba.conv_kernel_size,
        mamba_expand=mamba.mamba_expand,
        mamba_dt_rank=options.dt_rank or math.ceil(mamba.d_model / 16),
        mamba_conv_bias=options.conv_bias,
        mamba_proj_bias=bool(options.bias),
        use_mamba_kernels=False,
    )


def _period(marked: list[bool]) -> tuple[int, int]:
    """(period, offset) of the marked layers; a period beyond the last layer where there is one mark, or none."""
    where = [i for i, mark in enumerate(marked) if mark]
    if not where:
        return len(marked) + 1, len(marked)
    return (where[1] - where[0] if len(where) > 1 else len(marked)), where[0]


OUTER = {"model.embed_tokens": "embed", "model.final_layernorm": "final_norm", "lm_head": "head"}
MIXER = {**MAMBA1_MIXER, **{f"{name}_layernorm": f"{name}_norm" for name in ("dt", "b", "c")}}
LAYER = {
    "input_layernorm": "attn_norm",
    "pre_ff_layernorm": "ffn_norm",
    **under("self_attn", {name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}),
    **under("mamba", {name: own for name, own in MIXER.items() if own != "o_proj"}),
    **under("feed_forward", {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}, "ffn"),
}
JAMBA = Converter(
    "jamba",
    "JambaForCausalLM",
    config_from_jamba,
    jamba_to_hf,
    [
        *rename(OUTER),
        *per_layer(
            "model.layers.{i}.",
            [
                *expert_rules("feed_forward", router="router"),
                rule("mamba.out_proj", "attention.o_proj", when=lambda block: block.attention == "mamba1"),
                *rename(LAYER),
            ],
        ),
    ],
)

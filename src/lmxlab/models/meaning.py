"""What a model's forward pass depends on, in one form for all configs that mean the same."""

import dataclasses
import math
from typing import Any

from lmxlab.core import deltanet, mamba2, mla
from lmxlab.core.component_fields import MIXTURES, ROTATES_ITSELF, ROUTED
from lmxlab.core.components import ffn_registry
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.fields import Derived
from lmxlab.core.mamba_options import MambaOptions, Multipliers
from lmxlab.core.rope_scaling import RopeScaling

# Of training, of how a thing is computed, or replaced by what they lead to.
LEFT_OUT = (
    *("dropout", "mamba_chunk_size", "mup", "router_balance_step"),
    *("pre_norm", "attention_bias", "output_bias", "attention_scale", "mamba_expand"),
)

# What only a mixture of experts reads.
OF_MIXTURES = (
    *ROUTED,
    *("n_shared_experts", "shared_expert_d_ff", "shared_expert_gate", "moe_latent_size", "top_k_experts"),
    *("moe_routed_scaling_factor", "moe_n_groups", "moe_topk_groups"),
)


def meaning(config: ModelConfig) -> dict[str, Any]:
    """By name, what the logits of a model in evaluation depend on; what differs by layer, as a list.

    Dropout and extra prediction heads are training's; defaults are written out; what a component ignores is left out.
    """
    own: dict[str, Any] = {name: getattr(config, name) for name in ("vocab_size", "n_layers", "tie_embeddings")}
    own |= {"embed_scale": _number(config.embed_scale), "logit_softcap": config.logit_softcap}
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    training = {"block", "block_configs", "mup_base_width", "mtp_n_predict", "mtp_lambda", "gradient_checkpointing"}
    own |= {name: _number(getattr(config, name)) for name in sorted(known - training - own.keys())}
    if config.mup_base_width is not None and config.width_mult != 1:
        own["mup_base_width"] = config.mup_base_width
    template = _block_meaning(config.block)
    own |= {f"final {name}": template.get(name) for name in ("norm", "norm_eps", "norm_plus_one")}
    layers = [_block_meaning(config.get_block_config(i)) for i in range(config.n_layers)]
    for name in sorted({name for layer in layers for name in layer}):
        values = [layer.get(name) for layer in layers]
        own[name] = values[0] if all(value == values[0] for value in values) else values
    return own


def _block_meaning(block: BlockConfig) -> dict[str, Any]:
    fields = {f.name: getattr(block, f.name) for f in dataclasses.fields(block) if f.name not in LEFT_OUT}
    fields["norm_placement"] = block.effective_norm_placement
    fields["multipliers"] = block.multipliers or Multipliers()
    if block.attention == "mha":
        fields |= {"attention": "gqa", "n_kv_heads": block.n_heads}
    if block.attention == "none" or block.attention.startswith("mamba"):
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            del fields[name]
    else:
        output_bias = block.effective_attention_bias if block.output_bias is None else block.output_bias
        fields |= {
            "n_kv_heads": fields["n_kv_heads"] or block.n_heads,
            "attention_bias": block.effective_attention_bias,
            "output_bias": output_bias,
            "attention_scale": block.effective_attention_scale,
        }
    if block.attention == "gated_deltanet":
        names = ("linear_n_key_heads", "linear_n_value_heads", "linear_key_head_dim", "linear_value_head_dim")
        fields |= dict(zip(names, deltanet.sizes(block), strict=True))
    if "mamba" in block.attention:
        fields |= _mamba_meaning(block)
    if block.attention in ROTATES_ITSELF:
        fields |= _latent_meaning(block)
    elif block.position != "rope":
        del fields["rope_theta"], fields["rope_scaling"]
    if block.ffn in MIXTURES:
        fields |= _mixture_meaning(block)
    else:
        fields |= dict.fromkeys(OF_MIXTURES)
    if block.activation is None and block.ffn not in MIXTURES:
        fields["activation"] = {"standard": "gelu", "gated": "silu"}.get(block.ffn)
    return {name: _number(value) for name, value in fields.items() if value is not None}


def _mamba_meaning(block: BlockConfig) -> dict[str, Any]:
    options = block.mamba_options or MambaOptions()
    inner = options.d_inner or block.d_model * block.mamba_expand
    options = dataclasses.replace(options, d_inner=inner, bias=block.bias if options.bias is None else options.bias)
    if block.attention == "mamba1":
        rank = options.dt_rank or math.ceil(block.d_model / 16)
        return {"mamba_options": dataclasses.replace(options, dt_rank=rank, norm="none")}
    heads, width = mamba2.heads_of(block)
    groups = options.norm_groups or block.mamba_n_groups
    options = dataclasses.replace(options, norm_groups=groups)
    return {"mamba_n_heads": heads, "mamba_head_dim": width, "mamba_options": options}


def _latent_meaning(block: BlockConfig) -> dict[str, Any]:
    nope, rope, values, _ = mla.sizes(block)
    sizes = {"qk_nope_head_dim": nope, "rope_dim": rope, "v_head_dim": values, "head_dim": None, "n_kv_heads": None}
    return sizes | {"attention_scale": mla.scale_of(block, nope + rope)}


def _mixture_meaning(block: BlockConfig) -> dict[str, Any]:
    mixture: Any = ffn_registry.get(block.ffn)
    limited = block.moe_topk_groups < block.moe_n_groups
    return mixture.settings(block) | {
        "d_ff": None,  # read only where one of the widths is not given
        "moe_n_groups": block.moe_n_groups if limited else 1,
        "moe_topk_groups": block.moe_topk_groups if limited else 1,
    }


def _number(value: Any) -> Any:
    """Without the last digits of a root that was taken and squared."""
    if isinstance(value, Derived):
        return int(value)
    if isinstance(value, RopeScaling):
        return dataclasses.replace(value, attention_factor=value.magnitude) if value.kind == "yarn" else value
    return float(f"{value:.12g}") if isinstance(value, float) else value

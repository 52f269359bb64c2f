"""Which fields of a block can go together: what is checked when a BlockConfig is made."""

from typing import Any

from lmxlab.core.component_fields import MIXTURES, ROTATED, ROTATES_ITSELF, check_all_read
from lmxlab.core.fields import check
from lmxlab.errors import UnknownNameError, UserError

# By FFN, the usual one first.
ACTIVATIONS = {
    "standard": ("gelu", "gelu_tanh"),
    "gated": ("silu", "gelu_tanh"),
    "moe": ("silu", "gelu_tanh", "relu2"),
    "shared_moe": ("silu", "gelu_tanh", "relu2"),
    "latent_moe": ("relu2", "silu", "gelu_tanh"),
}


def check_combinations(config: Any) -> None:
    """Raises UserError for fields of a BlockConfig that do not go together."""
    check(0 < config.partial_rotary_factor <= 1, "partial_rotary_factor", config.partial_rotary_factor, "in (0, 1]")
    rotated = config.rotary_dim
    if config.position == "rope" and config.attention in ROTATED and (rotated % 2 or not rotated):
        raise UserError(f"head_dim is {config.head_dim}; rope rotates {rotated} of it in pairs, so that must be even")
    if config.position == "rope" and config.rope_scaling and config.rope_scaling.kind == "dynamic" and rotated < 4:
        raise UserError(f"head_dim is {config.head_dim}; dynamic rope scaling needs at least 4 that rotate")
    if config.position == "sinusoidal" and config.d_model % 2:
        raise UserError(f"d_model is {config.d_model}; sinusoidal positions come in pairs, so it must be even")
    if config.rope_scaling is not None and config.position != "rope" and config.attention not in ROTATES_ITSELF:
        raise UserError(f"rope_scaling would be ignored: position is {config.position!r}; set position='rope'")
    if config.rope_dim is not None and (config.rope_dim % 2 or config.rope_dim < 0):
        raise UserError(f"rope_dim is {config.rope_dim}; rope rotates pairs of channels, so it must be even, or 0")
    check_all_read(config)
    if config.ffn in MIXTURES and config.n_experts is not None:
        check_experts(config, config.n_experts, config.top_k_experts)
    if config.activation is not None:
        if config.ffn not in ACTIVATIONS:
            raise UserError(
                f"activation {config.activation!r} would be ignored: ffn is {config.ffn!r}; "
                f"only {list(ACTIVATIONS)} read it"
            )
        if config.activation not in ACTIVATIONS[config.ffn]:
            raise UnknownNameError(f"activation of the {config.ffn!r} FFN", config.activation, ACTIVATIONS[config.ffn])
    if config.multipliers is not None and (config.attention, config.ffn) != ("gqa_mamba2", "gated"):
        raise UserError(
            f"multipliers would be ignored in part: attention is {config.attention!r} and ffn {config.ffn!r}; "
            "they belong to 'gqa_mamba2' with 'gated'"
        )
    if config.qk_norm_joint and not config.qk_norm:
        raise UserError("qk_norm_joint would be ignored: set qk_norm, too")
    if config.norm_plus_one and config.norm != "rms_norm":
        raise UserError(f"norm_plus_one would be ignored: norm is {config.norm!r}; only 'rms_norm' reads it")


def check_grouping(config: Any) -> None:
    """Raises UserError unless the key/value heads divide the query heads."""
    if config.n_heads % config.effective_n_kv_heads:
        raise UserError(
            f"n_heads {config.n_heads} is not divisible by n_kv_heads {config.n_kv_heads}; "
            "each key/value head serves the same number of query heads"
        )


def check_experts(config: Any, n_experts: int, top_k: int) -> None:
    """Raises UserError unless a router can choose `top_k` of `n_experts` within the groups that the config says."""
    groups, kept = config.moe_n_groups, config.moe_topk_groups
    if config.router_scores not in (None, "softmax", "sigmoid"):
        raise UnknownNameError("router_scores", config.router_scores, ("softmax", "sigmoid"))
    if n_experts % groups or kept > groups:
        raise UserError(
            f"n_experts {n_experts} in moe_n_groups {groups}, of which moe_topk_groups {kept} are kept: "
            "groups must be of equal size, and no more kept than there are"
        )
    in_reach = n_experts // groups * kept
    if not 1 <= top_k <= in_reach:
        raise UserError(f"top_k_experts is {top_k}; it must be between 1 and the {in_reach} experts in reach")
    if kept < groups == n_experts:
        raise UserError(f"moe_n_groups is {groups}, as many as experts; a group's score is that of its best two")

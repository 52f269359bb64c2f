"""Nemotron-H checkpoints of Hugging Face: their config.json and the names of their weights."""

import re
from collections.abc import Callable
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.mamba2 import heads_of
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.errors import UserError
from lmxlab.models.experts import expert_rules
from lmxlab.models.hf_config import Converter, HFConfig
from lmxlab.models.mamba import MAMBA2_MIXER, OF_OTHERS, dt_limits, dt_limits_to_hf, under
from lmxlab.models.nemotron import nemotron3_config
from lmxlab.models.weight_map import per_layer, rename, rule

# The letters of the layers' kinds, and what configs call them, now and before.
NAMES = {
    **{"linear_attention": "M", "moe": "E", "full_attention": "*", "mlp": "-"},
    **{"mamba": "M", "mamba2": "M", "attention": "*"},
}
# Fields of older configs that say what others say, or nothing about a forward pass.
IGNORED = (
    *("num_hidden_layers", "mamba_proj_bias", "use_mamba_kernels", "mamba_ssm_cache_dtype", "num_logits_to_keep"),
    *("n_shared_experts", "moe_shared_expert_overlap", "num_nextn_predict_layers", "mtp_layers_block_type"),
    *("mtp_hybrid_override_pattern", "rope_theta", "rope_parameters", "partial_rotary_factor", "norm_eps"),
)


def config_from_nemotron_h(hf: HFConfig) -> ModelConfig:
    """The config of a NemotronHForCausalLM."""
    hf.refuse_unless(mlp_hidden_act="relu2", mamba_hidden_act="silu", attention_bias=False, sliding_window=None)
    # transformers bounds a step by time_step_min alone, the other tools by time_step_limit alone.
    if hf.get("time_step_min", 0.001) > 0.001 or dt_limits(hf) != {"dt_min": 0.0}:
        raise UserError(
            "Unsupported value in a nemotron_h config: time_step_min above 0.001, or a time_step_limit other than "
            "(0, infinity)"
        )
    for name in (*OF_OTHERS, *IGNORED):
        hf.get(name, None)
    bias, mamba_bias = hf.get("mlp_bias", False), hf.get("use_bias", False)
    return nemotron3_config(
        _pattern(hf),
        vocab_size=hf["vocab_size"],
        d_model=hf["hidden_size"],
        n_heads=hf.get("num_attention_heads", 32),
        n_kv_heads=hf.get("num_key_value_heads", hf.get("num_attention_heads", 32)),
        d_ff=hf.get("intermediate_size", 21504),
        mamba_n_heads=hf.get("mamba_num_heads", 128),
        mamba_head_dim=hf.get("mamba_head_dim", 64),
        ssm_state_size=hf.get("ssm_state_size", 128),
        mamba_expand=hf.get("expand", 2),
        mamba_n_groups=hf.get("n_groups", 8),
        mamba_chunk_size=hf.get("chunk_size", 128),
        n_experts=hf.get("n_routed_experts", 8),
        top_k_experts=hf.get("num_experts_per_tok", 2),
        moe_latent_size=hf.get("moe_latent_size", None),
        moe_d_ff=hf.get("moe_intermediate_size", 7688),
        shared_expert_d_ff=hf.get("moe_shared_expert_intermediate_size", 7688),
        moe_routed_scaling_factor=float(hf.get("routed_scaling_factor", 1.0)),
        moe_n_groups=hf.get("n_group", 1),
        moe_topk_groups=hf.get("topk_group", 1),
        max_seq_len=hf.get("max_position_embeddings", 4096),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        conv_kernel_size=hf.get("conv_kernel", 4),
        head_dim=hf.get("head_dim", 128),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        bias=bias,
        router_normalized=None if hf.get("norm_topk_prob", True) else False,
        mamba_options=MambaOptions(
            bias=None if mamba_bias == bias else mamba_bias, conv_bias=hf.get("use_conv_bias", True)
        ),
    )


def _pattern(hf: HFConfig) -> str:
    """The layers' kinds, from either spelling."""
    kinds = hf.get("layers_block_type", None) or hf.get("layer_types", None)
    pattern: str = hf.get("hybrid_override_pattern", "")
    if kinds is None:
        hf.require("hybrid_override_pattern")
        return pattern
    unknown = sorted(set(kinds) - NAMES.keys())
    if unknown:
        raise UserError(f"Unsupported layers_block_type in a nemotron_h config: {unknown}")
    return "".join(NAMES[kind] for kind in kinds)


def nemotron_h_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a NemotronHForCausalLM."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    kinds = "".join(_kind(layer) for layer in layers)
    first = config.block
    mamba = layers[kinds.index("M")] if "M" in kinds else first
    routed = layers[kinds.index("E")] if "E" in kinds else first
    options = mamba.mamba_options or MambaOptions()
    heads, width = heads_of(mamba)
    names = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": first.d_model,
        "layers_block_type": [names[kind] for kind in kinds],
        "hybrid_override_pattern": kinds,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": first.n_heads,
        "num_key_value_heads": first.effective_n_kv_heads,
        "head_dim": int(first.head_dim),
        "attention_bias": False,
        "intermediate_size": first.d_ff,
        "mlp_hidden_act": "relu2",
        "mlp_bias": first.bias,
        "use_bias": first.bias if options.bias is None else options.bias,
        "mamba_num_heads": heads,
        "mamba_head_dim": width,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": first.bias if options.bias is None else options.bias,
        "use_conv_bias": options.conv_bias,
        "ssm_state_size": mamba.ssm_state_size,
        "expand": mamba.mamba_expand,
        "n_groups": mamba.mamba_n_groups,
        "chunk_size": mamba.mamba_chunk_size,
        "conv_kernel": mamba.conv_kernel_size,
        "time_step_limit": dt_limits_to_hf(options),
        "n_routed_experts": routed.n_experts or 1,
        "n_shared_experts": 1,
        "num_experts_per_tok": routed.top_k_experts,
        "moe_latent_size": routed.moe_latent_size,
        "moe_intermediate_size": routed.moe_d_ff or first.d_ff,
        "moe_shared_expert_intermediate_size": routed.shared_expert_d_ff or first.d_ff,
        "routed_scaling_factor": routed.moe_routed_scaling_factor,
        "n_group": routed.moe_n_groups,
        "topk_group": routed.moe_topk_groups,
        "norm_topk_prob": routed.router_normalized is not False,
        "max_position_embeddings": first.max_seq_len,
        "layer_norm_epsilon": first.norm_eps,
        "residual_in_fp32": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _kind(layer: BlockConfig) -> str:
    if layer.attention == "none":
        return "-" if layer.ffn == "relu2" else "E"
    return "M" if layer.attention == "mamba2" else "*"


OUTER = {"backbone.embeddings": "embed", "backbone.norm_f": "final_norm", "lm_head": "head"}
ATTENTION = {name: name for name in ("q_proj", "k_proj", "v_proj")}
NETWORK = {"up_proj": "up", "down_proj": "down"}


def _is_dense(block: BlockConfig) -> bool:
    return block.ffn == "relu2"


def _attends(block: BlockConfig) -> bool:
    return block.attention == "gqa"


RULES = [
    *rename(OUTER),
    *per_layer(
        "backbone.layers.{i}.",
        [
            *expert_rules("mixer", tuple(NETWORK)),
            *(rule(f"mixer.{theirs}", f"ffn.{ours}", when=_is_dense) for theirs, ours in NETWORK.items()),
            *rename({"mixer.fc1_latent_proj": "ffn.compress", "mixer.fc2_latent_proj": "ffn.down"}),
            *rename({"norm": "attn_norm", **under("mixer.shared_experts", NETWORK, "ffn.shared")}),
            rule("mixer.o_proj", "attention.o_proj", when=_attends),
            *rename({"norm": "ffn_norm", **under("mixer", {**MAMBA2_MIXER, **ATTENTION})}),
        ],
    ),
]


def rename_by_pattern(pattern: str) -> Callable[[str], str | None]:
    """From their names to ours in a model of these layers; the experts' matrices keep their number, unstacked."""
    parts = {
        "M": {"norm": "attn_norm", **under("mixer", MAMBA2_MIXER)},
        "*": {"norm": "attn_norm", "mixer.o_proj": "attention.o_proj", **under("mixer", ATTENTION)},
        "-": {"norm": "ffn_norm", **under("mixer", NETWORK, "ffn")},
        "E": {
            "norm": "ffn_norm",
            **{"mixer.gate": "ffn.router", "mixer.gate.e_score_correction_bias": "ffn.router.balance_bias"},
            **{"mixer.fc1_latent_proj": "ffn.compress", "mixer.fc2_latent_proj": "ffn.down"},
            **under("mixer.shared_experts", NETWORK, "ffn.shared"),
        },
    }

    def ours(name: str) -> str | None:
        match = re.fullmatch(r"(backbone|model)\.layers\.(\d+)\.(.*?)(\.weight|\.bias)?", name)
        if match is None:
            path, _, suffix = name.replace("model.", "backbone.", 1).rpartition(".")
            return f"{OUTER[path]}.{suffix}" if path in OUTER else None
        _, layer, path, suffix = match.groups(default="")
        names = parts[pattern[int(layer)]]
        if expert := re.fullmatch(r"mixer\.experts\.(\d+)\.(up|down)_proj", path):
            return f"blocks.{layer}.ffn.experts.{expert[1]}.{expert[2]}{suffix}"
        return f"blocks.{layer}.{names[path]}{suffix}" if path in names else None

    return ours


NEMOTRON_H = Converter(
    "nemotron_h",
    "NemotronHForCausalLM",
    config_from_nemotron_h,
    nemotron_h_to_hf,
    RULES,
    ignored=r"mtp\..*",
    rename_by_pattern=rename_by_pattern,
)

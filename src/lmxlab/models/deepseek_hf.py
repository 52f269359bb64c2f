"""DeepSeek's Hugging Face files: their configs and the names of their weights."""

from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.models.deepseek import v2_mixture, v3_mixture
from lmxlab.models.experts import dense_layers, expert_rules
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf
from lmxlab.models.llama import LLAMA_LAYER, llama_rules

LATENT = {
    "self_attn.q_a_proj": "attention.q_down",
    "self_attn.q_a_layernorm": "attention.q_norm",
    "self_attn.q_b_proj": "attention.q_up",
    "self_attn.kv_a_proj_with_mqa": "attention.kv_down",
    "self_attn.kv_a_layernorm": "attention.kv_norm",
    "self_attn.kv_b_proj": "attention.kv_up",
}
SHARED = {f"mlp.shared_experts.{name}_proj": f"ffn.shared.{name}" for name in ("gate", "up", "down")}
RULES = llama_rules(LLAMA_LAYER | LATENT | SHARED, *expert_rules())


def config_from_deepseek_v2(hf: HFConfig) -> ModelConfig:
    """The config of a DeepseekV2ForCausalLM."""
    hf.refuse_unless(mlp_bias=False, norm_topk_prob=False, scoring_func="softmax")
    dense = dense_from_hf(hf)
    method = hf.choose("topk_method", {"greedy": "", "group_limited_greedy": "groups"}, "greedy")
    groups, kept = hf.get("n_group", 1), hf.get("topk_group", 1)
    experts = mixture_fields(hf, n_experts=64, n_shared=2, top_k=8, width=1407, scaling=1.0)
    sparse = v2_mixture(dense, **experts, moe_n_groups=groups if method else 1, moe_topk_groups=kept if method else 1)
    return _model(hf, dense, sparse, n_dense=hf.get("first_k_dense_replace", 0))


def config_from_deepseek_v3(hf: HFConfig) -> ModelConfig:
    """The config of a DeepseekV3ForCausalLM."""
    hf.refuse_unless(scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=True)
    dense = dense_from_hf(hf)
    return _model(hf, dense, v3_from_hf(hf, dense), n_dense=hf.get("first_k_dense_replace", 3))


def v3_from_hf(hf: HFConfig, dense: BlockConfig) -> BlockConfig:
    """The layer with the mixture that the fields of DeepSeek-V3 describe."""
    groups, kept = hf.get("n_group", 8), hf.get("topk_group", 4)
    experts = mixture_fields(hf, n_experts=256, n_shared=1, top_k=8, width=2048, scaling=2.5)
    normalized = None if hf.get("norm_topk_prob", True) else False
    return v3_mixture(dense, **experts, moe_n_groups=groups, moe_topk_groups=kept, router_normalized=normalized)


def dense_from_hf(hf: HFConfig, **own: Any) -> BlockConfig:
    """A layer without experts."""
    hf.refuse_unless(hidden_act="silu", moe_layer_freq=1)
    hf.get("head_dim", None), hf.get("qk_head_dim", None)  # they follow from the others
    for name in ("ep_size", "seq_aux", "aux_loss_alpha", "num_nextn_predict_layers", "num_mtp_layers"):
        hf.get(name, None)  # of training, and of layers that predict further tokens
    if hf.get("qk_rope_head_dim", 64) == 0:  # which no class computes, though we do
        raise UserError(f"Unsupported value in a {hf.model_type} config: qk_rope_head_dim = 0")
    latent = {
        "kv_lora_rank": hf.get("kv_lora_rank", 512),
        "q_lora_rank": hf.get_or_off("q_lora_rank", 1536),
        "rope_dim": hf.get("qk_rope_head_dim", 64),
        "qk_nope_head_dim": hf.get("qk_nope_head_dim", 128),
        "v_head_dim": hf.get("v_head_dim", 128),
        "attention_bias": hf.get("attention_bias", False) or None,
    }
    fields = {"attention": "mla", "position": "none", "n_kv_heads": None, "head_dim": None, **latent, **own}
    return block_from_hf(hf, **fields)


def mixture_fields(
    hf: HFConfig, n_experts: int, n_shared: int, top_k: int, width: int, scaling: float
) -> dict[str, Any]:
    """What a mixture's size is in the config; the numbers hold where it does not say."""
    return {
        "n_experts": hf.get("n_routed_experts", n_experts),
        "n_shared_experts": hf.get("n_shared_experts", n_shared),
        "top_k_experts": hf.get("num_experts_per_tok", top_k),
        "moe_d_ff": hf.get("moe_intermediate_size", width),
        "moe_routed_scaling_factor": float(hf.get("routed_scaling_factor", scaling)),
    }


def deepseek_v2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a DeepseekV2ForCausalLM."""
    sparse = _sparse(config)
    method = "group_limited_greedy" if sparse.moe_n_groups > 1 else "greedy"
    return deepseek_to_hf(config) | {"topk_method": method, "norm_topk_prob": False, "scoring_func": "softmax"}


def deepseek_v3_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a DeepseekV3ForCausalLM."""
    return deepseek_to_hf(config) | {
        "norm_topk_prob": _sparse(config).router_normalized is not False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
    }


def deepseek_to_hf(config: ModelConfig) -> dict[str, Any]:
    """What both have."""
    block, sparse = config.block, _sparse(config)
    head_dim = int(block.head_dim)
    return decoder_to_hf(
        config,
        num_key_value_heads=block.n_heads,
        head_dim=block.rope_dim,
        attention_bias=block.effective_attention_bias,
        kv_lora_rank=block.kv_lora_rank,
        q_lora_rank=block.q_lora_rank,
        qk_rope_head_dim=block.rope_dim,
        qk_nope_head_dim=block.qk_nope_head_dim or head_dim,
        v_head_dim=block.v_head_dim or head_dim,
        first_k_dense_replace=len(dense_layers(config)),
        n_routed_experts=sparse.n_experts or 1,
        n_shared_experts=sparse.n_shared_experts or 1,
        num_experts_per_tok=sparse.top_k_experts if sparse.n_experts else 1,
        moe_intermediate_size=sparse.moe_d_ff or sparse.d_ff,
        routed_scaling_factor=sparse.moe_routed_scaling_factor,
        n_group=sparse.moe_n_groups,
        topk_group=sparse.moe_topk_groups,
        moe_layer_freq=1,
    )


def _sparse(config: ModelConfig) -> BlockConfig:
    """The first layer with experts; the first of all where none has any."""
    dense = set(dense_layers(config))
    return next((config.get_block_config(i) for i in range(config.n_layers) if i not in dense), config.block)


def _model(hf: HFConfig, dense: BlockConfig, sparse: BlockConfig, n_dense: int) -> ModelConfig:
    n_layers = hf["num_hidden_layers"]
    n_dense = min(n_dense, n_layers)
    blocks = [dense] * n_dense + [sparse] * (n_layers - n_dense)
    return decoder(hf, blocks)


DEEPSEEK_V2 = Converter("deepseek_v2", "DeepseekV2ForCausalLM", config_from_deepseek_v2, deepseek_v2_to_hf, RULES)
DEEPSEEK_V3 = Converter(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    config_from_deepseek_v3,
    deepseek_v3_to_hf,
    RULES,
    ignored=r"model\.layers\.61\..*",  # of the released file: the layer that predicts one token more
)

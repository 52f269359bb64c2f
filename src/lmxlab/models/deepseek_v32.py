"""DeepSeek-V3.2: V3 whose latent attention reads the tokens that an indexer chooses (2512.02556)."""

import dataclasses
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UserError
from lmxlab.models.decoder import layered
from lmxlab.models.deepseek import V3_LAB, V3_YARN, deepseek_v3_config
from lmxlab.models.deepseek_hf import LATENT, SHARED, deepseek_v3_to_hf, dense_from_hf, v3_from_hf
from lmxlab.models.experts import dense_layers, expert_rules
from lmxlab.models.hf_config import Converter, HFConfig, decoder
from lmxlab.models.llama import LLAMA_LAYER, llama_rules

LAB = V3_LAB | {"index_n_heads": 4, "index_head_dim": 32, "index_top_k": 32}


def deepseek_v32_config(
    vocab_size: int = 129280,
    d_model: int = 7168,
    n_heads: int = 128,
    n_layers: int = 61,
    d_ff: int = 18432,
    kv_lora_rank: int = 512,
    q_lora_rank: int = 1536,
    rope_dim: int = 64,
    n_experts: int = 256,
    top_k_experts: int = 8,
    n_shared_experts: int = 1,
    n_dense_layers: int = 1,
    max_seq_len: int = 4096,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = False,
    *,
    qk_nope_head_dim: int = 128,
    v_head_dim: int = 128,
    rope_scaling: RopeScaling | None = None,
    moe_d_ff: int | None = None,
    moe_n_groups: int = 1,
    moe_topk_groups: int = 1,
    moe_routed_scaling_factor: float = 2.5,
    index_n_heads: int = 64,
    index_head_dim: int = 128,
    index_top_k: int = 2048,
) -> ModelConfig:
    """`deepseek_v3_config` with an indexer in every layer: see `dsa.DSA`."""
    config = deepseek_v3_config(
        *(vocab_size, d_model, n_heads, n_layers, d_ff, kv_lora_rank, q_lora_rank, rope_dim, n_experts, top_k_experts),
        *(n_shared_experts, n_dense_layers, max_seq_len, rope_theta, tie_embeddings),
        qk_nope_head_dim=qk_nope_head_dim,
        v_head_dim=v_head_dim,
        rope_scaling=rope_scaling,
        moe_d_ff=moe_d_ff,
        moe_n_groups=moe_n_groups,
        moe_topk_groups=moe_topk_groups,
        moe_routed_scaling_factor=moe_routed_scaling_factor,
    )
    index: dict[str, Any] = {
        "index_n_heads": index_n_heads,
        "index_head_dim": index_head_dim,
        "index_top_k": index_top_k,
    }
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    sparse = [dataclasses.replace(layer, attention="dsa", **index) for layer in layers]
    return layered(sparse, config.vocab_size, config.tie_embeddings)


def deepseek_v32_tiny() -> ModelConfig:
    """For tests: 4 layers of which 1 is dense, 64 wide, 2 of 4 experts and a shared one, 16 tokens seen."""
    return deepseek_v32_config(
        *(256, 64, 4, 4, 128, 16, 32, 8, 4, 2, 1, 1),
        max_seq_len=128,
        qk_nope_head_dim=16,
        v_head_dim=16,
        moe_d_ff=32,
        index_n_heads=4,
        index_head_dim=16,
        index_top_k=16,
    )


def deepseek_v32_exp() -> ModelConfig:
    """DeepSeek-V3.2-Exp, 672 B parameters, V3's and the indexer's (its released config.json)."""
    return deepseek_v32_config(
        n_dense_layers=3,
        max_seq_len=163840,
        rope_scaling=V3_YARN,
        moe_d_ff=2048,
        moe_n_groups=8,
        moe_topk_groups=4,
    )


def config_from_deepseek_v32(hf: HFConfig) -> ModelConfig:
    """The config of a DeepseekV32ForCausalLM."""
    hf.refuse_unless(mlp_bias=False, scoring_func="sigmoid", topk_method="noaux_tc", rope_interleave=True)
    index = {
        "index_n_heads": hf.get("index_n_heads", 64),
        "index_head_dim": hf.get("index_head_dim", 128),
        "index_top_k": hf.get("index_topk", 2048),
    }
    dense = dense_from_hf(hf, attention="dsa", **index)
    sparse = v3_from_hf(hf, dense)
    n_layers, n_dense = hf["num_hidden_layers"], hf.get("first_k_dense_replace", 3)
    kinds = hf.get("mlp_layer_types", ["dense" if i < n_dense else "sparse" for i in range(n_layers)])
    unknown = set(kinds) - {"dense", "sparse"} | set(hf.get("layer_types", [])) - {"indexed_attention"}
    if unknown:
        raise UserError(f"Unsupported kinds of layers in a {hf.model_type} config: {sorted(unknown)}")
    blocks: list[BlockConfig] = [dense if kind == "dense" else sparse for kind in kinds]
    return decoder(hf, blocks)


def deepseek_v32_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a DeepseekV32ForCausalLM."""
    block, dense = config.block, dense_layers(config)
    return deepseek_v3_to_hf(config) | {
        "index_n_heads": block.index_n_heads,
        "index_head_dim": block.index_head_dim,
        "index_topk": block.index_top_k,
        "mlp_layer_types": ["dense" if i in dense else "sparse" for i in range(config.n_layers)],
    }


INDEXER = {
    "self_attn.indexer.wq_b": "attention.index_q",
    "self_attn.indexer.wk": "attention.index_k",
    "self_attn.indexer.k_norm": "attention.index_norm",
    "self_attn.indexer.weights_proj": "attention.index_weights",
}
DEEPSEEK_V32 = Converter(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    config_from_deepseek_v32,
    deepseek_v32_to_hf,
    llama_rules(LLAMA_LAYER | LATENT | SHARED | INDEXER, *expert_rules()),
    ignored=r"model\.layers\.61\..*",  # of the released file: the layer that predicts one token more
)

"""Qwen3-Next: Qwen3.5's mixers, with ten of 512 experts and a gated shared one in every layer (transformers,
models/qwen3_next)."""

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.deltanet import sizes
from lmxlab.errors import UserError
from lmxlab.models.experts import dense_layers, expert_rules
from lmxlab.models.hf_config import Converter, HFConfig, decoder
from lmxlab.models.llama import LLAMA_LAYER, QK_NORM, llama_rules
from lmxlab.models.qwen35 import LINEAR_RULES, hybrid_attention, hybrid_layers, is_linear, linear_layer, qwen35_to_hf
from lmxlab.models.weight_map import Rule, Shape, rename, rule

# At laboratory size.
LAB = {
    **{"n_experts": 4, "top_k_experts": 2, "moe_d_ff": 112, "shared_expert_d_ff": 112},
    **{"linear_n_key_heads": 2, "linear_n_value_heads": 4},
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
}


def qwen3_next_config(
    vocab_size: int = 151936,
    d_model: int = 2048,
    n_heads: int = 16,
    n_kv_heads: int = 2,
    n_layers: int = 48,
    moe_d_ff: int = 512,
    shared_expert_d_ff: int = 512,
    n_experts: int = 512,
    top_k_experts: int = 10,
    head_dim: int = 256,
    max_seq_len: int = 262144,
    rope_theta: float = 10000000.0,
    global_every: int = 4,
    tie_embeddings: bool = False,
    linear_n_key_heads: int = 16,
    linear_n_value_heads: int = 32,
    linear_key_head_dim: int = 128,
    linear_value_head_dim: int = 128,
    d_ff: int = 5120,
) -> ModelConfig:
    """Gated DeltaNet with short convolutions, every `global_every`-th layer attention with an output gate.

    Each token goes through `top_k_experts` of `n_experts` and through a shared expert times sigmoid(w x). `d_ff` is the
    width of layers without experts, of which the published models have none.
    """
    far = hybrid_attention(
        ffn="shared_moe",
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        moe_d_ff=moe_d_ff,
        shared_expert_d_ff=shared_expert_d_ff,
        head_dim=head_dim,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        **routing(n_experts, top_k_experts, normalized=True),
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


def routing(n_experts: int, top_k_experts: int, normalized: bool) -> dict[str, Any]:
    """Softmax over all experts, the best `top_k_experts` of them, and a gate for the shared expert."""
    return {
        "n_experts": n_experts,
        "top_k_experts": top_k_experts,
        "router_scores": "softmax",
        "router_balanced": False,
        "router_normalized": normalized,
        "shared_expert_gate": True,
    }


def qwen3_next_tiny() -> ModelConfig:
    """For tests: 4 layers, the last one of attention, 64 wide, 2 of 4 experts."""
    return qwen3_next_config(
        vocab_size=256,
        d_model=64,
        n_heads=4,
        n_layers=4,
        moe_d_ff=48,
        shared_expert_d_ff=32,
        n_experts=4,
        top_k_experts=2,
        head_dim=16,
        max_seq_len=128,
        linear_n_key_heads=2,
        linear_n_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        d_ff=128,
    )


def qwen3_next_80b_a3b() -> ModelConfig:
    """Qwen3-Next-80B-A3B, 79.7 B parameters, 3 B of them active (its released config.json)."""
    return qwen3_next_config()


def config_from_qwen3_next(hf: HFConfig) -> ModelConfig:
    """The config of a Qwen3NextForCausalLM."""
    plain = hybrid_layers(hf)
    experts = routing(
        hf.get("num_experts", 512), hf.get("num_experts_per_tok", 10), normalized=hf.get("norm_topk_prob", True)
    )
    widths = {
        "moe_d_ff": hf.get("moe_intermediate_size", 512),
        "shared_expert_d_ff": hf.get("shared_expert_intermediate_size", 512),
    }
    step, dense = hf.get("decoder_sparse_step", 1), hf.get("mlp_only_layers", [])
    layers = [
        layer if i in dense or (i + 1) % step else dataclasses.replace(layer, ffn="shared_moe", **experts, **widths)
        for i, layer in enumerate(plain)
    ]
    return decoder(hf, layers)


def qwen3_next_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Qwen3NextForCausalLM."""
    dense = dense_layers(config)
    if len(dense) == config.n_layers:
        raise UserError("A Qwen3NextForCausalLM has experts; this config has none")
    sparse = next(config.get_block_config(i) for i in range(config.n_layers) if i not in dense)
    return qwen35_to_hf(config) | {
        "num_experts": sparse.n_experts,
        "num_experts_per_tok": sparse.top_k_experts,
        "moe_intermediate_size": sparse.moe_d_ff,
        "shared_expert_intermediate_size": sparse.shared_expert_d_ff,
        "norm_topk_prob": sparse.router_normalized is not False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


class ByKeyHead:
    """Several projections there are one, whose rows stand key head by key head; ours have all heads' rows of a kind.

    Args:
        n_heads: key heads.
        parts: for each of our arrays, how many rows of each of its kinds belong to one key head.
    """

    def __init__(self, n_heads: int, *parts: tuple[int, ...]):
        self.n_heads, self.parts = n_heads, parts

    def to_ours(self, arrays: list[mx.array], shapes: list[Shape]) -> list[mx.array]:
        by_head = arrays[0].reshape(self.n_heads, -1, arrays[0].shape[-1])
        ends = [int(end) for end in np.cumsum([rows for part in self.parts for rows in part])[:-1]]
        kinds = iter(mx.split(by_head, ends, axis=1))
        return [
            mx.concatenate([next(kinds).reshape(self.n_heads * rows, -1) for rows in part], axis=0)
            for part in self.parts
        ]

    def to_theirs(self, arrays: list[mx.array], n_theirs: int) -> list[mx.array]:
        by_head = []
        for array, part in zip(arrays, self.parts, strict=True):
            ends = [int(end) * self.n_heads for end in np.cumsum(part)[:-1]]
            kinds = mx.split(array, ends, axis=0)
            by_head += [kind.reshape(self.n_heads, rows, -1) for kind, rows in zip(kinds, part, strict=True)]
        return [mx.concatenate(by_head, axis=1).reshape(-1, arrays[0].shape[-1])]


def qwen3_next_rules(config: ModelConfig) -> list[Rule]:
    """The weights of a Qwen3NextForCausalLM, whose fused projections depend on the linear layers' heads."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    linear: BlockConfig = next(filter(is_linear, layers), config.block)
    key_heads, value_heads, key_dim, value_dim = sizes(linear)
    share = value_heads // key_heads
    values = share * value_dim
    return llama_rules(
        LLAMA_LAYER | QK_NORM,
        *LINEAR_RULES,
        rule(
            "linear_attn.in_proj_qkvz",
            ("attention.qkv_proj", "attention.gate_proj"),
            ByKeyHead(key_heads, (key_dim, key_dim, values), (values,)),
        ),
        rule(
            "linear_attn.in_proj_ba",
            ("attention.beta_proj", "attention.decay_proj"),
            ByKeyHead(key_heads, (share,), (share,)),
        ),
        *expert_rules(),
        *rename(
            {
                "mlp.shared_expert.gate_proj": "ffn.shared.gate",
                "mlp.shared_expert.up_proj": "ffn.shared.up",
                "mlp.shared_expert.down_proj": "ffn.shared.down",
                "mlp.shared_expert_gate": "ffn.shared_gate",
            }
        ),
    )


QWEN3_NEXT = Converter(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    config_from_qwen3_next,
    qwen3_next_to_hf,
    qwen3_next_rules,
    ignored=r"mtp\..*",
)

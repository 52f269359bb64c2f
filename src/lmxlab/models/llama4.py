"""Llama 4, text: chunks with rotated and normalised heads, every fourth layer global without rotation, one routed
expert beside a shared one (ai.meta.com/blog/llama-4-multimodal-intelligence; the released config.json files)."""

import dataclasses
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.moe import UNROUTED
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.models.decoder import decoder_block
from lmxlab.models.experts import dense_layers
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf, rope_from_hf
from lmxlab.models.llama import LLAMA_LAYER, llama_rules
from lmxlab.models.weight_map import Split, Transpose, rename, rule

# Weights multiply what goes into an expert: sigmoid scores of the chosen ones, as they are.
ROUTING: dict[str, Any] = {
    "ffn": "shared_moe",
    "router_scores": "sigmoid",
    "router_normalized": False,
    "router_balanced": False,
    "router_scales_input": True,
}
LAB = {"n_experts": 4, "d_ff": 168}  # at laboratory size


def llama4_scout_config(
    vocab_size: int = 202048,
    d_model: int = 5120,
    n_heads: int = 40,
    n_kv_heads: int = 8,
    n_layers: int = 48,
    d_ff: int = 8192,
    n_experts: int = 16,
    top_k_experts: int = 1,
    n_shared_experts: int = 1,
    attention_chunk_size: int = 8192,
    nope_every: int = 4,
    max_seq_len: int = 65536,
    rope_theta: float = 500000.0,
    tie_embeddings: bool = False,
    *,
    rope_scaling: RopeScaling | None = None,
    qk_l2_norm: bool = True,
    temperature_floor: int | None = 8192,
    temperature_scale: float = 0.1,
    moe_every: int = 1,
    dense_d_ff: int | None = None,
) -> ModelConfig:
    """Layers that see chunks and rotate, every `nope_every`-th one global, unrotated, with queries that grow.

    Every `moe_every`-th layer has `top_k_experts` of `n_experts` SwiGLU networks of `d_ff` channels, and
    `n_shared_experts` for all tokens; the others one network of `dense_d_ff` channels (2 d_ff if not given).
    """
    block = decoder_block(
        attention="chunked_gqa",
        attention_chunk_size=attention_chunk_size,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        n_experts=n_experts,
        top_k_experts=top_k_experts,
        n_shared_experts=n_shared_experts,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rope_interleaved=True,
        qk_l2_norm=qk_l2_norm,
        **ROUTING,
    )
    temperature = {"temperature_floor": temperature_floor, "temperature_scale": temperature_scale}
    rotates = [(i + 1) % nope_every != 0 for i in range(n_layers)]
    layers = [block if turns else _unrotated(_global(block), **temperature) for turns in rotates]
    layers = [
        layer if (i + 1) % moe_every == 0 else _dense(layer, dense_d_ff or 2 * d_ff) for i, layer in enumerate(layers)
    ]
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings, block_configs=tuple(layers))


def llama4_maverick_config(
    vocab_size: int = 202048,
    d_model: int = 5120,
    n_heads: int = 40,
    n_kv_heads: int = 8,
    n_layers: int = 48,
    d_ff: int = 8192,
    n_experts: int = 128,
    top_k_experts: int = 1,
    n_shared_experts: int = 1,
    attention_chunk_size: int = 8192,
    nope_every: int = 4,
    max_seq_len: int = 65536,
    rope_theta: float = 500000.0,
    tie_embeddings: bool = False,
    **options: Any,
) -> ModelConfig:
    """`llama4_scout_config` with 128 experts; `options` are its keyword-only arguments."""
    sizes = (vocab_size, d_model, n_heads, n_kv_heads, n_layers, d_ff, n_experts, top_k_experts, n_shared_experts)
    reach = (attention_chunk_size, nope_every, max_seq_len, rope_theta, tie_embeddings)
    return llama4_scout_config(*sizes, *reach, **options)


def llama4_scout_tiny() -> ModelConfig:
    """For tests: 4 layers, the last one global, chunks of 16, 64 wide, 2 of 4 experts."""
    return llama4_scout_config(256, 64, 4, 2, 4, 128, 4, 2, attention_chunk_size=16, max_seq_len=128)


def llama4_maverick_tiny() -> ModelConfig:
    """For tests: 4 layers, the last one global, chunks of 16, 64 wide, 1 of 8 experts."""
    return llama4_maverick_config(256, 64, 4, 2, 4, 128, 8, 1, attention_chunk_size=16, max_seq_len=128)


def llama4_scout_17b_16e() -> ModelConfig:
    """Llama 4 Scout 17B 16E, text: 108 B parameters, 17 B of them active, 10 M tokens (its released config.json)."""
    return llama4_scout_config(
        max_seq_len=10485760,
        rope_scaling=RopeScaling("llama3", 16.0, 8192, low_freq_factor=1.0, high_freq_factor=1.0),
    )


def llama4_maverick_17b_128e() -> ModelConfig:
    """Llama 4 Maverick 17B 128E, text: 401 B parameters, 17 B of them active, 1 M tokens (its released config.json).

    Experts are in every other layer, and heads are not normalised.
    """
    return llama4_maverick_config(max_seq_len=1048576, qk_l2_norm=False, moe_every=2, dense_d_ff=16384)


def config_from_llama4(hf: HFConfig) -> ModelConfig:
    """The config of a Llama4ForCausalLM (`llama4_text`)."""
    hf.refuse_unless(hidden_act="silu")
    hf.get("router_jitter_noise", 0.0)  # of training
    n_layers = hf["num_hidden_layers"]
    max_seq_len = hf.get("max_position_embeddings", 131072)
    theta, scaling = rope_from_hf(hf, max_seq_len, default_theta=500000.0)
    block = block_from_hf(
        hf,
        max_seq_len=max_seq_len,
        head_dim=hf.get("head_dim", 128),
        norm_eps=hf.get("rms_norm_eps", 1e-5),
        attention_bias=hf.get("attention_bias", False),
        rope_theta=theta,
        rope_scaling=scaling,
        rope_interleaved=True,
        qk_l2_norm=hf.get("use_qk_norm", True),
        n_experts=hf.get("num_local_experts", 16),
        top_k_experts=hf.get("num_experts_per_tok", 1),
        n_shared_experts=1,
        **ROUTING,
    )
    every, step = hf.get("no_rope_layer_interval", 4), hf.get("interleave_moe_layer_step", 1)
    rotates = hf.get("no_rope_layers", []) or [int((i + 1) % every != 0) for i in range(n_layers)]
    kinds = hf.get("layer_types", ["chunked_attention" if turns else "full_attention" for turns in rotates])
    sparse = hf.get("moe_layers", list(range(step - 1, n_layers, step)))
    chunk, dense_d_ff = hf.get("attention_chunk_size", 8192), hf.get("intermediate_size_mlp", 16384)
    temperature = {"temperature_floor": hf.get("floor_scale", 8192), "temperature_scale": hf.get("attn_scale", 0.1)}
    if not hf.get("attn_temperature_tuning", True):
        temperature = {}
    layers = []
    for i in range(n_layers):
        local: dict[str, Any] = {"attention": "chunked_gqa", "attention_chunk_size": chunk}
        layer = dataclasses.replace(block, **local) if kinds[i] == "chunked_attention" else block
        layer = layer if rotates[i] else _unrotated(layer, **temperature)
        layers.append(layer if i in sparse else _dense(layer, dense_d_ff))
    return decoder(hf, layers)


def llama4_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Llama4ForCausalLM."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    dense = dense_layers(config)
    sparse = next((layer for i, layer in enumerate(layers) if i not in dense), config.block)
    rotated = next((layer for layer in layers if layer.position == "rope"), config.block)
    tuned = next((layer for layer in layers if layer.temperature_floor), None)
    chunked = [layer.attention_chunk_size for layer in layers]
    return decoder_to_hf(
        config,
        rotated,
        intermediate_size=sparse.moe_d_ff or sparse.d_ff,
        intermediate_size_mlp=layers[dense[0]].d_ff if dense else 2 * sparse.d_ff,
        num_local_experts=sparse.n_experts,
        num_experts_per_tok=sparse.top_k_experts,
        moe_layers=[i for i in range(config.n_layers) if i not in dense],
        interleave_moe_layer_step=1 + bool(dense),
        use_qk_norm=rotated.qk_l2_norm,
        no_rope_layers=[int(layer.position == "rope") for layer in layers],
        layer_types=["chunked_attention" if size else "full_attention" for size in chunked],
        attention_chunk_size=next(filter(None, chunked), None),
        attn_temperature_tuning=tuned is not None,
        floor_scale=tuned.temperature_floor if tuned else 8192,
        attn_scale=tuned.temperature_scale if tuned else 0.1,
        attention_bias=config.block.effective_attention_bias,
    )


def _global(block: BlockConfig) -> BlockConfig:
    return dataclasses.replace(block, attention="gqa", attention_chunk_size=None)


def _unrotated(block: BlockConfig, **temperature: Any) -> BlockConfig:
    rotation: dict[str, Any] = {"rope_scaling": None, "rope_interleaved": False, "qk_l2_norm": False}
    return dataclasses.replace(block, position="none", **rotation, **temperature)


def _dense(block: BlockConfig, d_ff: int) -> BlockConfig:
    return dataclasses.replace(block, ffn="gated", d_ff=d_ff, **UNROUTED)


# Experts lie side by side in one array, transposed, gates before ups.
LLAMA4_LAYER = {name.replace("mlp.", "feed_forward."): ours for name, ours in LLAMA_LAYER.items()}
LLAMA4_EXPERTS = [
    rule(
        "feed_forward.experts.gate_up_proj",
        ("ffn.experts.gate.weight", "ffn.experts.up.weight"),
        Transpose(0, 2, 1),
        Split(1),
    ),
    rule("feed_forward.experts.down_proj", "ffn.experts.down.weight", Transpose(0, 2, 1)),
    *rename(
        {
            "feed_forward.router": "ffn.router",
            "feed_forward.shared_expert.gate_proj": "ffn.shared.gate",
            "feed_forward.shared_expert.up_proj": "ffn.shared.up",
            "feed_forward.shared_expert.down_proj": "ffn.shared.down",
        }
    ),
]

LLAMA4 = Converter(
    "llama4_text",
    "Llama4ForCausalLM",
    config_from_llama4,
    llama4_to_hf,
    llama_rules(LLAMA4_LAYER, *LLAMA4_EXPERTS),
)

"""Gemma 1 (2403.08295) and 2 (2408.00118): scaled embeddings, RMSNorm by 1 + weight, GeGLU; four norms, caps."""

import dataclasses
import math
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import (
    Converter,
    HFConfig,
    block_from_hf,
    decoder,
    decoder_to_hf,
    layer_types_to_hf,
    windowed,
)
from lmxlab.models.llama import LLAMA_LAYER, llama_rules

# What every Gemma has and LLaMA has not.
GEMMA: dict[str, Any] = {"norm_plus_one": True, "activation": "gelu_tanh"}


def gemma_block(**fields: Any) -> BlockConfig:
    """The block that all Gemmas share, with `fields` of its own."""
    return decoder_block(**{"norm_eps": 1e-6, **GEMMA, **fields})


def gemma_config(
    vocab_size: int = 256000,
    d_model: int = 2048,
    n_heads: int = 8,
    n_kv_heads: int = 1,
    n_layers: int = 18,
    d_ff: int = 16384,
    max_seq_len: int = 8192,
    rope_theta: float = 10000.0,
    tie_embeddings: bool = True,
    head_dim: int | None = None,
) -> ModelConfig:
    """RMSNorm, grouped-query attention with one key/value head, GeGLU, RoPE, embeddings scaled by sqrt(d_model)."""
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_ff": d_ff, "head_dim": head_dim}
    block = gemma_block(**sizes, max_seq_len=max_seq_len, rope_theta=rope_theta)
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings, embed_scale=math.sqrt(d_model))


def gemma_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, one key/value head."""
    return gemma_config(256, 64, 4, 1, 2, 128, max_seq_len=128)


def gemma_2b() -> ModelConfig:
    """Gemma 2B, 2.51 B parameters (2403.08295, tables 1 and 2)."""
    return gemma_config(head_dim=256)


def gemma_7b() -> ModelConfig:
    """Gemma 7B, 8.54 B parameters, as many key/value heads as query heads (2403.08295, tables 1 and 2)."""
    return gemma_config(d_model=3072, n_heads=16, n_kv_heads=16, n_layers=28, d_ff=24576, head_dim=256)


def gemma2_config(
    vocab_size: int = 256000,
    d_model: int = 2304,
    n_heads: int = 8,
    n_kv_heads: int = 4,
    n_layers: int = 26,
    d_ff: int = 9216,
    head_dim: int = 256,
    max_seq_len: int = 8192,
    rope_theta: float = 10000.0,
    window_size: int = 4096,
    attention_scale: float | None = None,
    attention_softcap: float | None = 50.0,
    logit_softcap: float | None = 30.0,
    tie_embeddings: bool = True,
) -> ModelConfig:
    """Gemma with norms before and after each branch, soft caps, and a window in every other layer, the first one on.

    `attention_scale` is 1 / sqrt(head_dim) when it is left out.
    """
    block = gemma_block(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        head_dim=head_dim,
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        norm_placement="sandwich",
        attention_scale=attention_scale,
        attention_softcap=attention_softcap,
    )
    near = dataclasses.replace(block, attention="sliding_window_gqa", window_size=window_size)
    layers = tuple(near if i % 2 == 0 else block for i in range(n_layers))
    own = {"embed_scale": math.sqrt(d_model), "logit_softcap": logit_softcap}
    return ModelConfig(near, vocab_size, n_layers, tie_embeddings, block_configs=layers, **own)  # type: ignore[arg-type]


def gemma2_tiny() -> ModelConfig:
    """For tests: 4 layers, 64 wide, windows of 16."""
    return gemma2_config(256, 64, 4, 2, 4, 128, head_dim=16, max_seq_len=128, window_size=16)


def gemma2_2b() -> ModelConfig:
    """Gemma 2 2B, 2.61 B parameters (2408.00118, tables 1 and 2; its released config.json)."""
    return gemma2_config()


def gemma2_9b() -> ModelConfig:
    """Gemma 2 9B, 9.24 B parameters (2408.00118, tables 1 and 2; its released config.json)."""
    return gemma2_config(d_model=3584, n_heads=16, n_kv_heads=8, n_layers=42, d_ff=14336)


def config_from_gemma(hf: HFConfig) -> ModelConfig:
    """The config of a GemmaForCausalLM."""
    return gemma_model(hf, [gemma_block_from_hf(hf)] * hf["num_hidden_layers"])


def config_from_gemma2(hf: HFConfig) -> ModelConfig:
    """The config of a Gemma2ForCausalLM."""
    kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(hf["num_hidden_layers"])]
    block = gemma_block_from_hf(hf, norm_placement="sandwich", **scores_from_hf(hf, softcap=50.0))
    return gemma_model(hf, windowed(hf, block, kinds), hf.get_or_off("final_logit_softcapping", 30.0))


def scores_from_hf(hf: HFConfig, softcap: float | None) -> dict[str, Any]:
    """Scale of the attention scores, and their soft cap, which is `softcap` in a file that does not speak of it."""
    scale = hf.get("query_pre_attn_scalar", 256) ** -0.5
    return {"attention_scale": scale, "attention_softcap": hf.get_or_off("attn_logit_softcapping", softcap)}


def gemma_block_from_hf(hf: HFConfig, **own: Any) -> BlockConfig:
    """The block of a Gemma config of any generation."""
    # "gelu" in the first releases' files meant the tanh form, too.
    for name in ("hidden_activation", "hidden_act"):
        hf.choose(name, {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}, default="gelu_pytorch_tanh")
    hf.refuse_unless(use_bidirectional_attention=False)
    head_dim, bias = hf.get("head_dim", 256), hf.get("attention_bias", False)
    return block_from_hf(hf, head_dim=head_dim, attention_bias=bias, **GEMMA, **own)


def gemma_model(hf: HFConfig, blocks: list[BlockConfig], logit_softcap: float | None = None) -> ModelConfig:
    """The model of these blocks: tied, its embeddings scaled."""
    return decoder(hf, blocks, tied=True, embed_scale=math.sqrt(hf["hidden_size"]), logit_softcap=logit_softcap)


def gemma_to_hf(config: ModelConfig, **own: Any) -> dict[str, Any]:
    """The config.json of a GemmaForCausalLM; `own` are a later generation's fields."""
    return decoder_to_hf(
        config,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=config.block.effective_attention_bias,
        **own,
    )


def gemma2_to_hf(config: ModelConfig, **own: Any) -> dict[str, Any]:
    """The config.json of a Gemma2ForCausalLM."""
    return gemma_to_hf(
        config,
        query_pre_attn_scalar=_scalar(config.block),
        attn_logit_softcapping=config.block.attention_softcap,
        final_logit_softcapping=config.logit_softcap,
        **layer_types_to_hf(config),
        **own,
    )


def _scalar(block: BlockConfig) -> float:
    """1 / attention_scale^2, an integer where it was one: mlx-lm and transformers take its root again."""
    scalar = block.effective_attention_scale**-2
    return round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-9) else scalar


GEMMA2_LAYER = {
    **LLAMA_LAYER,
    "post_attention_layernorm": "attn_out_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_out_norm",
}
GEMMA1 = Converter("gemma", "GemmaForCausalLM", config_from_gemma, gemma_to_hf, llama_rules(LLAMA_LAYER))
GEMMA2 = Converter("gemma2", "Gemma2ForCausalLM", config_from_gemma2, gemma2_to_hf, llama_rules(GEMMA2_LAYER))

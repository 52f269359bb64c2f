"""Tiny configs of every architecture, and models with weights large enough to show a mistake."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core.config import ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.models.base import LanguageModel
from lmxlab.models.deepseek import deepseek_config, deepseek_v3_config
from lmxlab.models.deepseek_v32 import deepseek_v32_config
from lmxlab.models.gemma import gemma2_config, gemma_config
from lmxlab.models.gemma3 import gemma3_config
from lmxlab.models.gpt import gpt2_config, gpt_config
from lmxlab.models.llama import llama_config
from lmxlab.models.llama4 import llama4_scout_config
from lmxlab.models.mistral import mistral_config
from lmxlab.models.mixtral import mixtral_config
from lmxlab.models.olmo2 import olmo2_config
from lmxlab.models.qwen import qwen2_config, qwen3_config
from lmxlab.models.qwen3_moe import qwen3_moe_config
from lmxlab.models.smollm3 import smollm3_config

from . import delta_hybrids, state_space

SIZE = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 48, "max_seq_len": 40}
TRAINED_TOKENS = 8  # of the scaled rotary kinds: shorter than the sequences here, so that the scaling bites

LATENT = {"kv_lora_rank": 12, "q_lora_rank": 20, "rope_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}


def _with(config: ModelConfig, **block: Any) -> ModelConfig:
    return dataclasses.replace(config, block=dataclasses.replace(config.block, **block))


def _llama(scaling: RopeScaling | None = None) -> ModelConfig:
    return llama_config(**SIZE, n_kv_heads=2, rope_scaling=scaling)


ARCHITECTURES: dict[str, Callable[[], ModelConfig]] = {
    "gpt": lambda: gpt_config(**SIZE),
    "gpt2": lambda: gpt2_config(**SIZE),
    "llama": _llama,
    "llama3-scaling": lambda: _llama(RopeScaling("llama3", 4.0, TRAINED_TOKENS)),
    "linear-scaling": lambda: _llama(RopeScaling("linear", 4.0)),
    # Beyond its trained context a dynamic pass depends on its own length: tests/core/test_position.py looks there.
    "dynamic-scaling": lambda: _llama(RopeScaling("dynamic", 4.0, SIZE["max_seq_len"])),
    "yarn-scaling": lambda: _llama(RopeScaling("yarn", 4.0, TRAINED_TOKENS)),
    "alibi": lambda: _with(gpt_config(**SIZE), position="alibi"),
    "no-position": lambda: _with(gpt_config(**SIZE), position="none"),
    "qk-norm": lambda: _with(_llama(), qk_norm=True),
    "wide-heads": lambda: _with(_llama(), head_dim=16),
    "post-norm": lambda: _with(gpt_config(**SIZE), pre_norm=False),
    "relu2": lambda: _with(gpt_config(**SIZE), ffn="relu2"),
    "gated-relu2": lambda: _with(_llama(), ffn="gated_relu2"),
    "attention-only": lambda: _with(_llama(), ffn="none"),
    "mup": lambda: gpt_config(**SIZE, mup_base_width=16),
    "mistral": lambda: mistral_config(**SIZE, n_kv_heads=2, window_size=5),
    "chunked": lambda: _with(_llama(), attention="chunked_gqa", attention_chunk_size=5),
    "window-alibi": lambda: _with(_llama(), attention="sliding_window_gqa", window_size=5, position="alibi"),
    "window-dynamic-scaling": lambda: _with(
        _llama(RopeScaling("dynamic", 4.0, SIZE["max_seq_len"])), attention="sliding_window_gqa", window_size=5
    ),
    "l2-norm-temperature": lambda: _with(
        _llama(), rope_interleaved=True, qk_l2_norm=True, temperature_floor=4, temperature_scale=0.5
    ),
    "llama4": lambda: llama4_scout_config(
        **SIZE | {"n_layers": 4},
        n_kv_heads=2,
        n_experts=4,
        attention_chunk_size=5,
        moe_every=2,
        nope_every=2,
        temperature_floor=4,
        temperature_scale=0.5,
    ),
    "qwen2": lambda: qwen2_config(**SIZE, n_kv_heads=2),
    "qwen3": lambda: qwen3_config(**SIZE, n_kv_heads=2, head_dim=16),
    "qwen3_moe": lambda: qwen3_moe_config(**SIZE, n_kv_heads=2, head_dim=16, n_experts=6, top_k_experts=3, moe_d_ff=24),
    "mixtral": lambda: mixtral_config(**SIZE, n_kv_heads=2, n_experts=4),
    "olmo2": lambda: olmo2_config(**SIZE, n_kv_heads=2),
    "smollm3": lambda: smollm3_config(**SIZE, n_kv_heads=2, nope_every=2),
    "gemma": lambda: gemma_config(**SIZE, n_kv_heads=1),
    "gemma2": lambda: gemma2_config(**SIZE, n_kv_heads=2, head_dim=8, window_size=5, logit_softcap=2.0),
    "gemma3": lambda: gemma3_config(**SIZE, n_kv_heads=2, window_size=5, global_every=2),
    "deepseek": lambda: deepseek_config(**SIZE, **LATENT, n_experts=4, top_k_experts=2, moe_d_ff=24),
    "deepseek_v3": lambda: deepseek_v3_config(
        **SIZE, **LATENT, n_experts=8, top_k_experts=2, moe_n_groups=4, moe_topk_groups=2, moe_d_ff=24
    ),
    "deepseek_v32": lambda: deepseek_v32_config(
        **SIZE, **LATENT, n_experts=4, top_k_experts=2, moe_d_ff=24, index_n_heads=8, index_head_dim=12, index_top_k=5
    ),
    "mla": lambda: _with(_llama(), attention="mla", position="none", kv_lora_rank=12, q_lora_rank=20, rope_dim=4),
    "mla, nothing rotates": lambda: _with(_llama(), attention="mla", position="none", kv_lora_rank=12, rope_dim=0),
    "moe": lambda: _with(_llama(), ffn="moe", n_experts=4, top_k_experts=2, moe_d_ff=24),
    "moe-relu2, grouped": lambda: _with(
        _llama(), ffn="moe", activation="relu2", n_experts=8, moe_n_groups=4, moe_topk_groups=2, router_normalized=False
    ),
    "shared-moe": lambda: _with(_llama(), ffn="shared_moe", n_experts=4, moe_d_ff=24, shared_expert_gate=True),
    "latent-moe": lambda: _with(_llama(), ffn="latent_moe", n_experts=4, moe_latent_size=16, moe_d_ff=24),
    "mixed-layers": lambda: dataclasses.replace(
        _llama(),
        block_configs=(
            dataclasses.replace(_llama().block, position="none", attention="mha"),
            dataclasses.replace(_llama().block, position="alibi"),
        ),
    ),
}


ARCHITECTURES |= state_space.ARCHITECTURES | delta_hybrids.ARCHITECTURES


def build(config: ModelConfig, std: float = 0.15) -> LanguageModel:
    """A model whose every weight is redrawn from N(0, std^2), norms around 1: no symmetry is left to hide behind."""
    model = LanguageModel(config)
    redrawn = []
    for name, array in tree_flatten(model.parameters()):
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        redrawn.append((name, centre + std * mx.random.normal(array.shape)))
    model.update(tree_unflatten(redrawn))
    mx.eval(model.parameters())
    return model


def tokens(batch: int, length: int) -> mx.array:
    return mx.random.randint(0, SIZE["vocab_size"], (batch, length))


def gap(a: mx.array, b: mx.array) -> float:
    """Largest absolute difference."""
    return float(mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max())

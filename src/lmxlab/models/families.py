"""The table of model families: their config factories and presets, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.errors import UnknownNameError
from lmxlab.models import (
    deepseek,
    deepseek_hf,
    deepseek_v32,
    falcon,
    gemma,
    gemma3,
    gpt,
    jamba,
    llama,
    llama4,
    mamba,
    mistral,
    mixtral,
    nemotron,
    nemotron_hf,
    olmo2,
    qwen,
    qwen3_moe,
    qwen3_next,
    qwen35,
    smollm3,
)
from lmxlab.models.hf_config import Converter


@dataclass(frozen=True)
class Family:
    """One architecture.

    Args:
        config: keyword arguments -> config; called without any, the family's standard size.
        tiny: a config that tests and first tries can run anywhere.
        presets: named sizes.
        description: one line.
        hf: the kind of Hugging Face checkpoint that it is read from and written as; None: there is none.
        lab: further arguments of `config` at laboratory size (`experiments/designs.py`): few experts, small ranks.
    """

    name: str
    config: Callable[..., ModelConfig]
    tiny: Callable[[], ModelConfig]
    presets: dict[str, Callable[[], ModelConfig]] = field(default_factory=dict)
    description: str = ""
    hf: Converter | None = None
    lab: dict[str, Any] = field(default_factory=dict)


def _presets(*factories: Callable[[], ModelConfig]) -> dict[str, Callable[[], ModelConfig]]:
    return {factory.__name__: factory for factory in factories}


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt",
            gpt.gpt_config,
            gpt.gpt_tiny,
            _presets(
                gpt.gpt_tiny, gpt.gpt_10m, gpt.gpt_30m, gpt.gpt_small, gpt.gpt_medium, gpt.gpt2_tiny,
                gpt.gpt2, gpt.gpt2_medium, gpt.gpt2_large, gpt.gpt2_xl,
            ),
            "LayerNorm, multi-head attention, GELU; sinusoidal positions, or learned ones as in GPT-2",
            gpt.GPT2,
        ),
        Family(
            "llama",
            llama.llama_config,
            llama.llama_tiny,
            _presets(
                llama.llama_tiny, llama.llama_10m, llama.llama_30m, llama.llama_7b, llama.llama_13b,
                llama.llama2_7b, llama.llama2_13b, llama.llama3_8b, llama.llama31_8b, llama.llama32_1b,
            ),
            "RMSNorm, grouped-query attention, SwiGLU, rotary positions",
            llama.LLAMA,
        ),
        Family(
            "mistral",
            mistral.mistral_config,
            mistral.mistral_tiny,
            _presets(mistral.mistral_tiny, mistral.mistral_7b),
            "LLaMA with a sliding window",
            mistral.MISTRAL,
        ),
        Family(
            "qwen2",
            qwen.qwen2_config,
            qwen.qwen2_tiny,
            _presets(qwen.qwen2_tiny, qwen.qwen2_0_5b, qwen.qwen2_7b),
            "LLaMA with biases on q, k and v",
            qwen.QWEN2,
        ),
        Family(
            "qwen3",
            qwen.qwen3_config,
            qwen.qwen3_tiny,
            _presets(qwen.qwen3_tiny, qwen.qwen3_0_6b, qwen.qwen3_8b),
            "LLaMA with RMSNorm on the heads of q and k",
            qwen.QWEN3,
        ),
        Family(
            "qwen3_moe",
            qwen3_moe.qwen3_moe_config,
            qwen3_moe.qwen3_moe_tiny,
            _presets(qwen3_moe.qwen3_moe_tiny, qwen3_moe.qwen3_30b_a3b, qwen3_moe.qwen3_235b_a22b),
            "Qwen 3 with 8 of 128 experts",
            qwen3_moe.QWEN3_MOE,
            qwen3_moe.LAB,
        ),
        Family(
            "deepseek",
            deepseek.deepseek_config,
            deepseek.deepseek_tiny,
            _presets(deepseek.deepseek_tiny, deepseek.deepseek_v2, deepseek.deepseek_v2_lite),
            "latent attention; its presets with shared and routed experts (DeepSeek-V2)",
            deepseek_hf.DEEPSEEK_V2,
            deepseek.LAB,
        ),
        Family(
            "deepseek_v3",
            deepseek.deepseek_v3_config,
            deepseek.deepseek_v3_tiny,
            _presets(deepseek.deepseek_v3_tiny, deepseek.deepseek_v3_671b),
            "latent attention, a shared expert and 8 of 256, balanced by a bias",
            deepseek_hf.DEEPSEEK_V3,
            deepseek.V3_LAB,
        ),
        Family(
            "deepseek_v32",
            deepseek_v32.deepseek_v32_config,
            deepseek_v32.deepseek_v32_tiny,
            _presets(deepseek_v32.deepseek_v32_tiny, deepseek_v32.deepseek_v32_exp),
            "DeepSeek-V3 that reads the tokens that an indexer chooses",
            deepseek_v32.DEEPSEEK_V32,
            deepseek_v32.LAB,
        ),
        Family(
            "mixtral",
            mixtral.mixtral_config,
            mixtral.mixtral_tiny,
            _presets(mixtral.mixtral_tiny, mixtral.mixtral_8x7b, mixtral.mixtral_8x22b),
            "Mistral with 2 of 8 experts",
            mixtral.MIXTRAL,
            mixtral.LAB,
        ),
        Family(
            "qwen3_next",
            qwen3_next.qwen3_next_config,
            qwen3_next.qwen3_next_tiny,
            _presets(qwen3_next.qwen3_next_tiny, qwen3_next.qwen3_next_80b_a3b),
            "Gated DeltaNet, every fourth layer gated attention, 10 of 512 experts and a shared one",
            qwen3_next.QWEN3_NEXT,
            qwen3_next.LAB,
        ),
        Family(
            "qwen35",
            qwen35.qwen35_config,
            qwen35.qwen35_tiny,
            _presets(qwen35.qwen35_tiny, qwen35.qwen35_9b, qwen35.qwen35_27b),
            "Gated DeltaNet, every fourth layer attention with an output gate and a quarter of its channels rotated",
            qwen35.QWEN35,
        ),
        Family(
            "olmo2",
            olmo2.olmo2_config,
            olmo2.olmo2_tiny,
            _presets(olmo2.olmo2_tiny, olmo2.olmo2_7b),
            "LLaMA with norms on the branches' outputs and on q and k",
            olmo2.OLMO2,
        ),
        Family(
            "smollm3",
            smollm3.smollm3_config,
            smollm3.smollm3_tiny,
            _presets(smollm3.smollm3_tiny, smollm3.smollm3_3b),
            "LLaMA without rotation in every fourth layer",
            smollm3.SMOLLM3,
        ),
        Family(
            "gemma",
            gemma.gemma_config,
            gemma.gemma_tiny,
            _presets(gemma.gemma_tiny, gemma.gemma_2b, gemma.gemma_7b),
            "RMSNorm by 1 + weight, GeGLU, scaled embeddings",
            gemma.GEMMA1,
        ),
        Family(
            "gemma2",
            gemma.gemma2_config,
            gemma.gemma2_tiny,
            _presets(gemma.gemma2_tiny, gemma.gemma2_2b, gemma.gemma2_9b),
            "Gemma with four norms, soft caps, windows in every other layer",
            gemma.GEMMA2,
        ),
        Family(
            "gemma3",
            gemma3.gemma3_config,
            gemma3.gemma3_tiny,
            _presets(gemma3.gemma3_tiny, gemma3.gemma3_1b),
            "Gemma with QK-norm, windows, every sixth layer global with a longer rotary base",
            gemma3.GEMMA3,
        ),
        Family(
            "falcon_h1",
            falcon.falcon_h1_config,
            falcon.falcon_h1_tiny,
            _presets(falcon.falcon_h1_tiny, falcon.falcon_h1_10m, falcon.falcon_h1_0_5b),
            "Grouped-query attention and Mamba-2, in parallel in every block or layer by layer",
            falcon.FALCON_H1,
            falcon.LAB,
        ),
        Family(
            "mamba",
            mamba.mamba_config,
            mamba.mamba_tiny,
            _presets(
                mamba.mamba_tiny, mamba.mamba_130m, mamba.mamba_370m, mamba.mamba_790m, mamba.mamba_1_4b,
                mamba.mamba_2_8b,
            ),
            "Selective state-space mixers alone, a rate of decay for every channel and state",
            mamba.MAMBA,
            mamba.LAB,
        ),
        Family(
            "mamba2",
            mamba.mamba2_config,
            mamba.mamba2_tiny,
            _presets(mamba.mamba2_tiny, mamba.mamba2_130m, mamba.mamba2_780m, mamba.mamba2_2_7b),
            "State-space mixers alone, a rate of decay for every head",
            mamba.MAMBA2,
            mamba.LAB2,
        ),
        Family(
            "jamba",
            jamba.jamba_config,
            jamba.jamba_tiny,
            _presets(jamba.jamba_tiny, jamba.jamba_10m, jamba.jamba_v0_1, jamba.jamba_1_5_mini),
            "Mamba mixers with attention in some layers and mixtures of experts in some",
            jamba.JAMBA,
            jamba.LAB,
        ),
        Family(
            "nemotron",
            nemotron.nemotron3_config,
            nemotron.nemotron3_tiny,
            _presets(nemotron.nemotron3_tiny, nemotron.nemotron3_8b, nemotron.nemotron3_nano, nemotron.nemotron3_super),
            "One norm and one mixer per layer: Mamba-2, attention, experts or a squared-ReLU network",
            nemotron_hf.NEMOTRON_H,
            nemotron.LAB,
        ),
        Family(
            "llama4",
            llama4.llama4_scout_config,
            llama4.llama4_scout_tiny,
            _presets(
                llama4.llama4_scout_tiny, llama4.llama4_maverick_tiny, llama4.llama4_scout_17b_16e,
                llama4.llama4_maverick_17b_128e,
            ),
            "LLaMA in chunks, one of 16 experts beside a shared one, every fourth layer global without rotation",
            llama4.LLAMA4,
            llama4.LAB,
        ),
    )
}  # fmt: skip


def resolve(name: str) -> ModelConfig:
    """The config that a name means: a family's standard one, or a preset.

    Raises:
        UnknownNameError: neither; the message offers the nearest name.

    >>> resolve("gpt_tiny").block.d_model, resolve("llama").block.d_model
    (64, 4096)
    """
    table = {key: factory for family in FAMILIES.values() for key, factory in family.presets.items()}
    table |= {family.name: family.config for family in FAMILIES.values()}
    if name not in table:
        raise UnknownNameError("architecture", name, table)
    return table[name]()

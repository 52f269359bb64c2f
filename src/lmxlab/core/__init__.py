"""The parts that models are built of: configs, registries, blocks and the components they name."""

from lmxlab.core.attention import GQA, MHA, ChunkedGQA, SlidingWindowGQA
from lmxlab.core.block import ConfigurableBlock
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.deltanet import GatedDeltaNet
from lmxlab.core.dsa import DSA
from lmxlab.core.ffn import GatedFFN, StandardFFN
from lmxlab.core.lora import (
    LoRALinear,
    apply_lora,
    load_lora_adapters,
    lora_parameters,
    merge_lora,
    save_lora_adapters,
)
from lmxlab.core.mamba1 import Mamba1
from lmxlab.core.mamba2 import Mamba2
from lmxlab.core.mamba3 import Mamba3
from lmxlab.core.mla import MLA
from lmxlab.core.moe import LatentMoEFFN, MoEFFN, SharedExpertMoEFFN
from lmxlab.core.norm import layer_norm, rms_norm
from lmxlab.core.position import alibi, rope, sinusoidal
from lmxlab.core.qlora import LoRAQuantizedLinear, apply_qlora
from lmxlab.core.quantize import dequantize_model, quantize_model
from lmxlab.core.registry import Registry
from lmxlab.core.sparse_attention import SparseGQA

__all__ = [
    "DSA",
    "GQA",
    "MHA",
    "MLA",
    "BlockConfig",
    "ChunkedGQA",
    "ConfigurableBlock",
    "GatedDeltaNet",
    "GatedFFN",
    "LatentMoEFFN",
    "LoRALinear",
    "LoRAQuantizedLinear",
    "Mamba1",
    "Mamba2",
    "Mamba3",
    "MoEFFN",
    "ModelConfig",
    "Registry",
    "SharedExpertMoEFFN",
    "SlidingWindowGQA",
    "SparseGQA",
    "StandardFFN",
    "alibi",
    "apply_lora",
    "apply_qlora",
    "dequantize_model",
    "layer_norm",
    "load_lora_adapters",
    "lora_parameters",
    "merge_lora",
    "quantize_model",
    "rms_norm",
    "rope",
    "save_lora_adapters",
    "sinusoidal",
]

"""The parts that models are built of: configs, registries, blocks and the components they name."""

from lmxlab.core.attention import GQA, MHA, ChunkedGQA, SlidingWindowGQA
from lmxlab.core.block import ConfigurableBlock
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.ffn import GatedFFN, StandardFFN
from lmxlab.core.moe import MoEFFN, SharedExpertMoEFFN
from lmxlab.core.norm import layer_norm, rms_norm
from lmxlab.core.position import alibi, rope, sinusoidal
from lmxlab.core.registry import Registry

__all__ = [
    "GQA",
    "MHA",
    "BlockConfig",
    "ChunkedGQA",
    "ConfigurableBlock",
    "GatedFFN",
    "MoEFFN",
    "ModelConfig",
    "Registry",
    "SharedExpertMoEFFN",
    "SlidingWindowGQA",
    "StandardFFN",
    "alibi",
    "layer_norm",
    "rms_norm",
    "rope",
    "sinusoidal",
]

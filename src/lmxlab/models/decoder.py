"""The block that LLaMA and its descendants share, and a model of one block for each layer."""

from collections.abc import Sequence
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig


def decoder_block(**fields: Any) -> BlockConfig:
    """RMSNorm, grouped-query attention, SwiGLU, RoPE, no biases; `fields` of BlockConfig add to that or replace it."""
    common = {"attention": "gqa", "ffn": "gated", "norm": "rms_norm", "position": "rope", "bias": False}
    return BlockConfig(**{**common, **fields})


def layered(blocks: Sequence[BlockConfig], vocab_size: int, tie_embeddings: bool, **own: Any) -> ModelConfig:
    """A model of these blocks, one per layer; all equal ones become the template alone. `own` are further fields."""
    per_layer = None if all(block == blocks[0] for block in blocks) else tuple(blocks)
    return ModelConfig(blocks[0], vocab_size, len(blocks), tie_embeddings, per_layer, **own)

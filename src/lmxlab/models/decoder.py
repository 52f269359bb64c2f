"""The block that LLaMA and its descendants share."""

from typing import Any

from lmxlab.core.config import BlockConfig


def decoder_block(**fields: Any) -> BlockConfig:
    """RMSNorm, grouped-query attention, SwiGLU, RoPE, no biases; `fields` of BlockConfig add to that or replace it."""
    common = {"attention": "gqa", "ffn": "gated", "norm": "rms_norm", "position": "rope", "bias": False}
    return BlockConfig(**{**common, **fields})

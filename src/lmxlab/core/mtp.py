"""The module of multi-token prediction (DeepSeek-V3, 2412.19437, section 2.2): a block that looks one token further."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.block import ConfigurableBlock
from lmxlab.core.cache import Cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask


class MTPHead(nn.Module):
    """block(proj([norm(h); norm(e)])): state h at token i and embedding e of a later token -> state for the one after.

    Heads are chained: the k-th (from 1) reads the states of the one before, the first those of the model
    (`hidden_states`), with the embedding of token i + k, and predicts token i + k + 1 through the model's own final
    norm and output projection (`mtp_logits`).
    """

    def __init__(self, d_model: int, block_config: BlockConfig):
        super().__init__()
        self.hidden_norm = nn.RMSNorm(d_model, eps=block_config.norm_eps)
        self.embed_norm = nn.RMSNorm(d_model, eps=block_config.norm_eps)
        self.proj = Linear(2 * d_model, d_model, bias=False)
        self.block = ConfigurableBlock(block_config)

    def __call__(self, h: mx.array, prev_embed: mx.array, mask: Mask = None, cache: Cache | None = None) -> mx.array:
        """h and prev_embed (B, T, d_model) -> states (B, T, d_model); causal over several tokens if no mask is given.

        Args:
            cache: what `make_cache` made; it is extended.
        """
        x = self.proj(mx.concatenate([self.hidden_norm(h), self.embed_norm(prev_embed)], axis=-1))
        if mask is None and x.shape[1] > 1:
            mask = "causal"
        states: mx.array = self.block(x, mask, cache)[0]
        return states

    def make_cache(self) -> Any:
        """An empty cache of the kind that the block continues."""
        return self.block.make_cache()

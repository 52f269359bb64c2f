"""Softmax attention over keys and values that queries share in groups: one forward, for MHA, GQA and MQA."""

import math

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.cache import KVCache, as_cache
from lmxlab.core.config import BlockConfig, check_grouping
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask, additive
from lmxlab.core.norm import HeadNorm
from lmxlab.core.position import RoPE
from lmxlab.core.registry import Registry

Cache = KVCache | tuple[mx.array, mx.array] | None


class AttentionBase(nn.Module):
    """What fills the attention slot of a block: forward(x, mask, cache, rope) -> (out, cache)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: Cache = None, rope: RoPE | None = None
    ) -> tuple[mx.array, KVCache | None]:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, mask, cache, rope)")


class GQA(AttentionBase):
    """Grouped-query attention (2305.13245): softmax(scale q k^T + mask) v, each key/value head for a group of queries.

    The scale is 1/sqrt(head_dim), or 1/head_dim under muP. With `config.qk_norm` each head's q and k
    go through an RMSNorm first.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        check_grouping(config)
        self._build(config.effective_n_kv_heads)

    def _build(self, n_kv_heads: int) -> None:
        config = self.config
        self.n_kv_heads = n_kv_heads
        head_dim = int(config.head_dim)
        bias = config.bias if config.attention_bias is None else config.attention_bias
        self.scale = 1 / head_dim if config.mup else 1 / math.sqrt(head_dim)
        self.q_proj = Linear(config.d_model, config.n_heads * head_dim, bias=bias)
        self.k_proj = Linear(config.d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(config.d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = Linear(config.n_heads * head_dim, config.d_model, bias=bias)
        if config.qk_norm:
            self.q_norm = HeadNorm(config)
            self.k_norm = HeadNorm(config)

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: Cache = None, rope: RoPE | None = None
    ) -> tuple[mx.array, KVCache]:
        """Attends from x to itself and to what is cached.

        Args:
            x: (B, T, d_model).
            mask: None (all see all), "causal", boolean (True: may attend) or additive, broadcastable to
                (B, n_heads, T, cached + T).
            cache: the KVCache of earlier tokens (it is extended and returned), a plain (keys, values), or None.
            rope: rotates q and k at their absolute positions.

        Returns:
            out (B, T, d_model), and the cache to continue from.
        """
        q = self._heads(self.q_proj(x), self.config.n_heads, "q_norm")
        k = self._heads(self.k_proj(x), self.n_kv_heads, "k_norm")
        v = self._heads(self.v_proj(x), self.n_kv_heads)
        cache = as_cache(cache)
        offset = 0 if cache is None else cache.offset
        seq_len = offset + x.shape[1]
        if rope is not None:
            q = rope.rotate(q, offset, seq_len)
            if not rope.depends_on_length:
                k = rope.rotate(k, offset, seq_len)
        if cache is None:
            cache = KVCache(k, v)
        else:
            k, v = cache.update_and_fetch(k, v)
        if rope is not None and rope.depends_on_length:
            k = rope.rotate(k, 0, seq_len)
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            mask = additive(mask, x.shape[1], k.shape[2], q.dtype)
        out = kernels.attention(q, k, v, self.scale, mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)), cache

    def _heads(self, x: mx.array, n_heads: int, norm: str | None = None) -> mx.array:
        """(B, T, n_heads * head_dim) -> (B, n_heads, T, head_dim), normalised per head if the layer has that norm."""
        x = x.reshape(*x.shape[:2], n_heads, -1)
        if norm is not None and norm in self:
            x = self[norm](x)
        return x.transpose(0, 2, 1, 3)


class MHA(GQA):
    """Multi-head attention (1706.03762): every query head has its own key/value head; n_kv_heads is ignored."""

    def __init__(self, config: BlockConfig):
        AttentionBase.__init__(self, config)
        self._build(config.n_heads)


class NoneAttention(AttentionBase):
    """Returns `(x, None)`, when called by itself; a block leaves the whole branch out."""

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: Cache = None, rope: RoPE | None = None
    ) -> tuple[mx.array, None]:
        return x, None


attention_registry: Registry[type[AttentionBase]] = Registry("attention")
attention_registry.register("mha", MHA)
attention_registry.register("gqa", GQA)
attention_registry.register("none", NoneAttention)

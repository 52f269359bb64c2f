"""Softmax attention over keys and values that queries share in groups: one forward, for MHA, GQA and MQA."""

import math

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.cache import KVCache, WindowCache, as_cache
from lmxlab.core.config import BlockConfig, check_grouping
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask, additive, causal, restrict
from lmxlab.core.norm import RMSNorm
from lmxlab.core.position import RoPE
from lmxlab.core.registry import Registry
from lmxlab.errors import UserError

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

    def make_cache(self) -> KVCache | None:
        """An empty cache of the kind that this layer continues from."""
        return KVCache()


class GQA(AttentionBase):
    """Grouped-query attention (2305.13245): softmax(scale q k^T + mask) v, each key/value head for a group of queries.

    The scale is `config.attention_scale`, or 1/sqrt(head_dim), or 1/head_dim under muP. With `config.qk_norm` each
    head's q and k go through an RMSNorm first, with `qk_norm_joint` all heads' together.
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
        self.scale = config.attention_scale or (1 / head_dim if config.mup else 1 / math.sqrt(head_dim))
        self.q_proj = Linear(config.d_model, config.n_heads * head_dim, bias=bias)
        self.k_proj = Linear(config.d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(config.d_model, n_kv_heads * head_dim, bias=bias)
        output_bias = bias if config.output_bias is None else config.output_bias
        self.o_proj = Linear(config.n_heads * head_dim, config.d_model, bias=output_bias)
        if config.qk_norm:
            joint = config.qk_norm_joint
            self.q_norm = RMSNorm(config, config.n_heads * head_dim if joint else head_dim)
            self.k_norm = RMSNorm(config, n_kv_heads * head_dim if joint else head_dim)

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
            cache = self.make_cache(k, v)
        else:
            k, v = cache.update_and_fetch(k, v)
        if rope is not None and rope.depends_on_length:
            k = rope.rotate(k, seq_len - k.shape[2], seq_len)
        mask = self._visible(mask, seq_len, x.shape[1], k.shape[2])
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            mask = additive(mask, x.shape[1], k.shape[2], q.dtype)
        out = kernels.attention(q, k, v, self.scale, mask, self.config.attention_softcap)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)), cache

    def _heads(self, x: mx.array, n_heads: int, norm: str | None = None) -> mx.array:
        """(B, T, n_heads * head_dim) -> (B, n_heads, T, head_dim), normalised per head if the layer has that norm."""
        normed, joint = norm is not None and norm in self, self.config.qk_norm_joint
        if normed and joint:
            x = self[norm](x)
        x = x.reshape(*x.shape[:2], n_heads, -1)
        if normed and not joint:
            x = self[norm](x)
        return x.transpose(0, 2, 1, 3)

    def make_cache(self, keys: mx.array | None = None, values: mx.array | None = None) -> KVCache:
        """A cache that holds these tokens, empty without any."""
        return KVCache(keys, values)

    def _visible(self, mask: Mask, end: int, queries: int, keys: int) -> Mask:
        """The mask for the last `queries` positions before `end` over the last `keys` of them."""
        return mask


class MHA(GQA):
    """Multi-head attention (1706.03762): every query head has its own key/value head; n_kv_heads is ignored."""

    def __init__(self, config: BlockConfig):
        AttentionBase.__init__(self, config)
        self._build(config.n_heads)


class LocalGQA(GQA):
    """Grouped-query attention to positions nearby; subclasses say how far back that can be, and which they are."""

    reach: int

    def make_cache(self, keys: mx.array | None = None, values: mx.array | None = None) -> KVCache:
        return WindowCache(self.reach, keys, values)

    def near(self, queries: mx.array, keys: mx.array) -> mx.array:
        """Whether a query at one position may attend to a key at another, causality apart; shapes broadcast."""
        raise NotImplementedError

    def _visible(self, mask: Mask, end: int, queries: int, keys: int) -> Mask:
        positions = mx.arange(end - keys, end)
        near = self.near(positions[-queries:, None], positions)
        if isinstance(mask, str):
            return near & causal(queries, keys)
        return near if mask is None else restrict(mask[..., -keys:], near)


class SlidingWindowGQA(LocalGQA):
    """GQA to the last `window_size` positions, the query's own among them (2004.05150, section 3.1)."""

    def __init__(self, config: BlockConfig):
        if config.window_size is None:
            raise UserError("sliding_window_gqa needs window_size: how many positions a query sees, its own included")
        self.reach = config.window_size
        super().__init__(config)

    def near(self, queries: mx.array, keys: mx.array) -> mx.array:
        return queries - keys < self.reach

    def _visible(self, mask: Mask, end: int, queries: int, keys: int) -> Mask:
        if keys > self.reach:
            return super()._visible(mask, end, queries, keys)
        return mask[..., -keys:] if isinstance(mask, mx.array) else mask  # none is out of reach


class ChunkedGQA(LocalGQA):
    """GQA within chunks of `attention_chunk_size` absolute positions, as in Llama 4."""

    def __init__(self, config: BlockConfig):
        if config.attention_chunk_size is None:
            raise UserError("chunked_gqa needs attention_chunk_size: the positions that share a chunk")
        self.reach = config.attention_chunk_size
        super().__init__(config)

    def near(self, queries: mx.array, keys: mx.array) -> mx.array:
        return queries // self.reach == keys // self.reach


class NoneAttention(AttentionBase):
    """Returns `(x, None)`, when called by itself; a block leaves the whole branch out."""

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: Cache = None, rope: RoPE | None = None
    ) -> tuple[mx.array, None]:
        return x, None

    def make_cache(self) -> None:
        return None


attention_registry: Registry[type[AttentionBase]] = Registry("attention")
attention_registry.register("mha", MHA)
attention_registry.register("gqa", GQA)
attention_registry.register("sliding_window_gqa", SlidingWindowGQA)
attention_registry.register("chunked_gqa", ChunkedGQA)
attention_registry.register("none", NoneAttention)

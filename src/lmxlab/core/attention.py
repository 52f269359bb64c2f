"""Softmax attention over keys and values that queries share in groups: one forward, for MHA, GQA and MQA."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.cache import Cache, KVCache, WindowCache, as_cache
from lmxlab.core.config import BlockConfig, check_grouping
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask, additive, causal, hide_padding, restrict
from lmxlab.core.norm import RMSNorm
from lmxlab.core.position import RoPE
from lmxlab.core.registry import Registry, check_needs
from lmxlab.core.taps import tap

CacheLike = Cache | tuple[mx.array, mx.array] | None


class AttentionBase(nn.Module):
    """What fills the attention slot of a block: forward(x, mask, cache, rope) -> (out, cache).

    The layer that writes into the residual stream is named `o_proj`, which makes it start smaller (`models/init.py`).

    Attributes:
        needs: the fields of BlockConfig that must be set, and what they mean.
    """

    needs: dict[str, str] = {}

    def __init__(self, config: BlockConfig):
        super().__init__()
        check_needs(self, config)
        self.config = config

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, Any]:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, mask, cache, rope)")

    def make_cache(self) -> Cache | None:
        """An empty cache of the kind that this layer continues from; None if it needs none."""
        return KVCache()

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        """Forward FLOPs per token of its matrix products, 2 per multiply-add, among `seq_len` tokens that see all."""
        raise NotImplementedError(f"{cls.__name__} must define flops(config, seq_len)")

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        """Numbers that its cache keeps for each token without end, and at most, per sequence, beside them."""
        raise NotImplementedError(f"{cls.__name__} must define cached_numbers(config)")

    @classmethod
    def cached_float32(cls, config: BlockConfig) -> int:
        """How many of the numbers beside them are float32 whatever the model computes in: states of recurrences."""
        return 0


class GQA(AttentionBase):
    """Grouped-query attention (2305.13245): softmax(scale q k^T + mask) v, each key/value head for a group of queries.

    The scale is `config.attention_scale`, or 1/sqrt(head_dim), or 1/head_dim under muP. With `config.qk_norm` each
    head's q and k go through an RMSNorm first, with `qk_norm_joint` all heads' together; with `qk_l2_norm` through one
    without weights after the rotation. With `temperature_floor` q is multiplied by `query_temperature`.
    With `config.output_gate` q_proj has twice the channels, and the second half of each head's gates its output.

    Its tap "heads" is what the heads make, (B, T, n_heads, head_dim), before gate and o_proj.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        n_kv_heads = self.n_kv_heads = self._kv_heads(config)
        head_dim = int(config.head_dim)
        bias = config.effective_attention_bias
        self.scale = config.effective_attention_scale
        self.q_proj = Linear(config.d_model, (1 + config.output_gate) * config.n_heads * head_dim, bias=bias)
        self.k_proj = Linear(config.d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(config.d_model, n_kv_heads * head_dim, bias=bias)
        output_bias = bias if config.output_bias is None else config.output_bias
        self.o_proj = Linear(config.n_heads * head_dim, config.d_model, bias=output_bias)
        if config.qk_norm:
            joint = config.qk_norm_joint
            self.q_norm = RMSNorm(config, config.n_heads * head_dim if joint else head_dim)
            self.k_norm = RMSNorm(config, n_kv_heads * head_dim if joint else head_dim)

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
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
        queries, gate = self._queries_and_gate(x)
        q = self._heads(queries, self.config.n_heads, "q_norm")
        k = self._heads(self.k_proj(x), self.n_kv_heads, "k_norm")
        v = self._heads(self.v_proj(x), self.n_kv_heads)
        earlier: KVCache | None = as_cache(cache)
        offset = 0 if earlier is None else earlier.offset
        seq_len = offset + x.shape[1]
        if rope is not None:
            q = self._rotated(q, rope, offset, seq_len)
            if not rope.depends_on_length:
                k = self._rotated(k, rope, offset, seq_len)
        kept = self.make_cache() if earlier is None else earlier
        k, v = kept.update_and_fetch(k, v)
        if rope is not None and rope.depends_on_length:
            k = self._rotated(k, rope, seq_len - k.shape[2], seq_len)
        if self.config.temperature_floor is not None:
            q = q * query_temperature(self.config, offset, x.shape[1], kept.left_padding).astype(q.dtype)
        mask = self._visible(mask, seq_len, x.shape[1], k.shape[2], kept.left_padding)
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            mask = additive(mask, x.shape[1], k.shape[2], q.dtype)
        out = kernels.attention(q, k, v, self.scale, mask, self.config.attention_softcap)
        out = tap(self, "heads", out.transpose(0, 2, 1, 3)).reshape(*x.shape[:2], -1)
        return self.o_proj(out if gate is None else out * mx.sigmoid(gate)), kept

    def _queries_and_gate(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """(B, T, d_model) -> two of (B, T, n_heads * head_dim), the second one None without an output gate."""
        projected = self.q_proj(x)
        if not self.config.output_gate:
            return projected, None
        by_head = projected.reshape(*x.shape[:2], self.config.n_heads, 2, -1)
        return by_head[:, :, :, 0].reshape(*x.shape[:2], -1), by_head[:, :, :, 1].reshape(*x.shape[:2], -1)

    def _heads(self, x: mx.array, n_heads: int, norm: str | None = None) -> mx.array:
        """(B, T, n_heads * head_dim) -> (B, n_heads, T, head_dim), normalised per head if the layer has that norm."""
        normed, joint = norm is not None and norm in self, self.config.qk_norm_joint
        if normed and joint:
            x = self[norm](x)
        x = x.reshape(*x.shape[:2], n_heads, -1)
        if normed and not joint:
            x = self[norm](x)
        return x.transpose(0, 2, 1, 3)

    def _rotated(self, x: mx.array, rope: RoPE, offset: int, seq_len: int) -> mx.array:
        x = rope.rotate(x, offset, seq_len)
        return mx.fast.rms_norm(x, None, self.config.norm_eps) if self.config.qk_l2_norm else x

    def make_cache(self) -> KVCache:
        return KVCache()

    def _visible(self, mask: Mask, end: int, queries: int, keys: int, padding: mx.array | None) -> Mask:
        """The mask for the last `queries` positions before `end` over the last `keys` of them."""
        return mask if padding is None else hide_padding(mask, end, queries, keys, padding)

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        width, kv_width = config.n_heads * config.head_dim, cls._kv_heads(config) * config.head_dim
        # q, its gate and o; k and v
        projections = 2 * config.d_model * ((2 + config.output_gate) * width + 2 * kv_width)
        # Also where a window or chunk masks most of them, training computes all scores.
        return projections + 2 * 2 * seq_len * width  # scores q k^T; weights times v

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        return 2 * cls._kv_heads(config) * config.head_dim, 0

    @staticmethod
    def _kv_heads(config: BlockConfig) -> int:
        check_grouping(config)
        return config.effective_n_kv_heads


def query_temperature(config: BlockConfig, offset: int, n_tokens: int, padding: mx.array | None = None) -> mx.array:
    """1 + temperature_scale ln(1 + floor((p + 1) / temperature_floor)) for the query at position p (2501.19399).

    It sharpens attention over a long context, of which softmax would else make an average.

    Args:
        offset: p of the first of `n_tokens` queries.
        padding: (B,) how many tokens before each row's text are padding; positions count from the text on.

    Returns:
        (1, 1, n_tokens, 1), or (B, 1, n_tokens, 1) with padding.
    """
    assert config.temperature_floor is not None
    positions = mx.arange(offset, offset + n_tokens)[None, None, :, None]
    if padding is not None:
        positions = mx.maximum(positions - padding[:, None, None, None], 0)
    return 1 + config.temperature_scale * mx.log1p((positions + 1) // config.temperature_floor)


class MHA(GQA):
    """Multi-head attention (1706.03762): every query head has its own key/value head; n_kv_heads is ignored."""

    @staticmethod
    def _kv_heads(config: BlockConfig) -> int:
        return config.n_heads


class LocalGQA(GQA):
    """Grouped-query attention to positions nearby; subclasses say how far back that can be, and which they are."""

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.reach = self._reach(config)

    def make_cache(self) -> KVCache:
        return WindowCache(self.reach)

    def near(self, queries: mx.array, keys: mx.array) -> mx.array:
        """Whether a query at one position may attend to a key at another, causality apart; shapes broadcast."""
        raise NotImplementedError

    def _visible(self, mask: Mask, end: int, queries: int, keys: int, padding: mx.array | None) -> Mask:
        positions = mx.arange(end - keys, end)
        # Positions of a row's own text, which chunks go by, start after its padding.
        own = positions if padding is None else positions - padding[:, None, None]
        near = self.near(own[..., -queries:, None], own[..., None, :])
        if isinstance(mask, str):
            mask = near & causal(queries, keys)
        else:
            mask = near if mask is None else restrict(mask[..., -keys:], near)
        return super()._visible(mask, end, queries, keys, padding)

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        per_token, _ = super().cached_numbers(config)
        return 0, per_token * cls._reach(config)

    @staticmethod
    def _reach(config: BlockConfig) -> int:
        raise NotImplementedError


class SlidingWindowGQA(LocalGQA):
    """GQA to the last `window_size` positions, the query's own among them (2004.05150, section 3.1)."""

    needs = {"window_size": "how many positions a query sees, its own included"}

    def near(self, queries: mx.array, keys: mx.array) -> mx.array:
        return queries - keys < self.reach

    def _visible(self, mask: Mask, end: int, queries: int, keys: int, padding: mx.array | None) -> Mask:
        if keys > self.reach:
            return super()._visible(mask, end, queries, keys, padding)
        mask = mask[..., -keys:] if isinstance(mask, mx.array) else mask  # none is out of reach
        return GQA._visible(self, mask, end, queries, keys, padding)

    @staticmethod
    def _reach(config: BlockConfig) -> int:
        assert config.window_size is not None
        return config.window_size


class ChunkedGQA(LocalGQA):
    """GQA within chunks of `attention_chunk_size` absolute positions, as in Llama 4."""

    needs = {"attention_chunk_size": "how many positions share a chunk"}

    def near(self, queries: mx.array, keys: mx.array) -> mx.array:
        return queries // self.reach == keys // self.reach

    @staticmethod
    def _reach(config: BlockConfig) -> int:
        assert config.attention_chunk_size is not None
        return config.attention_chunk_size


class NoneAttention(AttentionBase):
    """Returns `(x, None)`, when called by itself; a block leaves the whole branch out."""

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, None]:
        return x, None

    def make_cache(self) -> None:
        return None

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        return 0

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        return 0, 0


attention_registry: Registry[type[AttentionBase]] = Registry("attention")
attention_registry.register("mha", MHA)
attention_registry.register("gqa", GQA)
attention_registry.register("sliding_window_gqa", SlidingWindowGQA)
attention_registry.register("chunked_gqa", ChunkedGQA)
attention_registry.register("none", NoneAttention)

"""DeepSeek sparse attention: a small indexer scores all earlier tokens, and latent attention reads the best of them."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.cache import Cache, KVCache, QuantizedKVCache, write
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask, additive, causal, restrict
from lmxlab.core.mla import LATENT_NORM_EPS, MLA
from lmxlab.core.position import RoPE
from lmxlab.errors import UserError


class DSA(MLA):
    """Latent attention to `config.index_top_k` tokens of a query's own choice (DeepSeek-V3.2-Exp, 2512.02556, 2.1).

    The lightning indexer has `config.index_n_heads` heads of `config.index_head_dim` channels: queries q_h from the
    latent of the queries, one key k for all heads, LayerNorm(W x), and a weight w_h = (W x)_h. A query scores a token
    by sum_h w_h relu(q_h . k), in float32, and sees those that score at least as high as the k-th best that it may see.
    The first `config.rope_dim` channels of q_h and k are rotated, halves together, not neighbours as in the attention.

    Which tokens are seen is no differentiable choice: the indexer gets no gradient from a model's loss and is frozen.
    DeepSeek trains it by its distance to the attention of a dense model, which is not built here.
    """

    needs = MLA.needs | {
        "q_lora_rank": "the channels of the latent that queries, those of the indexer among them, are computed from",
        "index_n_heads": "the heads of the indexer",
        "index_head_dim": "the channels of each of its heads",
        "index_top_k": "how many tokens a query sees",
    }

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        heads, width, self.top_k, rank = _index_sizes(config)
        if width < self.rope_dim:
            raise UserError(f"index_head_dim is {width}; rope_dim, {self.rope_dim}, of its channels are to be rotated")
        self.index_q = Linear(rank, heads * width, bias=False)
        self.index_k = Linear(config.d_model, width, bias=False)
        self.index_norm = nn.LayerNorm(width, LATENT_NORM_EPS)
        self.index_weights = Linear(config.d_model, heads, bias=False)
        for part in (self.index_q, self.index_k, self.index_norm, self.index_weights):
            part.freeze()
        self.index_rotation = RoPE(config, dims=self.rope_dim, interleaved=False) if self.rope_dim else None

    def make_cache(self) -> KVCache:
        return IndexedKVCache()

    def _visible(self, mask: Mask, x: mx.array, source: mx.array, cache: KVCache) -> Mask:
        n_queries, n_keys = x.shape[1], cache.offset
        assert isinstance(cache, IndexKeys)
        keys = cache.update_index(self._turned(self.index_norm(self.index_k(x))[:, None], n_keys - n_queries), n_keys)
        if n_keys <= self.top_k:
            return mask
        q = self.index_q(source).reshape(*x.shape[:2], -1, keys.shape[-1]).transpose(0, 2, 1, 3)
        q = self._turned(q, n_keys - n_queries)
        weights = self.index_weights(x).swapaxes(1, 2)[..., None]
        scores = mx.maximum(q.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2), 0)
        scores = (scores * weights.astype(mx.float32)).sum(axis=1, keepdims=True)
        scores = mx.stop_gradient(scores) + additive(mask, n_queries, n_keys, mx.float32)
        worst = n_keys - self.top_k
        chosen = scores >= mx.partition(scores, worst, axis=-1)[..., worst : worst + 1]
        if isinstance(mask, str):
            return chosen & causal(n_queries, n_keys)
        return chosen if mask is None else restrict(mask, chosen)

    def _turned(self, x: mx.array, offset: int) -> mx.array:
        """(B, heads, T, index_head_dim), its first channels rotated."""
        return x if self.index_rotation is None else self.index_rotation.rotate(x, offset, offset + x.shape[2])

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        heads, width, top_k, rank = _index_sizes(config)
        index = config.d_model * width  # its keys, which are cached in any case
        if seq_len > top_k:  # the attention still computes all scores, and masks them
            index += heads * (rank * width + config.d_model + seq_len * width)
        return super().flops(config, seq_len) + 2 * index

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        per_token, fixed = super().cached_numbers(config)
        return per_token + _index_sizes(config)[1], fixed


class IndexKeys(Cache):
    """What a cache keeps beside latents: the keys that the indexer scores, never quantised."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._index_keys: mx.array | None = None

    def update_index(self, keys: mx.array, offset: int) -> mx.array:
        """Appends (B, 1, T, index_head_dim), the last ones of `offset` tokens, and returns those of all."""
        held = self._index_keys
        self._index_keys = keys if held is None else write(held, keys, offset - keys.shape[2])
        return self._index_keys[:, :, :offset]


class IndexedKVCache(IndexKeys, KVCache):
    """KVCache with the indexer's keys."""

    def quantized(self, bits: int) -> Cache:
        return QuantizedIndexedKVCache(bits)


class QuantizedIndexedKVCache(IndexKeys, QuantizedKVCache):
    """QuantizedKVCache with the indexer's keys."""


def _index_sizes(config: BlockConfig) -> tuple[int, int, int, int]:
    """Heads and channels of the indexer, how many tokens it chooses, and the rank that its queries come from."""
    fields = (config.index_n_heads, config.index_head_dim, config.index_top_k, config.q_lora_rank)
    heads, width, top_k, rank = (field or 0 for field in fields)
    return heads, width, top_k, rank

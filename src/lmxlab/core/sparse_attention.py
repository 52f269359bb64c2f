"""Native sparse attention: a coarse view of everything, a close look at a few blocks, and what is near."""

import mlx.core as mx

from lmxlab.core import kernels
from lmxlab.core.attention import GQA, CacheLike
from lmxlab.core.cache import KVCache, as_cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask, additive, check_causal
from lmxlab.core.position import RoPE
from lmxlab.core.taps import tap
from lmxlab.errors import UserError

BRANCHES = 3


class SparseGQA(GQA):
    """Grouped-query attention in three causal branches (NSA, 2502.11089, section 3), each with keys of its own:

        out_t = sum over branches c of sigmoid(W_c x_t) softmax(scale q_t K_c^T) V_c        (a gate per head)

    - compressed: keys and values averaged over blocks of `sparse_compress_ratio` tokens, the blocks that have ended;
    - selected: the tokens of `sparse_select_k` blocks, the query's own and, of those before it, the ones that get the
      most weight in the compressed branch, summed over the query heads that share keys;
    - window: the last `window_size` tokens.

    Blocks are averaged plainly, where the paper learns a small network. Nothing is left out of the computation here but
    by masks: this is for research on what the design learns, not for its speed.
    """

    needs = {
        "sparse_compress_ratio": "tokens per block",
        "sparse_select_k": "blocks that a query looks into, its own included",
        "window_size": "how many positions the window shows, the query's own included",
    }

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        if config.qk_norm_joint:
            raise UserError("sparse_gqa normalises q and k head by head; leave qk_norm_joint out")
        assert config.sparse_compress_ratio and config.sparse_select_k and config.window_size
        self.block, self.n_selected, self.window = (
            config.sparse_compress_ratio,
            config.sparse_select_k,
            config.window_size,
        )
        width = BRANCHES * self.n_kv_heads * int(config.head_dim)
        self.k_proj = Linear(config.d_model, width, bias=config.effective_attention_bias)
        self.v_proj = Linear(config.d_model, width, bias=config.effective_attention_bias)
        self.branch_gate = Linear(config.d_model, BRANCHES * config.n_heads, bias=False)

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, KVCache]:
        """x (B, T, d_model) after what `cache` has seen -> out (B, T, d_model), and the cache to continue from.

        Raises:
            UserError: a mask array that says anything else than "causal".
        """
        n_heads, batch, length = self.config.n_heads, *x.shape[:2]
        q = self._heads(self.q_proj(x), n_heads, "q_norm")
        k = self._heads(self.k_proj(x), BRANCHES * self.n_kv_heads, "k_norm")
        v = self._heads(self.v_proj(x), BRANCHES * self.n_kv_heads)
        kept: KVCache = self.make_cache() if cache is None else as_cache(cache)
        offset, end = kept.offset, kept.offset + length
        check_causal(mask, length, end, "sparse_gqa")
        late = rope is not None and rope.depends_on_length
        if rope is not None:
            q = rope.rotate(q, offset, end)
            k = k if late else rope.rotate(k, offset, end)
        k, v = kept.update_and_fetch(k, v)
        if rope is not None and late:
            k = rope.rotate(k, 0, end)
        keys, values = mx.split(k, BRANCHES, axis=1), mx.split(v, BRANCHES, axis=1)
        # Positions of each row's own text, (B or 1, n): where blocks begin, and none of the padding before it.
        padding = kept.left_padding
        own = mx.arange(end)[None] if padding is None else mx.arange(end) - padding[:, None]
        queries, seen = own[:, -length:, None], own[:, None, :]
        coarse, weights = self._compressed(q, keys[0], values[0], queries, padding)
        visible = (seen <= queries) & (seen >= 0)
        blocks = self._selected(weights, queries, -(-end // self.block))
        places = mx.maximum(own // self.block, 0)[:, None, None, :]
        among = mx.take_along_axis(blocks, mx.broadcast_to(places, (*blocks.shape[:3], end)), axis=3)
        close = self._attend(q, keys[1], values[1], among & visible[:, None])
        near = self._attend(q, keys[2], values[2], (visible & (queries - seen < self.window))[:, None])
        gates = mx.sigmoid(self.branch_gate(x)).reshape(batch, length, BRANCHES, n_heads, 1).transpose(2, 0, 3, 1, 4)
        gates = tap(self, "branch_gates", gates)
        out = gates[0] * coarse + gates[1] * close + gates[2] * near
        out = tap(self, "heads", out.transpose(0, 2, 1, 3))
        return self.o_proj(out.reshape(batch, length, -1)), kept

    def _compressed(
        self, q: mx.array, k: mx.array, v: mx.array, queries: mx.array, padding: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """Attention to the means of the blocks that have ended, and its weights (B, Hkv, share, T, blocks)."""
        batch, _, length, head_dim = q.shape
        n_blocks = k.shape[2] // self.block
        grouped = q.reshape(batch, self.n_kv_heads, -1, length, head_dim)
        if n_blocks == 0:
            return mx.zeros_like(q), mx.zeros((*grouped.shape[:4], 0))
        k, v = (self._means(a, n_blocks, padding)[:, :, None] for a in (k, v))
        ended = (mx.arange(1, n_blocks + 1) * self.block <= queries + 1)[:, None, None]
        scores = (self.scale * grouped @ k.swapaxes(-1, -2)).astype(mx.float32)
        if self.config.attention_softcap is not None:
            scores = self.config.attention_softcap * mx.tanh(scores / self.config.attention_softcap)
        weights = mx.where(ended, kernels.softmax(scores + additive(ended, 1, 1, mx.float32)), 0.0)
        weights = tap(self, "compressed_weights", weights)
        return (weights.astype(v.dtype) @ v).reshape(q.shape), weights

    def _means(self, x: mx.array, n_blocks: int, padding: mx.array | None) -> mx.array:
        """(B, Hkv, S, D) -> (B, Hkv, blocks, D), blocks counted from the first token of each row's text."""
        if padding is not None:
            places = mx.minimum(mx.arange(x.shape[2]) + padding[:, None], x.shape[2] - 1)
            x = mx.take_along_axis(x, mx.broadcast_to(places[:, None, :, None], x.shape), axis=2)
        x = x[:, :, : n_blocks * self.block]
        return x.reshape(*x.shape[:2], n_blocks, self.block, x.shape[3]).mean(axis=3)

    def _selected(self, weights: mx.array, queries: mx.array, n_blocks: int) -> mx.array:
        """Which blocks each query looks into, boolean (B, Hkv, T, n_blocks), from the compressed branch's weights."""
        importance = mx.stop_gradient(weights).sum(axis=2)
        missing = n_blocks - importance.shape[-1]
        importance = mx.pad(importance, [(0, 0)] * 3 + [(0, missing)])
        own = (queries // self.block)[:, None]
        numbers = mx.arange(n_blocks)
        ranks = mx.argsort(mx.argsort(mx.where(numbers < own, -importance, 1.0), axis=-1), axis=-1)
        return (numbers == own) | ((numbers < own) & (ranks < self.n_selected - 1))

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, allowed: mx.array) -> mx.array:
        """Attention where `allowed` (B or 1, Hkv or 1, T, S), padded queries to anything at all."""
        if allowed.shape[1] > 1:
            allowed = mx.repeat(allowed, q.shape[1] // allowed.shape[1], axis=1)
        bias = additive(allowed, q.shape[2], k.shape[2], q.dtype)
        return kernels.attention(q, k, v, self.scale, bias, self.config.attention_softcap)

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        width, kv_width = config.n_heads * int(config.head_dim), cls._kv_heads(config) * int(config.head_dim)
        projections = 2 * config.d_model * (2 * width + 2 * BRANCHES * kv_width + BRANCHES * config.n_heads)
        n_blocks = seq_len // (config.sparse_compress_ratio or 1)
        return projections + 2 * 2 * width * (n_blocks + 2 * seq_len)

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        return 2 * BRANCHES * cls._kv_heads(config) * int(config.head_dim), 0

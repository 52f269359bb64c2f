"""Multi-head latent attention: the keys and values of all heads from one small latent per token, which is cached."""

import math

import mlx.core as mx

from lmxlab.core import kernels
from lmxlab.core.attention import AttentionBase, CacheLike
from lmxlab.core.cache import KVCache, as_cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.mask import Mask, additive, hide_padding
from lmxlab.core.norm import RMSNorm
from lmxlab.core.position import RoPE
from lmxlab.core.taps import tap
from lmxlab.errors import UserError

LATENT_NORM_EPS = 1e-6  # of the norms of latents, whatever the model's own: so it is in DeepSeek's code


class MLA(AttentionBase):
    """Multi-head latent attention (2405.04434, section 2.1; 2412.19437, section 2.1.1).

    From x: a latent c = norm(W_c x) of `config.kv_lora_rank` channels and one key r = rope(W_r x) of `config.rope_dim`
    channels that all heads share. Head h has the key [W_UK,h c, r] and the value W_UV,h c, of `config.qk_nope_head_dim`
    + rope_dim and `config.v_head_dim` channels; its query has a part for each part of the key, computed from x or,
    with `config.q_lora_rank`, from a latent of x that is normalised, too. Neighbouring channels rotate together.

    Only c and r are cached. A few queries after cached tokens are answered from the latents themselves, W_UK and W_UV
    being absorbed into query and output: q^T W_UK c = (W_UK^T q)^T c. Otherwise all keys and values are computed.

    The scale is `config.attention_scale`, or 1/sqrt(d), or 1/d under muP, d the channels of a query; with yarn scaling
    and `mscale_all_dim`, times the square of (0.1 mscale_all_dim ln(factor) + 1).

    What is unset is derived from head_dim: qk_nope_head_dim and v_head_dim are as large, rope_dim half of it. 0 leaves
    the rotated part out. `config.attention_bias` is of the projections from x and of the last one, as in DeepSeek's.
    """

    needs = {"kv_lora_rank": "the channels of the latent that keys and values are computed from"}

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        n_heads, d_model, bias = config.n_heads, config.d_model, config.effective_attention_bias
        nope, rope, v_dim, rank = self.nope, self.rope_dim, self.v_dim, self.rank = sizes(config)
        if config.q_lora_rank is None:
            self.q_proj = Linear(d_model, n_heads * (nope + rope), bias=False)
        else:
            self.q_down = Linear(d_model, config.q_lora_rank, bias=bias)
            self.q_norm = _latent_norm(config, config.q_lora_rank)
            self.q_up = Linear(config.q_lora_rank, n_heads * (nope + rope), bias=False)
        self.kv_down = Linear(d_model, rank + rope, bias=bias)
        self.kv_norm = _latent_norm(config, rank)
        self.kv_up = Linear(rank, n_heads * (nope + v_dim), bias=False)
        self.o_proj = Linear(n_heads * v_dim, d_model, bias=bias if config.output_bias is None else config.output_bias)
        self.scale = scale_of(config, nope + rope)
        self.rotation = RoPE(config, dims=rope, interleaved=True) if rope else None
        # Absorbing costs a query more per key, computing keys and values costs once per key: up to here it pays.
        saved = 2 * rank - nope - v_dim
        self.most_absorbed = rank * (nope + v_dim) / saved if saved > 0 else math.inf

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, KVCache]:
        """As `attention.GQA`; `rope` is not used. The cache holds the latents as keys and the shared keys as values."""
        earlier: KVCache | None = as_cache(cache)
        offset = 0 if earlier is None else earlier.offset
        source = self.q_norm(self.q_down(x)) if "q_down" in self else x
        q_nope, q_rope = self._queries(source, offset)
        latent, k_rope = self._latents(x, offset)
        kept = self.make_cache() if earlier is None else earlier
        latent, k_rope = kept.update_and_fetch(latent, k_rope)
        n_queries, n_keys = x.shape[1], latent.shape[2]
        if kept.left_padding is not None:
            mask = hide_padding(mask, n_keys, n_queries, n_keys, kept.left_padding)
        mask = self._visible(mask, x, source, kept)
        absorbs = offset > 0 and n_queries <= self.most_absorbed and self.config.attention_softcap is None
        attend = self._absorbed if absorbs else self._expanded
        out = attend(q_nope, q_rope, latent, k_rope, mask)
        out = tap(self, "heads", out.transpose(0, 2, 1, 3))
        return self.o_proj(out.reshape(*x.shape[:2], -1)), kept

    def make_cache(self) -> KVCache:
        return KVCache()

    def _visible(self, mask: Mask, x: mx.array, source: mx.array, cache: KVCache) -> Mask:
        """The mask of the tokens x, which the cache has taken in; `source` is what their queries come from."""
        return mask

    def _queries(self, source: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        """(B, H, T, nope) and (B, H, T, rope_dim), the latter rotated."""
        q = self.q_up(source) if "q_up" in self else self.q_proj(source)
        q = q.reshape(*q.shape[:2], self.config.n_heads, -1).transpose(0, 2, 1, 3)
        return q[..., : self.nope], self._rotated(q[..., self.nope :], offset)

    def _latents(self, x: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        """(B, 1, T, rank), normalised, and (B, 1, T, rope_dim), rotated."""
        both = self.kv_down(x)[:, None]
        return self.kv_norm(both[..., : self.rank]), self._rotated(both[..., self.rank :], offset)

    def _rotated(self, x: mx.array, offset: int) -> mx.array:
        return x if self.rotation is None else self.rotation.rotate(x, offset, offset + x.shape[2])

    def _expanded(self, q_nope: mx.array, q_rope: mx.array, latent: mx.array, k_rope: mx.array, mask: Mask) -> mx.array:
        """(B, H, T, v_dim), with every head's keys and values computed from the latents."""
        batch, heads, n_keys = len(latent), self.config.n_heads, latent.shape[2]
        both = self.kv_up(latent[:, 0]).reshape(batch, n_keys, heads, -1).transpose(0, 2, 1, 3)
        shared = mx.broadcast_to(k_rope, (batch, heads, n_keys, self.rope_dim))
        q, k = mx.concatenate([q_nope, q_rope], axis=-1), mx.concatenate([both[..., : self.nope], shared], axis=-1)
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            mask = additive(mask, q.shape[2], n_keys, q.dtype)
        return kernels.attention(q, k, both[..., self.nope :], self.scale, mask, self.config.attention_softcap)

    def _absorbed(self, q_nope: mx.array, q_rope: mx.array, latent: mx.array, k_rope: mx.array, mask: Mask) -> mx.array:
        """The same, read from the latents: every head attends to them as keys and as values."""
        # Quantised, or with an adapter, the layer shows its matrix in what it makes of the unit vectors.
        plain = type(self.kv_up) is Linear
        weight = self.kv_up.weight if plain else self.kv_up(mx.eye(self.rank, dtype=latent.dtype)).T
        weight = weight.reshape(self.config.n_heads, -1, self.rank)
        scores = additive(mask, q_nope.shape[2], latent.shape[2], q_nope.dtype)
        if self.rope_dim:
            scores = scores + (q_rope * self.scale) @ k_rope.swapaxes(-1, -2)
        q = q_nope @ weight[:, : self.nope]
        out = kernels.attention(q, latent, latent, self.scale, scores)
        return out @ weight[:, self.nope :].swapaxes(-1, -2)

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        nope, rope, v_dim, rank = sizes(config)
        width, heads = config.d_model, config.n_heads
        query = heads * (nope + rope)
        q_rank = config.q_lora_rank
        queries = width * query if q_rank is None else q_rank * (width + query)
        keys_and_values = width * (rank + rope) + rank * heads * (nope + v_dim)
        attention = seq_len * heads * (nope + rope + v_dim)
        return 2 * (queries + keys_and_values + attention + heads * v_dim * width)

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        _, rope, _, rank = sizes(config)
        return rank + rope, 0


def sizes(config: BlockConfig) -> tuple[int, int, int, int]:
    """With what is derived: channels of the keys' own part, of their rotated part, of the values, and of the latent."""
    head_dim = int(config.head_dim)
    rope = 2 * (head_dim // 4) if config.rope_dim is None else config.rope_dim
    assert config.kv_lora_rank is not None
    return config.qk_nope_head_dim or head_dim, rope, config.v_head_dim or head_dim, config.kv_lora_rank


def scale_of(config: BlockConfig, channels: int) -> float:
    """What the scores of queries of so many channels are multiplied by."""
    scale = config.attention_scale or (1 / channels if config.mup else 1 / math.sqrt(channels))
    scaling = config.rope_scaling
    if scaling is None:
        return scale
    if scaling.kind == "dynamic":
        raise UserError("rope_scaling 'dynamic' does not go with MLA, which caches rotated keys; choose another kind")
    return scale * (0.1 * (scaling.mscale_all_dim or 0.0) * math.log(scaling.factor) + 1) ** 2


def _latent_norm(config: BlockConfig, width: int) -> RMSNorm:
    norm = RMSNorm(config, width)
    norm.eps = LATENT_NORM_EPS
    return norm

"""Gated DeltaNet: linear attention whose memory fades and corrects itself, of a size that no context changes."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.attention import AttentionBase, CacheLike
from lmxlab.core.cache import RecurrentCache, as_cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.delta_rule import delta_rule, flops_per_token
from lmxlab.core.linear import Linear
from lmxlab.core.mamba2 import FIRST_RATE, first_dt_bias
from lmxlab.core.mask import Mask, check_causal
from lmxlab.core.position import RoPE
from lmxlab.core.short_conv import ShortConv
from lmxlab.errors import UserError

L2_EPS = 1e-6


class GatedDeltaNet(AttentionBase):
    """Linear attention by the gated delta rule (2412.06464, section 3; sizes and gates as in Qwen3-Next).

    q, k, v = silu(conv(W x)), q and k of unit length, q scaled by 1/sqrt(d_k);
    beta = sigmoid(W_b x), alpha = exp(-exp(A_log) softplus(W_a x + dt_bias)), one number per value head;
    out = W_o (RMSNorm(delta_rule(q, k, v, alpha, beta)) * silu(W_z x)), the norm over each head.

    `linear_n_key_heads` (default n_heads) heads of `linear_key_head_dim` channels (default head_dim) each serve the
    same number of the `linear_n_value_heads` (default: as many) heads of `linear_value_head_dim`. The convolution, over
    `conv_kernel_size` tokens, is there with `use_short_conv`. It knows order by itself: no rope, no mask.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self._sizes = key_heads, value_heads, key_dim, value_dim = sizes(config)
        keys, values = key_heads * key_dim, value_heads * value_dim
        bias = config.effective_attention_bias
        self.qkv_proj = Linear(config.d_model, 2 * keys + values, bias=bias)
        self.gate_proj = Linear(config.d_model, values, bias=bias)
        self.beta_proj = Linear(config.d_model, value_heads, bias=False)
        self.decay_proj = Linear(config.d_model, value_heads, bias=False)
        if config.use_short_conv:
            self.conv = ShortConv(2 * keys + values, config.conv_kernel_size)
        self.A_log = mx.zeros((value_heads,))
        self.dt_bias = mx.zeros((value_heads,))
        self.norm = nn.RMSNorm(value_dim, config.norm_eps)
        self.o_proj = Linear(values, config.d_model, bias=bias if config.output_bias is None else config.output_bias)
        self.init_weights(0.02)

    def init_weights(self, std: float) -> None:
        """Rates and steps as in Mamba-2, so memories of 1 to 1,000 tokens."""
        n_heads = self.A_log.shape
        self.A_log = mx.log(mx.random.uniform(*FIRST_RATE, n_heads))
        self.dt_bias = first_dt_bias(n_heads)

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, RecurrentCache]:
        """x (B, T, d_model) after what `cache` has seen -> out (B, T, d_model), and the cache to continue from.

        Raises:
            UserError: a mask array that says anything else than "causal".
        """
        kept: RecurrentCache = self.make_cache() if cache is None else as_cache(cache)
        length = x.shape[1]
        check_causal(mask, length, kept.offset + length, "gated_deltanet")
        padding = kept.padding(length)
        key_heads, value_heads, key_dim, value_dim = self._sizes
        qkv, tail = self.qkv_proj(x), {}
        if padding is not None:
            qkv = mx.where(padding[..., None], 0, qkv)
        if "conv" in self:
            qkv, tail["tail"] = self.conv(qkv, kept["tail"])
        else:
            qkv = kernels.silu(qkv)
        keys = key_heads * key_dim
        q, k, v = mx.split(qkv.astype(mx.float32), [keys, 2 * keys], axis=-1)
        q, k = (_heads(_unit(a.reshape(*a.shape[:2], key_heads, key_dim))) for a in (q, k))
        v = _heads(v.reshape(*v.shape[:2], value_heads, value_dim))
        beta = mx.sigmoid(self.beta_proj(x).astype(mx.float32))
        dt = nn.softplus(self.decay_proj(x).astype(mx.float32) + self.dt_bias)
        log_decay = -mx.exp(self.A_log.astype(mx.float32)) * dt
        if padding is not None:  # writes nothing, fades nothing
            beta, log_decay = (mx.where(padding[..., None], 0.0, a) for a in (beta, log_decay))
        q = q * key_dim**-0.5
        out, state = delta_rule(q, k, v, log_decay.swapaxes(1, 2), beta.swapaxes(1, 2), kept["state"])
        kept.advance(length, state=state, **tail)
        out = kernels.rms_norm(out.swapaxes(1, 2), self.norm.weight.astype(mx.float32), self.norm.eps)
        gate = kernels.silu(self.gate_proj(x).astype(mx.float32))
        return self.o_proj((out.reshape(gate.shape) * gate).astype(x.dtype)), kept

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        key_heads, value_heads, key_dim, value_dim = sizes(config)
        keys, values = key_heads * key_dim, value_heads * value_dim
        projections = 2 * config.d_model * (2 * keys + 3 * values + 2 * value_heads)
        return projections + flops_per_token(seq_len, value_heads, key_heads, key_dim, value_dim)

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        key_heads, value_heads, key_dim, value_dim = sizes(config)
        channels = 2 * key_heads * key_dim + value_heads * value_dim
        tail = (config.conv_kernel_size - 1) * channels if config.use_short_conv else 0
        return 0, value_heads * key_dim * value_dim + tail

    @classmethod
    def cached_float32(cls, config: BlockConfig) -> int:
        _, value_heads, key_dim, value_dim = sizes(config)
        return value_heads * key_dim * value_dim


def sizes(config: BlockConfig) -> tuple[int, int, int, int]:
    """(key heads, value heads, channels per key head, channels per value head) of a config.

    Raises:
        UserError: key heads that do not divide the value heads.
    """
    key_heads = config.linear_n_key_heads or config.n_heads
    value_heads = config.linear_n_value_heads or key_heads
    if value_heads % key_heads:
        raise UserError(
            f"linear_n_value_heads {value_heads} is not divisible by linear_n_key_heads {key_heads}; "
            "each key head serves the same number of value heads"
        )
    key_dim = config.linear_key_head_dim or int(config.head_dim)
    return key_heads, value_heads, key_dim, config.linear_value_head_dim or int(config.head_dim)


def _unit(x: mx.array) -> mx.array:
    """x / sqrt(sum(x^2) + eps) over the last axis: the fast kernel's norm with another scale."""
    n = x.shape[-1]
    return kernels.rms_norm(x, mx.full((n,), n**-0.5), L2_EPS / n)


def _heads(x: mx.array) -> mx.array:
    """(B, T, heads, D) -> (B, heads, T, D)."""
    return x.swapaxes(1, 2)

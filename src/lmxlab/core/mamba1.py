"""Mamba-1 (2312.00752): a selective state-space mixer with decays per channel and state."""

import math

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.attention import AttentionBase, CacheLike
from lmxlab.core.cache import RecurrentCache, as_cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.mamba2 import first_dt_bias
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.core.mask import Mask
from lmxlab.core.norm import RMSNorm
from lmxlab.core.position import RoPE
from lmxlab.core.selective_scan import selective_scan
from lmxlab.core.short_conv import ShortConv


class Mamba1(AttentionBase):
    """o_proj((scan(x) + D x) silu(z)), where x and z are projections of the input and x passes a short convolution.

    The scan's dt (through a bottleneck of dt_rank channels), B and C are projections of the convolved x; with
    `mamba_bc_norm` each of the three passes an RMSNorm first (Jamba, 2403.19887). State and rates are float32.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.inner, self.rank = _sizes(config)
        options, n_states = config.mamba_options or MambaOptions(), config.ssm_state_size
        bias = config.bias if options.bias is None else options.bias
        self.in_proj = Linear(config.d_model, 2 * self.inner, bias=bias)
        self.conv = ShortConv(self.inner, config.conv_kernel_size, bias=options.conv_bias)
        self.x_proj = Linear(self.inner, self.rank + 2 * n_states, bias=False)
        self.dt_proj = Linear(self.rank, self.inner, bias=False)
        self.o_proj = Linear(self.inner, config.d_model, bias=bias)
        if config.mamba_bc_norm:
            self.dt_norm = RMSNorm(config, self.rank)
            self.b_norm = RMSNorm(config, n_states)
            self.c_norm = RMSNorm(config, n_states)
        self.init_weights()

    def init_weights(self, std: float = 0.0) -> None:
        """Rates 1 to N in every channel (S4D-Real), steps of different lengths, D = 1."""
        rates = mx.arange(1, self.config.ssm_state_size + 1, dtype=mx.float32)
        self.A_log = mx.log(mx.broadcast_to(rates, (self.inner, rates.size)))
        self.D = mx.ones((self.inner,))
        self.dt_bias = first_dt_bias((self.inner,))

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, RecurrentCache]:
        """x (B, T, d_model), and the cache of earlier tokens -> (B, T, d_model), cache. Causal whatever the mask."""
        cache = as_cache(cache) or self.make_cache()
        padding = cache.padding(x.shape[1])
        mixed, z = mx.split(self.in_proj(x), 2, axis=-1)
        if padding is not None:
            mixed = mx.where(padding[..., None], 0, mixed)
        mixed, tail = self.conv(mixed, cache["tail"])
        dt, b, c = mx.split(self.x_proj(mixed), [self.rank, -self.config.ssm_state_size], axis=-1)
        if self.config.mamba_bc_norm:
            dt, b, c = self.dt_norm(dt), self.b_norm(b), self.c_norm(c)
        dt = nn.softplus(self.dt_proj(dt).astype(mx.float32) + self.dt_bias)
        if padding is not None:  # neither decays nor writes
            dt = mx.where(padding[..., None], 0.0, dt)
        state = cache["state"]
        if state is None:
            state = mx.zeros((x.shape[0], *self.A_log.shape))
        u, b, c = (a.astype(mx.float32) for a in (mixed, b, c))
        y, state = selective_scan(u, dt, -mx.exp(self.A_log), b, c, state, checkpoint=self.training)
        cache.advance(x.shape[1], tail=tail, state=state)
        y = (y + self.D * u) * nn.silu(z.astype(mx.float32))
        return self.o_proj(y.astype(x.dtype)), cache

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        """Of the matrix products: the scan itself has none but the sum over its states."""
        inner, rank = _sizes(config)
        n_states = config.ssm_state_size
        projections = config.d_model * 3 * inner + inner * (2 * rank + 2 * n_states)
        return 2 * (projections + inner * n_states)

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        inner, _ = _sizes(config)
        return 0, inner * (config.ssm_state_size + config.conv_kernel_size - 1)

    @classmethod
    def cached_float32(cls, config: BlockConfig) -> int:
        return _sizes(config)[0] * config.ssm_state_size


def _sizes(config: BlockConfig) -> tuple[int, int]:
    """Channels inside the mixer, and of the projection to step sizes."""
    options = config.mamba_options or MambaOptions()
    return options.d_inner or config.d_model * config.mamba_expand, options.dt_rank or math.ceil(config.d_model / 16)

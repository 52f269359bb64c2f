"""Mamba-2 (2405.21060): a state-space mixer with one decay per head and token, trained in chunks, decoded in O(1)."""

import functools
import math

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.attention import AttentionBase, CacheLike
from lmxlab.core.cache import RecurrentCache, as_cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.gated_norm import GatedGroupNorm
from lmxlab.core.linear import Linear
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.core.mask import Mask
from lmxlab.core.position import RoPE
from lmxlab.core.short_conv import ShortConv
from lmxlab.core.ssd import ssd, ssd_flops, ssd_step
from lmxlab.errors import UserError

FIRST_DT = (1e-3, 1e-1)  # of softplus(dt_bias) at the start, log-uniform
FIRST_RATE = (1.0, 16.0)  # of exp(A_log) at the start, uniform


class Mamba2(AttentionBase):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T and y_t = C_t^T h_t + D x_t, per head, between projections.

    z, x, B, C and dt are projections of the input; x, B and C also pass a short convolution. dt is
    softplus(dt + dt_bias), clamped to [dt_min, dt_max] of mamba_options; A = -exp(A_log). The output is o_proj(gated
    norm of y by z). B and C are shared by the heads of each of `mamba_n_groups` groups. State, rates and decays are
    float32 at any model dtype.

    Raises:
        UserError: mamba_n_heads * mamba_head_dim is not the inner width, or the groups do not divide the heads.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.n_heads, self.head_dim = heads_of(config)
        inner, shared = self.n_heads * self.head_dim, config.mamba_n_groups * config.ssm_state_size
        self.options = options = config.mamba_options or MambaOptions()
        bias = config.bias if options.bias is None else options.bias
        self.in_proj = Linear(config.d_model, 2 * inner + 2 * shared + self.n_heads, bias=bias)
        self.conv = ShortConv(inner + 2 * shared, config.conv_kernel_size, bias=options.conv_bias)
        self.norm = GatedGroupNorm(inner, options.norm_groups or config.mamba_n_groups, config.norm_eps, options.norm)
        self.o_proj = Linear(inner, config.d_model, bias=bias)
        self.init_weights()

    def init_weights(self, std: float = 0.0) -> None:
        """Rates of different sizes and steps of different lengths, as in the paper's code; D = 1."""
        self.A_log = mx.log(mx.random.uniform(*FIRST_RATE, (self.n_heads,)))
        self.D = mx.ones((self.n_heads,))
        self.dt_bias = first_dt_bias((self.n_heads,))

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, RecurrentCache]:
        """x (B, T, d_model), and the cache of earlier tokens -> (B, T, d_model), cache. Causal whatever the mask."""
        cache = as_cache(cache) or self.make_cache()
        padding = cache.padding(x.shape[1])
        z, mixed, dt = self._project(x)
        if padding is not None:
            mixed = mx.where(padding[..., None], 0, mixed)
        mixed, tail = self.conv(mixed, cache["tail"])
        y, arrays = self._recur(x, mixed, self._dt(dt, padding), cache)
        cache.advance(x.shape[1], tail=tail, **arrays)
        return self.o_proj(self.norm(y, z)), cache

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        inner = self.n_heads * self.head_dim
        factors = self.config.multipliers
        if factors is None:
            z, mixed, dt = mx.split(self.in_proj(x), [inner, -self.n_heads], axis=-1)
            return z, mixed, dt
        shared = self.config.mamba_n_groups * self.config.ssm_state_size
        sizes = {"ssm_z": inner, "ssm_x": inner, "ssm_b": shared, "ssm_c": shared, "ssm_dt": self.n_heads}
        scale = mx.concatenate([mx.full((size,), getattr(factors, name)) for name, size in sizes.items()])
        projected = self.in_proj(x * factors.ssm_in) * scale.astype(x.dtype)
        z, mixed, dt = mx.split(projected, [inner, -self.n_heads], axis=-1)
        return z, mixed, dt

    def _dt(self, dt: mx.array, padding: mx.array | None) -> mx.array:
        """Step sizes (B, T, H) float32; 0 at padding, which then neither decays nor writes."""
        dt = nn.softplus(dt.astype(mx.float32) + self.dt_bias)
        if self.options.dt_min or self.options.dt_max is not None:
            dt = mx.clip(dt, self.options.dt_min, self.options.dt_max)
        return dt if padding is None else mx.where(padding[..., None], 0.0, dt)

    def _recur(
        self, inputs: mx.array, mixed: mx.array, dt: mx.array, cache: RecurrentCache
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """The layer's inputs, x, B and C side by side, step sizes -> y (B, T, inner) float32, arrays for the cache."""
        x, b, c = self._parts(mixed)
        y, state = self._scan(x * dt[..., None], -mx.exp(self.A_log) * dt, b, c, cache["state"])
        return self._with_skip(y, x), {"state": state}

    def _parts(self, mixed: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x (B, T, H, P), B and C (B, T, G, N), in float32."""
        groups, channels = self.config.mamba_n_groups, self.config.ssm_state_size
        inner, shared = self.n_heads * self.head_dim, groups * channels
        x, b, c = mx.split(mixed.astype(mx.float32), [inner, -shared], axis=-1)
        x = x.reshape(*x.shape[:2], self.n_heads, self.head_dim)
        return x, b.reshape(*b.shape[:2], groups, channels), c.reshape(*c.shape[:2], groups, channels)

    def _scan(
        self, u: mx.array, log_decay: mx.array, b: mx.array, c: mx.array, state: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """`ssd`, or one step of it, from a state or from none."""
        batch, length, heads, width = u.shape
        if state is None:
            state = mx.zeros((batch, b.shape[2], b.shape[3], heads // b.shape[2] * width))
        if length == 1:
            return ssd_step(u, log_decay, b, c, state)
        run = functools.partial(ssd, chunk=self.config.mamba_chunk_size)
        # The (chunk x chunk) matrices of a layer are large: they are computed again for the backward pass.
        y, state = (mx.checkpoint(run) if self.training else run)(u, log_decay, b, c, state)
        return y, state

    def _with_skip(self, y: mx.array, x: mx.array) -> mx.array:
        return (y + self.D[:, None] * x).reshape(*x.shape[:2], -1)

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        heads, width = heads_of(config)
        groups, channels = config.mamba_n_groups, config.ssm_state_size
        into, out = 2 * heads * width + 2 * groups * channels + heads, heads * width
        recurrence = ssd_flops(heads, width, groups, channels, config.mamba_chunk_size, seq_len)
        return 2 * config.d_model * (into + out) + recurrence

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        heads, width = heads_of(config)
        return 0, heads * width * config.ssm_state_size + cls._tail(config)

    @classmethod
    def cached_float32(cls, config: BlockConfig) -> int:
        return cls.cached_numbers(config)[1] - cls._tail(config)

    @staticmethod
    def _tail(config: BlockConfig) -> int:
        """Numbers that the convolution keeps of the last tokens, in the model's own type."""
        heads, width = heads_of(config)
        return (config.conv_kernel_size - 1) * (heads * width + 2 * config.mamba_n_groups * config.ssm_state_size)


def heads_of(config: BlockConfig) -> tuple[int, int]:
    """(heads, channels per head); what is not given follows from the inner width, d_model * mamba_expand.

    Raises:
        UserError: their product is not the inner width, or the groups do not divide the heads.
    """
    options = config.mamba_options or MambaOptions()
    inner = options.d_inner or config.d_model * config.mamba_expand
    heads, width = config.mamba_n_heads, config.mamba_head_dim
    if heads is None:
        heads = config.n_heads if width is None else inner // width
    width = inner // heads if width is None else width
    if heads * width != inner:
        raise UserError(
            f"mamba_n_heads {heads} * mamba_head_dim {width} is {heads * width}, but d_model * mamba_expand is "
            f"{inner}; make them equal, or give the inner width as mamba_options.d_inner"
        )
    if heads % config.mamba_n_groups:
        raise UserError(
            f"{heads} Mamba heads are not divisible by mamba_n_groups {config.mamba_n_groups}; "
            "the heads of a group share B and C"
        )
    return heads, width


def first_dt_bias(shape: tuple[int, ...]) -> mx.array:
    """dt_bias such that softplus(dt_bias) is log-uniform in FIRST_DT."""
    low, high = map(math.log, FIRST_DT)
    dt = mx.exp(mx.random.uniform(low, high, shape))
    return dt + mx.log(-mx.expm1(-dt))  # the inverse of softplus

"""Mamba-3 (Lahoti et al., ICLR 2026): Mamba-2 with a trapezoidal rule, rotating states, and norms on B and C."""

import mlx.core as mx

from lmxlab.core import kernels
from lmxlab.core.cache import RecurrentCache
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.mamba2 import Mamba2, heads_of
from lmxlab.core.ssd import ssd_flops
from lmxlab.errors import UserError


class Mamba3(Mamba2):
    """Mamba-2 with what the flags of the config switch on; without any it is Mamba-2.

    - `mamba_trapezoidal`: h_t = alpha_t h_{t-1} + (1 - s_t) dt_t alpha_t B_{t-1} x_{t-1}^T + s_t dt_t B_t x_t^T with
      alpha_t = exp(dt_t A) and s_t a projection of the input, through a sigmoid: a mixture of both ends of the step,
      the earlier one being that of token t - 1.
    - `mamba_complex_a`: A becomes A + i theta_t with projected angles theta_t, one for each pair of neighbouring states
      and group. A pair turns by dt_t theta_t at each token, which is computed by turning B and C back by the sum of all
      angles so far.
    - `mamba_bc_norm`: RMSNorms on B and C, and after them biases of their own for each head, starting at 1.

    Raises:
        UserError: as Mamba2; an odd number of states that should turn in pairs.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        if config.mamba_complex_a and config.ssm_state_size % 2:
            raise UserError(
                f"ssm_state_size is {config.ssm_state_size}; mamba_complex_a turns pairs, so it must be even"
            )
        if config.mamba_trapezoidal:
            self.lambda_proj = Linear(config.d_model, self.n_heads, bias=False)
        if config.mamba_complex_a:
            self.theta_proj = Linear(config.d_model, config.mamba_n_groups * config.ssm_state_size // 2, bias=False)
        if config.mamba_bc_norm:
            self.b_norm_weight, self.c_norm_weight = mx.ones((2, config.ssm_state_size))
            self.b_bias, self.c_bias = mx.ones((2, self.n_heads, config.ssm_state_size))

    def _recur(
        self, inputs: mx.array, mixed: mx.array, dt: mx.array, cache: RecurrentCache
    ) -> tuple[mx.array, dict[str, mx.array]]:
        config, arrays = self.config, {}
        x, b, c = self._parts(mixed)
        if _per_head(config):
            b, c = (mx.repeat(a, self.n_heads // config.mamba_n_groups, axis=2) for a in (b, c))
        if config.mamba_bc_norm:
            b = kernels.rms_norm(b, self.b_norm_weight.astype(mx.float32), config.norm_eps) + self.b_bias
            c = kernels.rms_norm(c, self.c_norm_weight.astype(mx.float32), config.norm_eps) + self.c_bias
        if config.mamba_complex_a:
            angle, arrays["angle"] = self._angles(inputs, dt, cache["angle"])
            b, c = _turn_back(b, angle), _turn_back(c, angle)
        log_decay = -mx.exp(self.A_log) * dt
        if not config.mamba_trapezoidal:
            y, arrays["state"] = self._scan(x * dt[..., None], log_decay, b, c, cache["state"])
            return self._with_skip(y, x), arrays
        # Two recurrences with the same decays: of this token's end of the step, and of the one before it. Padding has
        # dt = 0, but the first token after it must not find it at the start of its own step.
        written = mx.where(dt[..., None] > 0, x, 0.0)
        share = mx.sigmoid(self.lambda_proj(inputs).astype(mx.float32))
        late, early = share * dt, (1 - share) * dt * mx.exp(log_decay)
        before_x, before_b = _shifted(written, cache["x"]), _shifted(b, cache["b"])
        arrays |= {"x": written[:, -1:], "b": b[:, -1:]}
        y, state = self._scan(x * late[..., None], log_decay, b, c, cache["state"])
        y_before, state_before = self._scan(before_x * early[..., None], log_decay, before_b, c, None)
        return self._with_skip(y + y_before, x), {**arrays, "state": state + state_before}

    def _angles(self, inputs: mx.array, dt: mx.array, start: mx.array | None) -> tuple[mx.array, mx.array]:
        """By how much each pair has turned since the first token, (B, T, H, N / 2), and by the last (B, H, N / 2)."""
        groups = self.config.mamba_n_groups
        theta = self.theta_proj(inputs).astype(mx.float32).reshape(*inputs.shape[:2], groups, -1)
        step = dt[..., None] * mx.repeat(theta, self.n_heads // groups, axis=2)
        angle = mx.cumsum(step, axis=1)
        if start is not None:
            angle = angle + start[:, None]
        last = angle[:, -1]
        return angle, last - 2 * mx.pi * mx.floor(last / (2 * mx.pi))

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        heads, width = heads_of(config)
        groups, channels = config.mamba_n_groups, config.ssm_state_size
        own = groups * channels // 2 * config.mamba_complex_a + heads * config.mamba_trapezoidal
        sizes = (channels, config.mamba_chunk_size, seq_len)
        wide = ssd_flops(heads, width, heads if _per_head(config) else groups, *sizes)
        recurrences = wide * (2 if config.mamba_trapezoidal else 1) - ssd_flops(heads, width, groups, *sizes)
        return super().flops(config, seq_len) + 2 * config.d_model * own + recurrences

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        heads, width = heads_of(config)
        channels = config.ssm_state_size
        angles = heads * channels // 2 * config.mamba_complex_a
        written = (heads if _per_head(config) else config.mamba_n_groups) * channels
        return 0, super().cached_numbers(config)[1] + angles + (heads * width + written) * config.mamba_trapezoidal


def _per_head(config: BlockConfig) -> bool:
    """Whether heads of a group have B and C of their own."""
    return config.mamba_complex_a or config.mamba_bc_norm


def _turn_back(a: mx.array, angle: mx.array) -> mx.array:
    """Neighbouring pairs of a (..., N) turned by -angle (..., N / 2)."""
    even, odd, cos, sin = a[..., ::2], a[..., 1::2], mx.cos(angle), mx.sin(angle)
    turned = mx.stack([even * cos + odd * sin, odd * cos - even * sin], axis=-1)
    return turned.reshape(a.shape)


def _shifted(a: mx.array, before: mx.array | None) -> mx.array:
    """a (B, T, ...) one token later, beginning with the last one before it."""
    before = mx.zeros_like(a[:, :1]) if before is None else before
    return mx.concatenate([before, a[:, :-1]], axis=1)

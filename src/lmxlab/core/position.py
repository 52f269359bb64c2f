"""Positions: where a token stands, told to attention (RoPE, ALiBi) or added to the embeddings (sinusoidal, learned).

Positions are absolute: `offset` is the number of tokens before the first one given, so cached decoding
goes on where the cache ends.
What goes by distance alone (RoPE, ALiBi) needs no more than one offset, also where rows have left padding.

Their tables are numpy arrays: a module's MLX arrays are its state, which a compiled step carries through every call.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from lmxlab.core.config import BlockConfig
from lmxlab.core.mask import Mask, additive
from lmxlab.core.registry import Registry
from lmxlab.core.rope_scaling import inverse_frequencies
from lmxlab.errors import UserError

Offset = int | mx.array
"""Tokens before the first one given: one number, or (B,) of them where rows have padding of their own."""


class RoPE(nn.Module):
    """Rotates q and k by angles proportional to the position (2104.09864), over head_dim.

    Channel i turns together with channel i + head_dim / 2, or, `config.rope_interleaved`, with its neighbour as in the
    paper and in Llama 4. With `config.partial_rotary_factor` below 1 only the first channels of each head turn, in
    pairs among themselves, and the others stay as they are.

    With `config.rope_scaling` the frequencies are those of `rope_scaling.inverse_frequencies`. Its kind "dynamic" is
    defined by the length of the pass: beyond the trained context a longer pass gives earlier tokens other angles, so
    there, and only there, cached steps are not the steps of one long pass, in this or any other library.

    Args:
        dims, interleaved: instead of what the config says.
    """

    def __init__(self, config: BlockConfig, dims: int | None = None, interleaved: bool | None = None):
        super().__init__()
        self.dims = dims or config.rotary_dim
        self.theta = config.rope_theta
        self.scaling = config.rope_scaling
        self.interleaved = config.rope_interleaved if interleaved is None else interleaved
        scaled = self.scaling is not None and not self.depends_on_length
        self._periods = self._compute_periods() if scaled else None

    @property
    def depends_on_length(self) -> bool:
        """Whether all angles change as the sequence grows: then keys are cached unrotated."""
        return self.scaling is not None and self.scaling.kind == "dynamic"

    def __call__(self, q: mx.array, k: mx.array, offset: int = 0) -> tuple[mx.array, mx.array]:
        """q and k (B, heads, T, head_dim), the first token at position `offset` -> the same shapes, rotated."""
        seq_len = offset + q.shape[2]
        return self.rotate(q, offset, seq_len), self.rotate(k, offset, seq_len)

    def rotate(self, x: mx.array, offset: int, seq_len: int) -> mx.array:
        """x (B, heads, T, head_dim) from position `offset`, within a sequence of `seq_len` tokens."""
        periods = self._compute_periods(seq_len) if self.depends_on_length else self._periods
        base, freqs = (self.theta, None) if periods is None else (None, mx.array(periods))
        x = mx.fast.rope(x, self.dims, traditional=self.interleaved, base=base, scale=1.0, offset=offset, freqs=freqs)
        magnitude = 1.0 if self.scaling is None else self.scaling.magnitude
        if magnitude == 1.0:
            return x
        return mx.concatenate([x[..., : self.dims] * magnitude, x[..., self.dims :]], axis=-1)

    def _compute_periods(self, seq_len: int | None = None) -> np.ndarray:
        # mx.fast.rope divides positions by what it calls `freqs`.
        return (1 / inverse_frequencies(self.dims, self.theta, self.scaling, seq_len)).astype(np.float32)


class Sinusoidal(nn.Module):
    """x + table: sin(p / 10000^(2i/d)) at channel 2i and cos of the same at 2i+1 (Vaswani et al. 2017, section 3.5).

    The table is no parameter and grows as needed, so any length works.
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.d_model = config.d_model
        self._table = _sinusoids(config.max_seq_len, config.d_model)

    def __call__(self, x: mx.array, offset: Offset = 0, positions: mx.array | None = None) -> mx.array:
        """x (..., T, d_model), its first token at position `offset` -> the same shape and dtype.

        Args:
            positions: (..., T), each below T, instead of an offset: those of several documents in one row.
        """
        end = _end(x, offset)
        if end > len(self._table):
            self._table = _sinusoids(2 ** math.ceil(math.log2(end)), self.d_model)
        return x + _rows(mx.array(self._table[:end]).astype(x.dtype), offset, x.shape[-2], positions)


def _sinusoids(n_positions: int, d_model: int) -> np.ndarray:
    angles = np.outer(np.arange(n_positions), inverse_frequencies(d_model, 10000.0))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(n_positions, d_model).astype(np.float32)


class Learned(nn.Module):
    """x + weight[position], a trained table of max_seq_len rows (GPT-2)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.weight = mx.random.normal((config.max_seq_len, config.d_model), scale=0.02)

    def __call__(self, x: mx.array, offset: Offset = 0, positions: mx.array | None = None) -> mx.array:
        """x (..., T, d_model), its first token at position `offset` -> the same shape.

        Args:
            positions: (..., T), each below T, instead of an offset: those of several documents in one row.

        Raises:
            UserError: a position that the table does not have.
        """
        end, n_rows = _end(x, offset), self.weight.shape[0]
        if end > n_rows:
            raise UserError(
                f"A sequence of {end} tokens is longer than max_seq_len {n_rows} of the learned positions; "
                "shorten it, or use position 'rope', 'alibi' or 'sinusoidal'"
            )
        return x + _rows(self.weight, offset, x.shape[-2], positions)


def _end(x: mx.array, offset: Offset) -> int:
    """The largest position among those of x (..., T, d_model), and 1."""
    first = offset if isinstance(offset, int) else int(offset.max().item())  # type: ignore[arg-type]  # no complex
    return first + x.shape[-2]


def _rows(table: mx.array, offset: Offset, n_tokens: int, positions: mx.array | None = None) -> mx.array:
    """Rows of `table` for `n_tokens` positions from `offset`: (T, d_model), or (B, T, d_model) for an array of them.

    Positions before 0 are those of padding; they get row 0. `positions` are taken as they are.
    """
    if positions is not None:
        return table[positions]
    if isinstance(offset, int):
        return table[offset : offset + n_tokens]
    return table[mx.maximum(offset[:, None] + mx.arange(n_tokens), 0)]


class ALiBi(nn.Module):
    """A bias on attention scores that falls linearly with distance: -slope_h |i - j| (2108.12409).

    Slopes are 2^(-8h/H), h = 1..H. For H that is no power of two: those of the next lower power of two, then
    every other one of the next higher (the authors' code, also BLOOM's and MPT's).
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        self._slopes = np.array(_alibi_slopes(config.n_heads), dtype=np.float32)[None, :, None, None]

    def __call__(self, mask: Mask = None, seq_len: int = 0, cache_len: int = 0) -> mx.array:
        """Bias plus mask.

        Args:
            mask: None, "causal", boolean (True: may attend) or additive, broadcastable to (1, H, Tq, Tk).
            seq_len: number of queries Tq.
            cache_len: keys before the first query, so Tk = cache_len + seq_len.

        Returns:
            (1, H, Tq, Tk) float32.
        """
        n_keys = cache_len + seq_len
        distances = mx.abs(mx.arange(cache_len, n_keys)[:, None] - mx.arange(n_keys)).astype(mx.float32)
        return mx.array(-self._slopes) * distances + additive(mask, seq_len, n_keys, mx.float32)


def _alibi_slopes(n_heads: int) -> list[float]:
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return slopes + between[: n_heads - power]


class NoPosition(nn.Module):
    """The identity: order is known from the causal mask alone."""

    def __init__(self, config: BlockConfig):
        super().__init__()

    def __call__(self, x: mx.array) -> mx.array:
        return x


def rope(config: BlockConfig) -> RoPE:
    """RoPE(config)."""
    return RoPE(config)


def sinusoidal(config: BlockConfig) -> Sinusoidal:
    """Sinusoidal(config)."""
    return Sinusoidal(config)


def alibi(config: BlockConfig) -> ALiBi:
    """ALiBi(config)."""
    return ALiBi(config)


position_registry: Registry[Callable[[BlockConfig], nn.Module]] = Registry("position")
position_registry.register("rope", RoPE)
position_registry.register("sinusoidal", Sinusoidal)
position_registry.register("learned", Learned)
position_registry.register("alibi", ALiBi)
position_registry.register("none", NoPosition)

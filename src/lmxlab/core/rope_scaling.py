"""Rotary frequencies, and the published ways of stretching them to contexts longer than the trained one."""

import math
from dataclasses import dataclass

import numpy as np

from lmxlab.errors import UnknownNameError, UserError

KINDS = ("linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies of a model are stretched.

    Kinds:
        linear: every frequency divided by `factor` (2306.15595).
        dynamic: the base grows with the sequence once it is longer than `original_max_seq_len` ("dynamic NTK").
        llama3: long wavelengths divided by `factor`, short ones kept, a ramp between (2407.21783, section 3.4).
        yarn: as llama3 with the ramp over rotations, and attention sharpened by `attention_factor` (2309.00071).

    Args:
        kind: one of the names above.
        factor: context length wanted / context length trained, at least 1.
        original_max_seq_len: the trained context length in tokens; all kinds but linear need it.
        low_freq_factor, high_freq_factor: llama3's ramp, in turns within the trained context.
        beta_fast, beta_slow: yarn's ramp, in turns within the trained context.
        attention_factor: yarn's scale of cos and sin; derived (0.1 ln(factor) + 1, or from the two mscales) when None.
        truncate: whether yarn's ramp starts and ends at whole dimensions.
    """

    kind: str
    factor: float = 1.0
    original_max_seq_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("rope scaling", self.kind, KINDS)
        if not self.factor >= 1:
            raise UserError(f"rope scaling factor is {self.factor}; it must be at least 1 (context wanted / trained)")
        if self.kind != "linear" and (self.original_max_seq_len is None or self.original_max_seq_len < 1):
            raise UserError(
                f"rope scaling {self.kind!r} needs original_max_seq_len, the trained context length in tokens; "
                f"it is {self.original_max_seq_len}"
            )
        if self.kind == "llama3" and not self.high_freq_factor >= self.low_freq_factor > 0:
            raise UserError(
                f"rope scaling needs 0 < low_freq_factor <= high_freq_factor; "
                f"they are {self.low_freq_factor} and {self.high_freq_factor}"
            )

    @property
    def magnitude(self) -> float:
        """The factor on cos and sin, so on both q and k: 1 for all kinds but yarn."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _yarn_magnitude(self.factor, self.mscale) / _yarn_magnitude(self.factor, self.mscale_all_dim)
        return _yarn_magnitude(self.factor, 1.0)


def inverse_frequencies(
    dims: int, theta: float, scaling: RopeScaling | None = None, seq_len: int | None = None
) -> np.ndarray:
    """Radians per position of each rotated pair of channels: (dims / 2,) float64.

    Without scaling theta^(-2i / dims) for i = 0 .. dims/2 - 1 (2104.09864, section 3.2.2).

    Args:
        dims: rotated channels per head, even.
        theta: the base.
        seq_len: tokens in the sequence so far; only the kind "dynamic" looks at it.

    >>> inverse_frequencies(4, 100.0).tolist()
    [1.0, 0.1]
    >>> inverse_frequencies(4, 100.0, RopeScaling("linear", factor=2.0)).tolist()
    [0.5, 0.05]
    """
    if scaling is not None and scaling.kind == "dynamic":
        theta = _dynamic_theta(dims, theta, scaling, seq_len or 0)
    plain = theta ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = _llama3_ramp(plain, scaling) if scaling.kind == "llama3" else _yarn_ramp(dims, theta, scaling)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _dynamic_theta(dims: int, theta: float, scaling: RopeScaling, seq_len: int) -> float:
    assert scaling.original_max_seq_len is not None
    ratio = max(seq_len, scaling.original_max_seq_len) / scaling.original_max_seq_len
    return theta * (scaling.factor * ratio - (scaling.factor - 1)) ** (dims / (dims - 2))


def _llama3_ramp(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is divided by the factor."""
    assert scaling.original_max_seq_len is not None
    turns = scaling.original_max_seq_len * plain / (2 * math.pi)
    if scaling.high_freq_factor == scaling.low_freq_factor:  # Llama 4: no ramp, a step
        return (turns > scaling.low_freq_factor).astype(np.float64)
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return np.clip(ramp, 0.0, 1.0)


def _yarn_ramp(dims: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is divided by the factor; linear in the channel between."""

    def channel_with(turns: float) -> float:
        assert scaling.original_max_seq_len is not None
        return dims * math.log(scaling.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel_with(scaling.beta_fast), channel_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001  # the reference's guard against 0 / 0
    return 1 - np.clip((np.arange(dims // 2) - low) / (high - low), 0.0, 1.0)


def _yarn_magnitude(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

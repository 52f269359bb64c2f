"""The norm at the end of a state-space mixer, with its gate."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels


class GatedGroupNorm(nn.Module):
    """RMSNorm(y silu(z)) * weight within each of `groups` equal parts of the channels (2405.21060, section 7).

    `placement` "before_gate" is RMSNorm(y) * weight * silu(z) instead, "none" only y silu(z), without a weight.
    Computed in float32.
    """

    def __init__(self, channels: int, groups: int, eps: float, placement: str = "after_gate"):
        super().__init__()
        self.placement, self.groups, self.eps = placement, groups, eps
        if placement != "none":
            self.weight = mx.ones((channels,))

    def __call__(self, y: mx.array, z: mx.array) -> mx.array:
        """y (..., channels) float32 and z (..., channels) -> (..., channels) in z's dtype."""
        gate = nn.silu(z.astype(mx.float32))
        if self.placement == "none":
            return (y * gate).astype(z.dtype)
        if self.placement == "after_gate":
            return self._norm(y * gate).astype(z.dtype)
        return (self._norm(y) * gate).astype(z.dtype)

    def _norm(self, y: mx.array) -> mx.array:
        parts = y.reshape(*y.shape[:-1], self.groups, -1)
        normed = kernels.rms_norm(parts, mx.ones((parts.shape[-1],)), self.eps)
        return normed.reshape(y.shape) * self.weight.astype(mx.float32)

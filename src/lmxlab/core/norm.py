"""Normalisation layers, run by the fast kernels."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.config import BlockConfig
from lmxlab.core.registry import Registry


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of (..., d_model) (1910.07467).

    With `config.norm_plus_one` it is * (1 + weight), the weight starting at 0 (Gemma, 2403.08295).
    """

    def __init__(self, config: BlockConfig, width: int | None = None):
        super().__init__(width or config.d_model, config.norm_eps)
        self._plus_one = config.norm_plus_one
        if self._plus_one:
            self.weight = mx.zeros_like(self.weight)

    def __call__(self, x: mx.array) -> mx.array:
        return kernels.rms_norm(x, 1 + self.weight if self._plus_one else self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis of (..., d_model) (1607.06450).

    Without `config.bias` there is no bias, as everywhere else in the model.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(config.d_model, config.norm_eps, bias=config.bias)

    def __call__(self, x: mx.array) -> mx.array:
        return kernels.layer_norm(x, self.weight, self.bias if "bias" in self else None, self.eps)


def rms_norm(config: BlockConfig) -> RMSNorm:
    """RMSNorm(config)."""
    return RMSNorm(config)


def layer_norm(config: BlockConfig) -> LayerNorm:
    """LayerNorm(config)."""
    return LayerNorm(config)


norm_registry: Registry[type[RMSNorm] | type[LayerNorm]] = Registry("norm")
norm_registry.register("rms_norm", RMSNorm)
norm_registry.register("layer_norm", LayerNorm)

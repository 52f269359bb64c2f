"""Feed-forward networks: (..., d_model) -> (..., d_model) through d_ff channels."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.registry import Registry


class FFNBase(nn.Module):
    """Holds the config; subclasses map (..., d_model) to (..., d_model)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config


class _UpDownFFN(FFNBase):
    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.up = Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias)


class _GatedUpDownFFN(FFNBase):
    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.gate = Linear(config.d_model, config.d_ff, bias=config.bias)
        self.up = Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias)


class StandardFFN(_UpDownFFN):
    """down(gelu(up(x))), with GELU by erf or, for `activation="gelu_tanh"`, by tanh as in GPT-2 (1606.08415)."""

    def __call__(self, x: mx.array) -> mx.array:
        activate = kernels.gelu_tanh if self.config.activation == "gelu_tanh" else kernels.gelu
        return self.down(activate(self.up(x)))


class ReluSquaredFFN(_UpDownFFN):
    """down(relu(up(x))^2) (2109.08668)."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(mx.square(nn.relu(self.up(x))))


class GatedFFN(_GatedUpDownFFN):
    """SwiGLU: down(silu(gate(x)) * up(x)) (2002.05202)."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(kernels.swiglu(self.gate(x), self.up(x)))


class GatedReluSquaredFFN(_GatedUpDownFFN):
    """down(relu(gate(x))^2 * up(x))."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(mx.square(nn.relu(self.gate(x))) * self.up(x))


class NoneFFN(FFNBase):
    """The identity, when called by itself; a block leaves the whole branch out."""

    def __call__(self, x: mx.array) -> mx.array:
        return x


ffn_registry: Registry[type[FFNBase]] = Registry("ffn")
ffn_registry.register("standard", StandardFFN)
ffn_registry.register("gated", GatedFFN)
ffn_registry.register("relu2", ReluSquaredFFN)
ffn_registry.register("gated_relu2", GatedReluSquaredFFN)
ffn_registry.register("none", NoneFFN)

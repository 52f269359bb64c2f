"""Feed-forward networks: (..., d_model) -> (..., d_model) through d_ff channels."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.config import BlockConfig
from lmxlab.core.linear import Linear
from lmxlab.core.recompute import recompute
from lmxlab.core.registry import Registry, check_needs


class FFNBase(nn.Module):
    """Holds the config; subclasses map (..., d_model) to (..., d_model).

    The layer that writes into the residual stream is named `down`, which makes it start smaller (`models/init.py`).

    Attributes:
        needs: the fields of BlockConfig that must be set, and what they mean.
    """

    needs: dict[str, str] = {}

    def __init__(self, config: BlockConfig):
        super().__init__()
        check_needs(self, config)
        self.config = config

    @classmethod
    def flops(cls, config: BlockConfig) -> int:
        """Forward FLOPs per token of its matrix products, 2 per multiply-add."""
        raise NotImplementedError(f"{cls.__name__} must define flops(config)")


class _UpDownFFN(FFNBase):
    # From the channels that x is projected to, each (..., d_ff), the one that is projected down.
    activate: Callable[..., mx.array]
    n_matrices = 2

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.up = Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self._activate_and_project(self.up(x))

    def _activate_and_project(self, *channels: mx.array) -> mx.array:
        """down(activate(channels)). While training, the activations are computed again for the backward pass.

        They are d_ff wide and would be the largest thing that a layer keeps; computing them twice costs 1 to 2%.
        """

        def project(*channels: mx.array) -> mx.array:
            out: mx.array = self.down(self.activate(*channels))
            return out

        return recompute(self.down, project, *channels) if self.training else project(*channels)

    @classmethod
    def flops(cls, config: BlockConfig) -> int:
        return 2 * cls.n_matrices * config.d_model * config.d_ff


class _GatedUpDownFFN(_UpDownFFN):
    n_matrices = 3

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.gate = Linear(config.d_model, config.d_ff, bias=config.bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self._activate_and_project(self.gate(x), self.up(x))


class StandardFFN(_UpDownFFN):
    """down(gelu(up(x))), with GELU by erf or, for `activation="gelu_tanh"`, by tanh as in GPT-2 (1606.08415)."""

    def activate(self, up: mx.array) -> mx.array:
        return kernels.gelu_tanh(up) if self.config.activation == "gelu_tanh" else kernels.gelu(up)


class ReluSquaredFFN(_UpDownFFN):
    """down(relu(up(x))^2) (2109.08668)."""

    def activate(self, up: mx.array) -> mx.array:
        return mx.square(nn.relu(up))


class GatedFFN(_GatedUpDownFFN):
    """down(silu(gate(x)) * up(x)), SwiGLU, or GeGLU with `activation="gelu_tanh"` in its place (2002.05202).

    `config.multipliers` may scale the gate and the output (Falcon-H1).
    """

    def __call__(self, x: mx.array) -> mx.array:
        factors = self.config.multipliers
        if factors is None:
            return super().__call__(x)
        return self._activate_and_project(self.gate(x) * factors.mlp_gate, self.up(x)) * factors.mlp_down

    def activate(self, gate: mx.array, up: mx.array) -> mx.array:
        if self.config.activation == "gelu_tanh":
            return kernels.gelu_tanh(gate) * up
        return kernels.swiglu(gate, up)


class GatedReluSquaredFFN(_GatedUpDownFFN):
    """down(relu(gate(x))^2 * up(x))."""

    def activate(self, gate: mx.array, up: mx.array) -> mx.array:
        return mx.square(nn.relu(gate)) * up


class NoneFFN(FFNBase):
    """The identity, when called by itself; a block leaves the whole branch out."""

    def __call__(self, x: mx.array) -> mx.array:
        return x

    @classmethod
    def flops(cls, config: BlockConfig) -> int:
        return 0


ffn_registry: Registry[type[FFNBase]] = Registry("ffn")
ffn_registry.register("standard", StandardFFN)
ffn_registry.register("gated", GatedFFN)
ffn_registry.register("relu2", ReluSquaredFFN)
ffn_registry.register("gated_relu2", GatedReluSquaredFFN)
ffn_registry.register("none", NoneFFN)

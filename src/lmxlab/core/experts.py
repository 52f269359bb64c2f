"""The experts of a mixture: networks whose matrices are stacked, each applied to the tokens that are routed to it."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.kernels.experts import Plan, expert_matmul, from_rows, plan_rows, to_rows
from lmxlab.core.quantize import MODES, float_weight
from lmxlab.core.recompute import recompute

GATED = ("silu", "gelu_tanh")
ACTIVATIONS = (*GATED, "relu2")


class ExpertLinear(nn.Module):
    """A matrix for each expert: weight (n_experts, out, in), no biases."""

    def __init__(self, n_experts: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = mx.random.uniform(-(n_in**-0.5), n_in**-0.5, (n_experts, n_out, n_in))

    def __call__(self, rows: mx.array, plan: Plan) -> mx.array:
        """(S, in) rows in the order of the plan -> (S, out)."""
        return expert_matmul(rows, self.weight, plan)

    def init_weights(self, std: float) -> None:
        """Draws the weights from N(0, std^2)."""
        self.weight = mx.random.normal(self.weight.shape, scale=std)

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", **_: object
    ) -> "QuantizedExpertLinear":
        """The same matrices, quantised along `in` (what mlx.nn.quantize calls)."""
        return QuantizedExpertLinear(self.weight, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """ExpertLinear with quantised matrices, frozen; what `ExpertLinear.to_quantized` makes."""

    def __init__(self, weight: mx.array, group_size: int | None, bits: int | None, mode: str):
        super().__init__()
        widths, sizes = MODES[mode]
        self.group_size, self.bits, self.mode = group_size or sizes[0], bits or widths[0], mode
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
        if biases:
            self.biases = biases[0]
        self.freeze()

    def to_float(self, dtype: mx.Dtype) -> ExpertLinear:
        """The matrices that these stand for."""
        weight = float_weight(self, dtype)
        layer = ExpertLinear(len(weight), weight.shape[2], weight.shape[1])
        layer.weight = weight
        return layer

    def __call__(self, rows: mx.array, plan: Plan) -> mx.array:
        """(S, in) rows in the order of the plan -> (S, out)."""
        out = mx.gather_qmm(
            rows.reshape(-1, plan.block, rows.shape[-1]),
            self.weight,
            self.scales,
            self.get("biases"),
            rhs_indices=plan.experts,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=plan.spans is not None,
        )
        return out.reshape(len(rows), -1)


class Experts(nn.Module):
    """n_experts feed-forward networks: down(silu(gate(x)) * up(x)), or with "relu2" down(relu(up(x))^2).

    Args:
        n_experts: how many there are.
        d_model, d_ff: channels of their input and output, and between.
        activation: "silu" or "gelu_tanh" with a gate, or "relu2" without.
    """

    def __init__(self, n_experts: int, d_model: int, d_ff: int, activation: str):
        super().__init__()
        self.n_experts = n_experts
        self.activation = activation
        if activation in GATED:
            self.gate = ExpertLinear(n_experts, d_model, d_ff)
        self.up = ExpertLinear(n_experts, d_model, d_ff)
        self.down = ExpertLinear(n_experts, d_ff, d_model)

    def __call__(self, x: mx.array, indices: mx.array, weights: mx.array, scale_input: bool = False) -> mx.array:
        """sum_k weights[n, k] expert_k(x[n]); with `scale_input` sum_k expert_k(weights[n, k] x[n]).

        x (N, d_model), indices (N, K) of the chosen experts, weights (N, K) -> (N, d_model).
        """
        plan = plan_rows(indices, self.n_experts, x)
        rows = to_rows(x, plan)
        if scale_input:
            rows = rows * weights.reshape(-1)[plan.choices][:, None].astype(x.dtype)
            weights = mx.ones_like(weights)
        channels = [self.gate(rows, plan), self.up(rows, plan)] if "gate" in self else [self.up(rows, plan)]

        def project(*channels: mx.array) -> mx.array:
            out: mx.array = self.down(self._activate(*channels), plan)
            return out

        # As in the other feed-forward networks, activations are computed again for the backward pass, not kept.
        out = recompute(self.down, project, *channels) if self.training else project(*channels)
        return from_rows(out, weights, plan)

    def _activate(self, *channels: mx.array) -> mx.array:
        if self.activation == "relu2":
            return mx.square(nn.relu(channels[0]))
        gate, up = channels
        return kernels.gelu_tanh(gate) * up if self.activation == "gelu_tanh" else kernels.swiglu(gate, up)

"""A low-rank update for every expert of a mixture, over stacked matrices that stay as they are."""

from typing import Any, Unpack

import mlx.core as mx

from lmxlab.core.dropout import drop
from lmxlab.core.experts import ExpertLinear, QuantizedExpertLinear
from lmxlab.core.kernels.experts import Plan, expert_matmul
from lmxlab.core.low_rank import LowRank, Options
from lmxlab.errors import UserError


class LoRAExpertLinear(LowRank):
    """ExpertLinear, or a quantised one, with a trained update for each expert (see LowRank).

    lora_A is (n_experts, in, rank), lora_B (n_experts, rank, out). DoRA is not built for it.
    """

    def __init__(
        self,
        experts: ExpertLinear | QuantizedExpertLinear,
        rank: int = 8,
        alpha: float = 1.0,
        **options: Unpack[Options],
    ):
        if options.get("dora"):
            raise UserError("dora: stacked experts can have LoRA, but no DoRA; choose other targets for DoRA")
        n_experts, output_dims, input_dims = experts.weight.shape
        quantised = isinstance(experts, QuantizedExpertLinear)
        input_dims = input_dims * 32 // experts.bits if quantised else input_dims
        super().__init__(input_dims, output_dims, rank, alpha, (n_experts,), **options)
        if quantised:
            self.group_size, self.bits, self.mode = experts.group_size, experts.bits, experts.mode
        self._adopt(experts)

    def __call__(self, rows: mx.array, plan: Plan) -> mx.array:  # type: ignore[override]  # it takes the plan, too
        """(S, in) rows in the order of the plan -> (S, out)."""
        if not self.adapter_on:
            return self._base(rows, plan)
        seen = drop(rows, self.dropout) if self.draws else rows
        low = expert_matmul(seen, self.lora_A.swapaxes(-1, -2).astype(rows.dtype), plan) * self.scaling
        return self._base(rows, plan) + expert_matmul(low, self.lora_B.swapaxes(-1, -2).astype(rows.dtype), plan)

    def _base(self, rows: mx.array, plan: Plan) -> mx.array:  # type: ignore[override]
        kind: Any = QuantizedExpertLinear if "scales" in self else ExpertLinear
        product: mx.array = kind.__call__(self, rows, plan)  # it has all that this kind reads
        return product

    def to_linear(self) -> ExpertLinear:
        """The experts with the updates folded into their matrices, in the matrices' own type."""
        return self._plain(self.merged_weight().astype(self.weight.dtype))

    def to_quantized(self, group_size: int = 64, bits: int = 4, mode: str = "affine") -> "LoRAExpertLinear":
        """The same adapters over the matrices quantised."""
        packed = self._plain(self.weight).to_quantized(group_size, bits, mode)
        return LoRAExpertLinear(packed).with_adapter_of(self)

    def to_float(self, dtype: mx.Dtype) -> "LoRAExpertLinear":
        """The same adapters over the matrices that the quantised ones stand for."""
        return LoRAExpertLinear(self._plain(self.float_weight().astype(dtype))).with_adapter_of(self)

    def _plain(self, weight: mx.array) -> ExpertLinear:
        layer = ExpertLinear(len(weight), weight.shape[2], weight.shape[1])
        layer.weight = weight
        layer.train(self.training)
        return layer

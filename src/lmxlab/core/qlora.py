"""Adapters over quantised layers (QLoRA, 2305.14314): 4-bit weights that stay as they are, and a trained update."""

from typing import Unpack

import mlx.nn as nn

from lmxlab.core.adapters import adapt, choose
from lmxlab.core.low_rank import LoRAQuantizedLinear, Options
from lmxlab.errors import UserError

__all__ = ["LoRAQuantizedLinear", "apply_qlora"]


def apply_qlora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 1.0,
    targets: list[str] | None = None,
    **options: Unpack[Options],
) -> None:
    """As `apply_lora`, for a model that `quantize_model` has quantised.

    Layers that the targets mean and that were left whole get an adapter over their float weight.

    Raises:
        UserError: a target that no linear layer's name contains, or no quantised layer among those that are meant.
    """
    chosen = choose(model, targets)
    if not any("scales" in layer for layer in chosen.values()):
        raise UserError("apply_qlora: none of the layers is quantised; call quantize_model first, or use apply_lora")
    adapt(model, chosen, rank, alpha, **options)

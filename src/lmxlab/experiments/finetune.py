"""Adapters as a setting of a run: put over its model when it starts, folded in when it is used."""

import dataclasses
from dataclasses import dataclass

from lmxlab.core.lora import apply_lora, merge_lora
from lmxlab.core.qlora import apply_qlora
from lmxlab.core.quantize import dequantize_model, quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters over the model; with rank 0, the default, all of it is trained.

    Attributes:
        rank: of the update of each layer.
        alpha: the update is multiplied by alpha / rank.
        targets: parts of layer names (attention, ffn, q_proj, head, ...), or all-linear.
        dora: train the length of the weights' rows apart from their direction.
        rslora: multiply the update by alpha / sqrt(rank) instead.
        dropout: of what the update sees.
        quantize: bits of the weights under the adapters (QLoRA); nothing leaves them whole.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention",)
    dora: bool = False
    rslora: bool = False
    dropout: float = 0.0
    quantize: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank must be at least 0, got {self.rank}.")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        if not self.rank and changed:
            raise UserError(f"lora.{changed[0]} would be ignored: lora.rank is 0; set it, too, to 8 for one.")


def put_adapters(model: LanguageModel, lora: LoRAConfig) -> None:
    """Quantises the model, where that is asked for, and gives it the adapters, which are then all that is trained."""
    if not lora.rank:
        return
    if lora.quantize is not None:
        quantize_model(model, lora.quantize, skip_narrow=True)
    apply = apply_lora if lora.quantize is None else apply_qlora
    kind = {"dora": lora.dora, "rslora": lora.rslora, "dropout": lora.dropout}
    apply(model, lora.rank, lora.alpha, list(lora.targets), **kind)  # type: ignore[arg-type]


def fold_adapters(model: LanguageModel, lora: LoRAConfig) -> None:
    """Makes it a model without adapters again that computes the same."""
    if lora.rank:
        dequantize_model(model)
        merge_lora(model)

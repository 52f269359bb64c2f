"""Which layers of a model get an adapter, and setting the adapters that a model has."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.experts import ExpertLinear, QuantizedExpertLinear
from lmxlab.core.lora_experts import LoRAExpertLinear
from lmxlab.core.low_rank import ADAPTER_NAMES, LoRALinear, LoRAQuantizedLinear, LowRank, Options
from lmxlab.core.quantize import freeze_all_but_adapters, replace
from lmxlab.errors import UserError, some, unknown_name

ALL_LINEAR = "all-linear"
OUTPUT_HEAD = "head"
DEFAULT_TARGETS = ("attention",)
ADAPTABLE = (nn.Linear, nn.QuantizedLinear, ExpertLinear, QuantizedExpertLinear)


class AdapterError(UserError):
    """An adapter's files that are damaged, or that belong to another model."""


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    """The layers of a model that have an adapter, by name."""
    return {path: layer for path, layer in sorted(model.named_modules()) if isinstance(layer, LowRank)}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes what it did before it got its adapters."""
    layers = adapters_of(model).values()
    for layer in layers:
        layer.adapter_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.adapter_on = True


def adapt(model: nn.Module, layers: dict[str, nn.Module], rank: int, alpha: float, **options: Unpack[Options]) -> None:
    """Puts an adapter over each of these layers of the model, and freezes everything but adapters."""
    for path, layer in layers.items():
        replace(model, path, _with_adapter(layer, rank, alpha, **options))
    freeze_all_but_adapters(model)


def choose(model: nn.Module, targets: Sequence[str] | str | None) -> dict[str, nn.Module]:
    """The linear layers and stacked experts, quantised or not, that `targets` mean (see `apply_lora`), by name."""
    linear = {path: layer for path, layer in model.named_modules() if isinstance(layer, ADAPTABLE)}
    chosen: dict[str, nn.Module] = {}
    for target in [targets] if isinstance(targets, str) else targets or DEFAULT_TARGETS:
        hits = {path: layer for path, layer in sorted(linear.items()) if _is_meant(path, target)}
        if not hits:
            raise UserError(_why_nothing(model, target, list(linear)))
        chosen |= hits
    return chosen


def fill_adapters(
    model: nn.Module, arrays: dict[str, mx.array], settings: dict[str, dict[str, Any]], source: str
) -> None:
    """Sets the adapters of a model, whose layers get them where it has none yet.

    Args:
        arrays: "<layer>.lora_A" (in, rank), "<layer>.lora_B" (rank, out), with DoRA "<layer>.lora_magnitude" (out,).
        settings: by layer: alpha, scaling, dropout, as far as they are known.
        source: what errors call the place that the arrays came from.

    Raises:
        AdapterError: names or shapes that are not this model's; nothing is changed then.
    """
    layers = adapters_of(model)
    new = not layers
    if new:
        layers = _new_layers(model, arrays, settings, source)
    expected = {f"{name}.{key}": layer[key] for name, layer in layers.items() for key in ADAPTER_NAMES if key in layer}
    missing, unknown = expected.keys() - arrays.keys(), arrays.keys() - expected.keys()
    if missing or unknown:
        parts = [f"it lacks {some(missing)}"] if missing else []
        parts += [f"the model has no {some(unknown)}"] if unknown else []
        raise AdapterError(f"{source} is an adapter for another model: {'; '.join(parts)}")
    for name, array in sorted(arrays.items()):
        if array.shape != expected[name].shape:
            raise AdapterError(
                f"{source} is an adapter for another model: its {name} is {array.shape}, here {expected[name].shape}"
            )
    for path, layer in layers.items():
        for key in ADAPTER_NAMES:
            if key in layer:
                layer[key] = arrays[f"{path}.{key}"].astype(mx.float32)
        for key, value in settings.get(path, {}).items():
            setattr(layer, key, value)
        if "scaling" not in settings.get(path, {"scaling": None}):
            layer.scaling = layer.alpha / layer.rank
        mx.eval(layer.parameters())  # the file may be gone when they are used
    if new:
        for path, layer in layers.items():
            replace(model, path, layer)
        freeze_all_but_adapters(model)


def _is_meant(path: str, target: str) -> bool:
    if target == ALL_LINEAR:
        return path != OUTPUT_HEAD
    start, end = (r"(?<!\d)" if target[:1].isdigit() else ""), (r"(?!\d)" if target[-1:].isdigit() else "")
    return bool(re.search(start + re.escape(target) + end, path))  # "blocks.1" does not mean "blocks.10"


def _why_nothing(model: nn.Module, target: str, linear: list[str]) -> str:
    others = [path for path, layer in model.named_modules() if path and _is_meant(path, target)]
    adapted = [path for path in others if path in adapters_of(model)]
    if adapted:
        return f"{some(adapted)} have an adapter already; merge_lora first"
    if others or target == OUTPUT_HEAD:
        return (
            f"Target {target!r} means no linear layer, and only those can have an adapter: no embedding (nor a tied "
            "head, which is the embedding), no norm, no convolution"
        )
    parts = {part for path in linear for part in path.split(".") if not part.isdigit()}
    return unknown_name("target", target, parts | {ALL_LINEAR})


def _with_adapter(layer: nn.Module, rank: int, alpha: float, **options: Unpack[Options]) -> LowRank:
    if isinstance(layer, ExpertLinear | QuantizedExpertLinear):
        return LoRAExpertLinear(layer, rank, alpha, **options)
    if isinstance(layer, nn.QuantizedLinear):
        return LoRAQuantizedLinear.from_quantized(layer, rank, alpha, **options)
    assert isinstance(layer, nn.Linear)
    return LoRALinear.from_linear(layer, rank, alpha, **options)


def _new_layers(
    model: nn.Module, arrays: dict[str, mx.array], settings: dict[str, dict[str, Any]], source: str
) -> dict[str, LowRank]:
    modules = dict(model.named_modules())
    layers = {}
    for path in sorted({name.rpartition(".")[0] for name in arrays}):
        layer, low = modules.get(path), arrays.get(f"{path}.lora_A")
        if not isinstance(layer, ADAPTABLE):
            raise AdapterError(f"{source} is an adapter for another model: this one has no linear layer {path!r}")
        if low is None or low.ndim not in (2, 3):
            raise AdapterError(f"{source} is damaged: it has no matrix {path}.lora_A")
        dora = f"{path}.lora_magnitude" in arrays
        layers[path] = _with_adapter(layer, low.shape[-1], settings.get(path, {}).get("alpha", 1.0), dora=dora)
    return layers

"""Weights of few bits: every mode of MLX, for whole models, in both directions."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from lmxlab.core.linear import Linear
from lmxlab.errors import UnknownNameError, UserError, some

# mode: (bits, group sizes), the mode's own first. affine keeps a scale and an offset per group; the others (OCP
# Microscaling Formats, and NVIDIA's) hold floating-point numbers of 4 or 8 bits with an 8-bit scale per group.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 1, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


def quantize_model(
    model: nn.Module, bits: int = 4, group_size: int = 64, mode: str = "affine", *, skip_narrow: bool = False
) -> list[str]:
    """Quantises every layer that can be (linear layers, embeddings, stacked experts) in place; norms stay.

    Args:
        bits: per weight: 1, 2, 3, 4, 5, 6 or 8 for "affine". The other modes have one width and one group size; for
            them the defaults of both stand for the mode's own.
        group_size: weights of a row that share a scale: 32, 64 or 128 for "affine".
        mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
        skip_narrow: leave layers whole whose rows are no multiple of the group size, instead of refusing.

    Returns:
        The names of the layers that were left whole; empty without `skip_narrow`.

    Raises:
        UserError: bits or a group size that the mode does not have; rows that are no multiple of the group size.

    >>> model = nn.Sequential(nn.Embedding(10, 64), nn.RMSNorm(64), nn.Linear(64, 10))
    >>> quantize_model(model, bits=8)
    []
    >>> [type(layer).__name__ for layer in model.layers]
    ['QuantizedEmbedding', 'RMSNorm', 'QuantizedLinear']
    """
    bits, group_size = check_quantization(bits, group_size, mode)
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    widths = {path: layer.weight.shape[-1] for path, layer in leaves if hasattr(layer, "to_quantized")}
    del leaves
    if not widths:
        raise UserError("quantize: the model has no layer that can be quantised; are they quantised already?")
    narrow = [path for path, width in widths.items() if width % group_size]
    if narrow and not skip_narrow:
        fitting = [size for size in sorted(MODES[mode][1]) if not any(width % size for width in widths.values())]
        instead = f"group_size {' or '.join(map(str, fitting))} fits all; else " if fitting else ""
        raise UserError(
            f"quantize: rows of {some(narrow)} are no multiple of {group_size} weights; {instead}"
            "quantize_model(..., skip_narrow=True) leaves such layers whole"
        )
    for path in [path for path in widths if path not in narrow]:
        layer = module_at(model, path)
        replace(model, path, layer.to_quantized(group_size=group_size, bits=bits, mode=mode))
    return narrow


def dequantize_model(model: nn.Module) -> None:
    """Turns quantised layers back into float ones, with the weights that the quantised ones stand for, in place.

    The weights get the type of the layer's scales or, in modes whose scales are 8-bit numbers, that of the rest of the
    model. Adapters stay, over the float weights; a model with adapters has nothing else to train, any other can be
    trained as a whole.
    """
    arrays: Any = tree_flatten(model.parameters())
    own = {array.dtype for name, array in arrays if "lora_" not in name and mx.issubdtype(array.dtype, mx.floating)}
    half = own - {mx.float32}  # some parameters are float32 in any model
    rest = half.pop() if half else mx.float32
    for path in [path for path, layer in model.named_modules() if "scales" in layer]:
        layer = module_at(model, path)
        dtype = layer.scales.dtype if mx.issubdtype(layer.scales.dtype, mx.floating) else rest
        replace(model, path, _to_float(layer, dtype))
    if any("lora_" in name for name, _ in arrays):
        freeze_all_but_adapters(model)


def check_quantization(bits: int, group_size: int, mode: str) -> tuple[int, int]:
    """(bits, group size) to use: those given, or the mode's own for the defaults of `quantize_model`.

    Raises:
        UserError: the mode is not one of MLX's, or does not have them.
    """
    if mode not in MODES:
        raise UnknownNameError("quantisation mode", mode, MODES)
    widths, sizes = MODES[mode]
    if mode != "affine" and (bits, group_size) == (4, 64):
        return widths[0], sizes[0]
    for name, value, allowed in (("bits", bits, widths), ("group_size", group_size, sizes)):
        if value not in allowed:
            raise UserError(f"quantize: {name} is {value!r}; {mode} has {', '.join(map(str, sorted(allowed)))}")
    return bits, group_size


def float_weight(layer: nn.Module, dtype: mx.Dtype) -> mx.array:
    """The weight of a layer, (..., out, in) in `dtype`: that which a quantised one stands for. Without its adapter."""
    if "scales" not in layer:
        whole: mx.array = layer.weight.astype(dtype)
        return whole
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=dtype,
    )


def freeze_all_but_adapters(model: nn.Module) -> None:
    """Leaves only lora_A, lora_B and lora_magnitude trainable."""
    model.freeze()
    model.unfreeze(keys=["lora_A", "lora_B", "lora_magnitude"])


def module_at(model: nn.Module, path: str) -> Any:
    """The module of that name, or the list of them."""
    found: Any = model
    for name in path.split(".") if path else ():
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


def replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts `layer` in place of the module of that name, in its mode."""
    above, _, last = path.rpartition(".")
    parent = module_at(model, above)
    key: Any = int(last) if isinstance(parent, list) else last
    layer.train(parent[key].training)
    parent[key] = layer


def _to_float(layer: nn.Module, dtype: mx.Dtype) -> nn.Module:
    if hasattr(layer, "to_float"):
        return layer.to_float(dtype)
    weight = float_weight(layer, dtype)
    if isinstance(layer, nn.QuantizedEmbedding):
        new: nn.Module = nn.Embedding(*weight.shape)
    else:
        new = Linear(weight.shape[1], weight.shape[0], bias="bias" in layer)
    new.weight = weight
    if "bias" in layer:
        new.bias = layer.bias
    return new

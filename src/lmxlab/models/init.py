"""The weights that a new model starts from."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

if TYPE_CHECKING:
    from lmxlab.models.base import LanguageModel

STD = 0.02
RESIDUAL_OUTPUTS = ("o_proj", "down")  # the layers that write into the residual stream


def init_weights(model: "LanguageModel") -> None:
    """Draws every weight anew from mx.random, as GPT-2 does (Radford et al. 2019, section 2.3).

    Embeddings, learned positions and matrices are N(0, 0.02^2), biases 0, norms the identity. Layers that write into
    the residual stream start smaller by sqrt(number of residual branches), which is sqrt(2 n_layers) for
    attention + FFN blocks, so that the stream's variance does not grow with depth.

    Under muP (2203.03466, table 8) the matrices inside the blocks have variance proportional to 1 / width:
    0.02^2 / width_mult. Embeddings and head do not depend on it.

    A module whose own parameters are none of these (stacked experts, convolutions, rates) has a method
    `init_weights(std)` that draws them; std is what a matrix in its place would get.
    """
    _draw(model, model.named_modules())


def init_heads(model: "LanguageModel") -> None:
    """Draws the prediction heads' weights, as those of the blocks: after all others, which they leave as they are."""
    _draw(model, [(path, module) for path, module in model.named_modules() if path.startswith("mtp_heads.")])


def _draw(model: "LanguageModel", modules: Iterable[tuple[str, nn.Module]]) -> None:
    n_branches = sum(block.has_attention + block.has_ffn for block in model.blocks)
    residual_std = STD / math.sqrt(max(n_branches, 1))
    for path, module in modules:
        std = residual_std if path.rsplit(".", 1)[-1] in RESIDUAL_OUTPUTS else STD
        # Embeddings, learned positions and the head are vector-like: one of their sides does not grow with the width.
        if path.startswith(("blocks.", "mtp_heads.")):
            std /= math.sqrt(model.config.width_mult)
        if hasattr(module, "init_weights"):
            module.init_weights(std)
        elif isinstance(module, nn.Linear | nn.Embedding) or path == "embed_position" and "weight" in module:
            module.weight = mx.random.normal(module.weight.shape, scale=std)
            if "bias" in module:
                module.bias = mx.zeros_like(module.bias)

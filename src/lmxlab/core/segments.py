"""Several documents in one row: who may see whom, where each token stands in its own, and which layers can do it."""

import mlx.core as mx

from lmxlab.core.config import BlockConfig
from lmxlab.core.mask import causal
from lmxlab.errors import UserError

MASKED = ("mha", "gqa", "sliding_window_gqa", "mla", "none")  # attention that sees nothing but what a mask shows


def visible(segments: mx.array) -> mx.array:
    """(B, T) numbers of documents, each in one piece -> boolean (B, 1, T, T): what came before in the same document."""
    length = segments.shape[1]
    return (segments[:, None, :, None] == segments[:, None, None, :]) & causal(length, length)


def positions(segments: mx.array) -> mx.array:
    """(B, T) numbers of documents -> (B, T) int32, the place of each token in its own document, from 0."""
    place = mx.arange(segments.shape[1])
    starts = mx.concatenate([mx.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    return place - mx.cummax(mx.where(starts != 0, place, 0), axis=1)


def check_separable(block: BlockConfig) -> None:
    """UserError for a layer through which a document would still learn of those before it in its row."""
    scaling = block.rope_scaling
    if block.attention not in MASKED:
        what = f"attention {block.attention!r}"
    elif scaling is not None and scaling.kind == "dynamic":
        what = "dynamic rope scaling, which goes by the length of the row"
    elif block.temperature_floor is not None:
        what = "temperature_floor, which goes by the place in the row"
    else:
        return
    raise UserError(
        f"Documents in one row cannot be kept apart by a layer with {what}: give one document per row, or choose "
        f"attention from {MASKED}."
    )

"""What a training step minimises: sums over what a batch holds, so that batches of any size can be put together."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.models.base import evaluating

Batch = tuple[mx.array, ...]


class Loss(NamedTuple):
    """Sums over a batch, float32 scalars; `counted` says over how many: tokens, pairs, completions.

    The loss is total / counted; so is each of `metrics`, which a step reports beside it.
    """

    total: mx.array
    counted: mx.array
    metrics: dict[str, mx.array] = {}


# objective(model, *batch), of the arrays that the data's batches consist of.
Objective = Callable[..., Loss]


def next_token(model: nn.Module, x: mx.array, y: mx.array, segments: mx.array | None = None) -> Loss:
    """Cross-entropy summed over the targets: x (B, T) tokens, y (B, T) next tokens; a negative one is not scored.

    segments (B, T), for a LanguageModel: the documents of each row, which do not see each other.
    """
    return Loss(*token_nats(model, x, y, segments))


def token_nats(
    model: nn.Module, x: mx.array, y: mx.array, segments: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Cross-entropy summed over the targets, and how many targets were scored, both float32 scalars.

    x (B, T) tokens; y (B, T) next tokens, where a negative one (the usual -100) is not scored. A LanguageModel
    never holds all logits; any other module is called and may return logits (B, T, V) or a tuple that
    starts with them.
    """
    targets = mx.maximum(y, 0)
    if hasattr(model, "nats"):
        nats = model.nats(x, targets) if segments is None else model.nats(x, targets, segments)
    else:
        out = model(x)
        nats = kernels.cross_entropy(out[0] if isinstance(out, tuple) else out, targets)
    return scored_sum(nats, y)


def scored_sum(nats: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
    """Sum of `nats` over the targets y that are not negative, both (B, T), and how many those are; float32 scalars."""
    scored = (y >= 0).astype(mx.float32)
    return (nats.astype(mx.float32) * scored).sum(), scored.sum()


def mean_loss(model: nn.Module, batches: Iterable[Batch], objective: Callable[..., Any]) -> dict[str, float]:
    """{"loss": ..., and each metric} over all batches, as `objective(*batch)` sums them; dropout off meanwhile.

    Empty if nothing was counted.
    """
    sums: dict[str, float] = {}
    counted = 0.0
    with evaluating(model):
        for batch in batches:
            total, count, metrics = objective(*batch)
            mx.eval(total, count, metrics)
            for name, value in {"loss": total, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + item(value)
            counted += item(count)
    return {name: value / counted for name, value in sums.items()} if counted else {}


def item(scalar: mx.array) -> float:
    """The Python float of an array of one real number."""
    return float(scalar.item())  # type: ignore[arg-type]  # item() may also be complex

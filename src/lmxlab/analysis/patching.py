"""Activation patching: which activations of one run make another run's answer."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from lmxlab.analysis.activations import ActivationCapture, check_places, replacing
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel

# metric(logits (B, T, vocab_size)) -> a number per row, (B,): what the patching should move.
Metric = Callable[[mx.array], mx.array]


def logit_difference(answer: int, other: int, position: int = -1) -> Metric:
    """logit(answer) - logit(other) at one position: how much a model prefers one next token to another."""

    def metric(logits: mx.array) -> mx.array:
        row = logits[:, position].astype(mx.float32)
        return row[:, answer] - row[:, other]

    return metric


def patch_positions(
    model: LanguageModel, clean: mx.array, corrupted: mx.array, metric: Metric, *, place: str = "output"
) -> np.ndarray:
    """How far one activation of the clean run, put into the corrupted run, brings the answer back.

        recovered[l, t] = (m(corrupted with clean x[l, t]) - m(corrupted)) / (m(clean) - m(corrupted))

    x[l, t] is the activation at `place` of layer l and token t: 1 means that it carries all that the two prompts
    differ in, 0 that it carries nothing of it (causal tracing, 2202.05262; called denoising in 2404.15255).

    Args:
        clean, corrupted: (T,) or (1, T) ids of equal length, which should differ in as little as possible.
        metric: see `logit_difference`.
        place: "input", "attention", "ffn", "output" or "heads" of a layer (see `ActivationCapture`).

    Returns:
        (n_layers, T), NaN for a layer that has no such place.

    Raises:
        UserError: prompts of different length, or a metric that both runs give the same value.
    """
    clean, corrupted = _pair(model, clean, corrupted, place)
    length = clean.shape[1]

    def one_token_per_row(clean_x: mx.array) -> Callable[[mx.array], mx.array]:
        def replace(x: mx.array) -> mx.array:
            here = mx.eye(length, dtype=mx.bool_).reshape(length, length, *([1] * (x.ndim - 2)))
            return mx.where(here, clean_x, x)

        return replace

    return _recovered(model, clean, corrupted, metric, place, length, one_token_per_row)


def patch_heads(model: LanguageModel, clean: mx.array, corrupted: mx.array, metric: Metric) -> np.ndarray:
    """As `patch_positions`, with the output of one attention head at all tokens: (n_layers, heads), NaN for none."""
    clean, corrupted = _pair(model, clean, corrupted, "heads")
    most = max(block.config.n_heads for block in model.blocks)

    def one_head_per_row(clean_x: mx.array) -> Callable[[mx.array], mx.array]:
        n_heads = clean_x.shape[2]

        def replace(x: mx.array) -> mx.array:
            here = mx.arange(most)[:, None] == mx.arange(n_heads)
            return mx.where(here[:, None, :, None], clean_x, x)

        return replace

    found = _recovered(model, clean, corrupted, metric, "heads", most, one_head_per_row)
    for layer, block in enumerate(model.blocks):
        found[layer, block.config.n_heads :] = np.nan
    return found


def _pair(model: LanguageModel, clean: mx.array, corrupted: mx.array, place: str) -> tuple[mx.array, mx.array]:
    check_places(model, [f"layer_0/{place}"])
    clean, corrupted = clean.reshape(-1, clean.shape[-1]), corrupted.reshape(-1, corrupted.shape[-1])
    if clean.shape != corrupted.shape or len(clean) != 1:
        raise UserError(
            f"The clean prompt has {clean.size} tokens, the corrupted one {corrupted.size}; give one of each, equally "
            "long"
        )
    return clean, corrupted


def _recovered(
    model: LanguageModel,
    clean: mx.array,
    corrupted: mx.array,
    metric: Metric,
    place: str,
    rows: int,
    replacement: Callable[[mx.array], Callable[[mx.array], mx.array]],
) -> np.ndarray:
    """A call of the model for each layer: row i of the batch has the i-th patch.

    Both plain runs have as many rows, so that what is equal comes out equal to the last bit.
    """
    clean, corrupted = (mx.repeat(prompt, rows, axis=0) for prompt in (clean, corrupted))
    with ActivationCapture(model, places=(place,)) as capture:
        target = metric(model(clean)[0])
        clean_activations = dict(capture.activations)
        base = metric(model(corrupted)[0])
    span = target - base
    if not mx.all(span != 0).item():
        raise UserError(f"The metric is {base[0].item():g} of both prompts: choose prompts or a metric that differ")
    found = np.full((len(model.blocks), rows), np.nan)
    for layer in range(len(model.blocks)):
        name = f"layer_{layer}/{place}"
        if name not in clean_activations:
            continue
        with replacing(model, {name: replacement(clean_activations[name])}):
            found[layer] = np.array((metric(model(corrupted)[0]) - base) / span)
    return found

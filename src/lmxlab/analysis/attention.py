"""Attention maps: the softmax weights that every layer computes, layers that compute none saying so."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.analysis.activations import layer_of
from lmxlab.core.mask import additive
from lmxlab.core.sparse_attention import SparseGQA
from lmxlab.core.taps import Scores, reading, watching
from lmxlab.models.base import LanguageModel, evaluating

RECURRENT = "keeps a recurrent state and computes no attention weights"


class AttentionMaps(dict[str, mx.array]):
    """{"layer_N": (B, H, T, T)}; `skipped` says of each layer that is not there why, and so does the KeyError."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[str, str] = {}

    def __missing__(self, name: str) -> mx.array:
        raise KeyError(f"no attention map {name!r}: {self.skipped.get(name, f'there are {sorted(self)}')}")


def extract_attention_maps(model: LanguageModel, tokens: mx.array) -> AttentionMaps:
    """The softmax weights of every layer of `model` reading `tokens`, dropout off.

        weights = softmax(cap(scale q k^T) + mask), float32

    They are computed from what the layer hands to its kernel, so that positions, windows, chunks, norms, caps, biases
    and scales are those of the layer itself, whatever it is.

    A layer of native sparse attention ("sparse_gqa") has three softmaxes. "layer_N" is the mean of their maps weighted
    by its gates, the compressed one's blocks spread over their tokens; "layer_N/compressed", "layer_N/selected" and
    "layer_N/window" are the branches themselves. A query before the end of the first block has a compressed row of 0.

    Args:
        tokens: (B, T) ids.

    Returns:
        "layer_N" -> (B, n_heads, T, T) float32, [b, h, i, j] the weight of token j for the query at i: rows sum to 1
        and are 0 where the query may not look. Layers without a softmax attention are left out and told of in
        `.skipped`; in a parallel mixer (Falcon-H1) the map is that of its attention half.
    """
    reader = _Reader(model)
    with evaluating(model), reading(reader.read), watching(reader.watch):
        model(tokens)
    maps = AttentionMaps()
    for i, block in enumerate(model.blocks):
        name, found = f"layer_{i}", reader.maps.get(i, [])
        if not found:
            why = "has no attention branch" if not block.has_attention else RECURRENT
            maps.skipped[name] = f"layer {i} ({block.config.attention}) {why}"
        elif isinstance(block.attention, SparseGQA):
            parts = _sparse_maps(block.attention, found, reader.arrays[i])
            maps[name] = parts.pop("mean")
            maps.update({f"{name}/{branch}": map_ for branch, map_ in parts.items()})
        else:
            (maps[name],) = found
    return maps


def attention_weights(scores: Scores) -> mx.array:
    """softmax(cap(scale q k^T) + mask) of q (B, H, Tq, D) and k (B, Hkv, Tk, D): (B, H, Tq, Tk) float32."""
    q, k = scores.q.astype(mx.float32), scores.k.astype(mx.float32)
    logits = (q * scores.scale) @ mx.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(-1, -2)
    if scores.softcap is not None:
        logits = scores.softcap * mx.tanh(logits / scores.softcap)
    return mx.softmax(logits + additive(scores.mask, q.shape[2], k.shape[2], mx.float32), axis=-1, precise=True)


def row_entropy(weights: mx.array) -> mx.array:
    """-sum p ln p over the last axis, in nats; 0 ln 0 = 0."""
    return -(weights * mx.log(mx.maximum(weights, 1e-30))).sum(axis=-1)


class _Reader:
    """Collects, by layer, the maps and what a sparse layer tells beside them."""

    def __init__(self, model: LanguageModel):
        self.layers = layer_of(model)
        self.layer: int | None = None  # that is being computed
        self.maps: dict[int, list[mx.array]] = {}
        self.arrays: dict[int, dict[str, mx.array]] = {}

    def read(self, module: nn.Module, place: str, x: mx.array) -> mx.array:
        layer = self.layers.get(id(module))
        if place in ("input", "output"):
            self.layer = layer if place == "input" else None
        elif layer is not None and place in ("compressed_weights", "branch_gates"):
            self.arrays.setdefault(layer, {})[place] = x
        return x

    def watch(self, scores: Scores) -> None:
        if self.layer is not None:
            self.maps.setdefault(self.layer, []).append(attention_weights(scores))


def _sparse_maps(attention: SparseGQA, found: list[mx.array], told: dict[str, mx.array]) -> dict[str, mx.array]:
    selected, window = found
    batch, heads, length, _ = selected.shape
    compressed = mx.zeros_like(selected)
    if "compressed_weights" in told:
        by_block = told["compressed_weights"].reshape(batch, heads, length, -1)
        spread = mx.repeat(by_block, attention.block, axis=-1) / attention.block
        compressed = mx.pad(spread, [(0, 0)] * 3 + [(0, length - spread.shape[-1])])
    gates = told["branch_gates"].astype(mx.float32)
    branches = {"compressed": compressed, "selected": selected, "window": window}
    total = sum((gate * branch for gate, branch in zip(gates, branches.values(), strict=True)), mx.array(0.0))
    return {"mean": total / total.sum(axis=-1, keepdims=True), **branches}

"""Validation loss and bits per byte of a model on token batches."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from lmxlab.core import kernels
from lmxlab.models.base import LanguageModel, evaluating

Batch = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Score:
    """Sums over the scored tokens: those whose text has bytes. Special tokens are read, not scored."""

    nats: float
    tokens: int
    bytes: int

    @property
    def val_loss(self) -> float:
        """Nats per scored token; NaN when nothing was scored."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.val_loss, 700.0)) if self.tokens else math.nan

    @property
    def val_bpb(self) -> float:
        """Nats over (ln 2 times the bytes of the scored tokens); NaN when nothing was scored."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan


def score(model: LanguageModel, batches: Iterable[Batch], token_bytes: np.ndarray) -> Score:
    """Scores every target of `batches`, dropout off.

    Args:
        batches: (x, y) pairs, each (B, T) token ids; y is x shifted by one.
        token_bytes: (vocab,) bytes of each token's text, 0 for special tokens.
    """
    sizes = mx.array(token_bytes)
    nats, tokens, n_bytes = 0.0, 0, 0
    with evaluating(model):
        for x, y in batches:
            hidden, _ = model.hidden_states(x)
            loss = kernels.linear_cross_entropy(hidden, model.output_weight, y).astype(mx.float32)
            size = sizes[y]
            scored = size > 0
            # Summed by numpy in float64: float32 loses digits over a million tokens.
            nats += float(np.array(mx.where(scored, loss, 0.0), dtype=np.float64).sum())
            tokens += int(np.array(scored).sum())
            n_bytes += int(np.array(size).sum())
    return Score(nats, tokens, n_bytes)

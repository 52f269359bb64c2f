"""Validation loss and bits per byte of a model on token batches."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from lmxlab import platform
from lmxlab.data.batching import Batch
from lmxlab.models.base import LanguageModel, evaluating


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


class Scorer:
    """Scores one model, compiled once for all its evaluations.

    Args:
        token_bytes: (vocab,) bytes of each token's text, 0 for special tokens.
    """

    def __init__(self, model: LanguageModel, token_bytes: np.ndarray):
        self.model = model
        self._bytes = mx.array(token_bytes)
        self._sums: Callable[..., mx.array] = self._batch_sums
        if platform.can_compile():
            self._sums = mx.compile(self._batch_sums, inputs=model.state)

    def __call__(self, batches: Iterable[Batch]) -> Score:
        """Sums over every target of `batches`: (x, y) pairs of token ids, each (B, T), y being x shifted by one."""
        nats, tokens, n_bytes = 0.0, 0, 0
        with evaluating(self.model):
            for x, y in batches:
                sums: Any = self._sums(x, y).tolist()
                nats, tokens, n_bytes = nats + float(sums[0]), tokens + int(sums[1]), n_bytes + int(sums[2])
        return Score(nats, tokens, n_bytes)

    def _batch_sums(self, x: mx.array, y: mx.array) -> mx.array:
        """Nats, scored tokens and bytes of one batch, (3,)."""
        nats = self.model.nats(x, y)
        sizes = self._bytes[y]
        sums = mx.where(sizes > 0, nats, 0.0).sum(), (sizes > 0).sum(), sizes.sum()
        return mx.stack([array.astype(mx.float32) for array in sums])  # counts below 2^24: exact

"""Batches of `(x, y)` windows from a token array: for training (endless, seeded, resumable) and for scoring (once)."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lmxlab.errors import UserError

Batch = tuple[mx.array, mx.array]


def batch_iterator(tokens: mx.array, batch_size: int, seq_len: int, shuffle: bool = True) -> Iterator[Batch]:
    """One pass of windows that do not overlap, in full batches only.

    Args:
        tokens: `(N,)` integers.
        batch_size, seq_len: the shape of x and y; y is x one token later.
        shuffle: windows in an order drawn from `mx.random`, else as they come.

    Raises:
        ValueError: "Not enough data" for one batch.

    >>> [(x.tolist(), y.tolist()) for x, y in batch_iterator(mx.arange(7), 1, 3, shuffle=False)]
    [([[0, 1, 2]], [[1, 2, 3]]), ([[3, 4, 5]], [[4, 5, 6]])]
    """
    n_windows = max(0, len(tokens) - 1) // seq_len
    if n_windows < batch_size:
        raise UserError(
            f"Not enough data: {len(tokens)} tokens, one batch takes {batch_size * seq_len + 1} "
            f"({batch_size} x {seq_len} and the last target); give more text or a smaller batch."
        )
    x = tokens[: n_windows * seq_len].reshape(n_windows, seq_len)
    y = tokens[1 : n_windows * seq_len + 1].reshape(n_windows, seq_len)
    order = mx.random.permutation(n_windows) if shuffle else mx.arange(n_windows)
    for start in range(0, n_windows - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield x[rows], y[rows]


class TokenBatches:
    """Endless training batches over a (memory-mapped) token array, in a seeded order that can be resumed anywhere.

    An epoch lays windows of `seq_len` side by side from an offset drawn anew, so that a token is not always seen with
    the same context, and closes the gap at either end with a window that starts at the first token or ends at the
    last: every target is drawn once per epoch, those in the two end windows perhaps twice. Windows come in a random
    order; a batch that an epoch does not fill is filled from the next.

    Args:
        tokens: `(N,)` unsigned integers, N > seq_len.
        batch_size, seq_len: the shape of x and y (int32); y is x one token later.
        seed: decides offsets and order. Equal seeds give equal batches.

    Raises:
        UserError: "Not enough data" for one window.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int = 0):
        _check(tokens, batch_size, seq_len)
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self._windows = sliding_window_view(tokens, seq_len + 1)
        self._begin(epoch=0)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = 0
        rng = np.random.default_rng([self.seed, epoch])
        last = len(self._windows) - 1
        offset = int(rng.integers(0, min(self.seq_len, last + 1)))
        starts = np.arange(offset, last + 1, self.seq_len)
        self._starts = rng.permutation(np.union1d(starts, [0, last]))

    def __iter__(self) -> "TokenBatches":
        return self

    def __next__(self) -> Batch:
        starts = self._take(self.batch_size)
        while starts.size < self.batch_size:
            self._begin(self.epoch + 1)
            starts = np.concatenate([starts, self._take(self.batch_size - starts.size)])
        return _to_batch(self._windows[starts])

    def _take(self, n: int) -> np.ndarray:
        starts = self._starts[self._position : self._position + n]
        self._position += starts.size
        return starts

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON values."""
        return {"epoch": self.epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken: the next batch is the one that would have come then.

        Raises:
            UserError: the state is of other data, another window length or another seed.
        """
        differs = [f"{k} {state.get(k)} (here {v})" for k, v in self._identity().items() if state.get(k) != v]
        if differs:
            raise UserError(f"the saved position is of other batches: {', '.join(differs)}; resume with the same data.")
        self._begin(int(state["epoch"]))
        self._position = int(state["position"])

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "seq_len": self.seq_len, "tokens": len(self._windows) + self.seq_len}


class EvalBatches:
    """What `eval_batches` returns: may be iterated any number of times. `n_tokens` is the number of targets scored."""

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, max_tokens: int | None = None):
        _check(tokens, batch_size, 1)
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}: at least 1 token must be scored.")
        self._tokens = tokens
        self._batch_size = batch_size
        self._seq_len = seq_len
        n_targets = len(tokens) - 1
        n_windows, rest = divmod(n_targets, seq_len)
        if max_tokens is not None and max_tokens < n_targets and n_windows:
            # Evenly spaced, because the beginning alone is one author or one document.
            n_kept = min(n_windows, max(1, max_tokens // seq_len))
            self._starts, self._rest = np.arange(n_kept) * n_windows // n_kept * seq_len, 0
        else:
            self._starts, self._rest = np.arange(n_windows) * seq_len, rest
        self.n_tokens = len(self._starts) * seq_len + self._rest

    def __len__(self) -> int:
        return -(-len(self._starts) // self._batch_size) + (self._rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        if len(self._starts):
            windows = sliding_window_view(self._tokens, self._seq_len + 1)
            for i in range(0, len(self._starts), self._batch_size):
                yield _to_batch(windows[self._starts[i : i + self._batch_size]])
        if self._rest:
            yield _to_batch(self._tokens[None, -self._rest - 1 :])


def eval_batches(tokens: np.ndarray, batch_size: int, seq_len: int, max_tokens: int | None = None) -> EvalBatches:
    """Batches that score each target once, in order.

    All but the last two have the shape `(batch_size, seq_len)`: then fewer rows, then the single shorter last window.

    Args:
        tokens: `(N,)` unsigned integers, N >= 2. The N - 1 targets are all but the first.
        max_tokens: score about so many targets (whole windows, at least one), spread evenly over the data.

    Raises:
        UserError: "Not enough data" for one target.
    """
    return EvalBatches(tokens, batch_size, seq_len, max_tokens)


def _to_batch(windows: np.ndarray) -> Batch:
    array = mx.array(windows.astype(np.int32))
    return array[:, :-1], array[:, 1:]


def _check(tokens: np.ndarray, batch_size: int, seq_len: int) -> None:
    if batch_size < 1 or seq_len < 1:
        raise UserError(f"batch_size {batch_size} and seq_len {seq_len} must be at least 1.")
    if len(tokens) <= seq_len:
        raise UserError(
            f"Not enough data: {len(tokens)} tokens, but one window takes {seq_len + 1} ({seq_len} and the last "
            "target); give more text or a shorter seq_len."
        )

"""Going back in the caches of a model, and branching them into several rows."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from lmxlab.core.cache import Cache

Caches = Sequence[Cache | None]  # one per layer


class Mark:
    """A point to come back to after some more tokens were read: how speculation takes back what was not accepted.

    Attention forgets by trimming, which costs nothing. A recurrent state has every token folded into it: it is kept
    as it was here, and the tokens that stay must be read again.
    """

    def __init__(self, caches: Caches):
        self._caches = [cache for cache in caches if cache is not None]
        self._states = [cache.snapshot() if cache.trimmable == 0 else None for cache in self._caches]

    def rewind(self, n_read: int, n_kept: int) -> int:
        """Forgets all but the first `n_kept` of the `n_read` tokens read since.

        Returns:
            How many of them are still known: `n_kept`, or 0 if a layer had to go back to its state at the mark. The
            others, up to `n_kept`, must be read again.
        """
        if n_kept < n_read and any(state is not None for state in self._states):
            n_kept = 0
        for cache, state in zip(self._caches, self._states, strict=True):
            if state is not None and n_kept < n_read:
                cache.restore(state)
            else:
                forgotten = cache.trim(n_read - n_kept)
                assert forgotten == n_read - n_kept, f"{cache} forgot {forgotten} of {n_read - n_kept} tokens"
        return n_kept


def select_rows(caches: Caches, rows: Sequence[int]) -> None:
    """Makes row i of every cache what row rows[i] was: a row may be left out, moved or repeated."""
    index = mx.array(list(rows), mx.int32)
    for cache in caches:
        if cache is not None:
            cache.restore(_take(cache.snapshot(), index))


def snapshot(caches: Caches) -> list[dict[str, Any] | None]:
    """The state of every cache, for `restore`."""
    return [None if cache is None else cache.snapshot() for cache in caches]


def restore(caches: Caches, states: Sequence[dict[str, Any] | None]) -> None:
    """Takes the caches back to a snapshot, of these caches or of others of the same model."""
    for cache, state in zip(caches, states, strict=True):
        if cache is not None and state is not None:
            cache.restore(state)


def _take(value: Any, index: mx.array) -> Any:
    """Rows of every array in a snapshot; what is no array stays."""
    if isinstance(value, dict):
        return {name: _take(part, index) for name, part in value.items()}
    return value[index] if isinstance(value, mx.array) else value

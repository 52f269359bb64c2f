"""What a layer remembers of the tokens it has seen, so that decoding does not repeat them.

The protocol that every cache follows: `offset` (tokens seen so far, so the absolute position of the next one),
`trim(n)`, and `snapshot()` / `restore(state)`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

STEP_TOKENS = 256


class Snapshot(NamedTuple):
    """The state of a KVCache at one moment."""

    keys: mx.array | None
    values: mx.array | None
    offset: int
    dropped: int


class KVCache:
    """Keys and values of all tokens so far, (B, n_kv_heads, offset, head_dim) each.

    The buffers grow by whole steps of 256 tokens, so that a step of decoding writes in place
    instead of copying everything that came before. Unpacks as `keys, values = cache`.

    >>> cache = KVCache()
    >>> keys, values = cache.update_and_fetch(mx.zeros((1, 2, 3, 4)), mx.zeros((1, 2, 3, 4)))
    >>> keys.shape, cache.offset, cache.trim(2), cache.offset
    ((1, 2, 3, 4), 3, 2, 1)
    """

    def __init__(self, keys: mx.array | None = None, values: mx.array | None = None):
        self._keys = keys
        self._values = values
        self.offset = 0 if keys is None else keys.shape[2]
        self._dropped = 0  # tokens before the first one in the buffers

    @property
    def keys(self) -> mx.array | None:
        """(B, n_kv_heads, offset, head_dim), or None before the first token."""
        return self._seen(self._keys)

    @property
    def values(self) -> mx.array | None:
        """(B, n_kv_heads, offset, head_dim), or None before the first token."""
        return self._seen(self._values)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends one or more tokens (B, n_kv_heads, T, head_dim) and returns all keys and values."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys = _write(self._keys, keys, start)
        self._values = _write(self._values, values, start)
        return self._keys[:, :, : self.offset], self._values[:, :, : self.offset]

    def trim(self, n_tokens: int) -> int:
        """Forgets the last `n_tokens` tokens (or all there are) and returns how many it forgot."""
        n_tokens = max(0, min(n_tokens, self.offset))
        self.offset -= n_tokens
        return n_tokens

    def snapshot(self) -> Snapshot:
        """The present state, for `restore`. Costs nothing now, and one copy of the buffers at the next write."""
        return Snapshot(self._keys, self._values, self.offset, self._dropped)

    def restore(self, state: Snapshot) -> None:
        """Goes back to a snapshot; it may be restored any number of times."""
        self._keys, self._values, self.offset, self._dropped = state

    def __iter__(self) -> Iterator[mx.array | None]:
        return iter((self.keys, self.values))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> mx.array | None:
        return (self.keys, self.values)[index]

    def __repr__(self) -> str:
        return f"KVCache({self.offset} tokens)"

    def _seen(self, buffer: mx.array | None) -> mx.array | None:
        return None if buffer is None else buffer[:, :, : self.offset - self._dropped]


class WindowCache(KVCache):
    """Keys and values of the last tokens only: what layers that attend within `reach` tokens need.

    `update_and_fetch` returns the `reach - 1` tokens before the new ones, and those. The buffer holds up to
    256 tokens more, so that it is moved forward once in 256 steps of decoding, and the last 256 tokens can be trimmed.

    >>> cache = WindowCache(reach=4)
    >>> for _ in range(600):
    ...     keys, values = cache.update_and_fetch(mx.zeros((1, 1, 1, 2)), mx.zeros((1, 1, 1, 2)))
    >>> keys.shape[2], cache.offset, cache.trim(256)
    (4, 600, 256)
    """

    def __init__(self, reach: int, keys: mx.array | None = None, values: mx.array | None = None):
        super().__init__(keys, values)
        self.reach = reach

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends tokens (B, n_kv_heads, T, head_dim); returns them and up to reach - 1 tokens before them."""
        new, held = keys.shape[2], self.offset - self._dropped
        kept = self.reach - 1 + STEP_TOKENS
        if self._keys is not None and self._values is not None and held > kept and held + new > self._keys.shape[2]:
            last = slice(held - kept, held)
            self._keys, self._values = self._keys[:, :, last], self._values[:, :, last]
            self._dropped, held = self.offset - kept, kept
        self._keys = _write(self._keys, keys, held)
        self._values = _write(self._values, values, held)
        self.offset += new
        first, end = max(0, held - self.reach + 1), held + new
        return self._keys[:, :, first:end], self._values[:, :, first:end]

    def trim(self, n_tokens: int) -> int:
        """Forgets the last `n_tokens` tokens, but none that the next one could not do without; returns how many."""
        spare = self.offset - self._dropped - (min(self.offset, self.reach - 1) if self._dropped else 0)
        return super().trim(min(n_tokens, spare))


def as_cache(entry: "KVCache | tuple[mx.array, mx.array] | None") -> KVCache | None:
    """A cache object for what a caller gave: a plain `(keys, values)` tuple becomes a new KVCache."""
    return KVCache(*entry) if isinstance(entry, tuple) else entry


def _write(buffer: mx.array | None, new: mx.array, start: int) -> mx.array:
    """`buffer` with `new` (B, H, T, D) at token `start`, grown if needed.

    slice_update returns a new array, so a snapshot that holds the old one stays as it was;
    when nobody holds it, MLX reuses its memory.
    """
    end = start + new.shape[2]
    capacity = 0 if buffer is None else buffer.shape[2]
    if end > capacity:
        missing = -(-end // STEP_TOKENS) * STEP_TOKENS - start
        kept = [] if buffer is None else [buffer[:, :, :start]]
        room = mx.zeros((*new.shape[:2], missing - new.shape[2], new.shape[3]), new.dtype)
        return mx.concatenate([*kept, new, room], axis=2)
    assert buffer is not None
    return mx.slice_update(buffer, new.astype(buffer.dtype), mx.array([start]), (2,))

"""What a layer remembers of the tokens it has seen, so that decoding does not repeat them.

Every kind follows one protocol, `Cache`. MLX arrays never change in place, so a snapshot is a copy of references.
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from lmxlab.errors import UserError

STEP_TOKENS = 256


class Cache:
    """The protocol of all caches. Attributes of a subclass are arrays, numbers, or dicts of arrays that it replaces.

    Attributes:
        offset: tokens seen so far, so the position of the next one, padding included.
        left_padding: (B,) how many tokens before each row's text are padding; None: no row has any.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.left_padding: mx.array | None = None

    @property
    def trimmable(self) -> int:
        """How many of the last tokens `trim` could forget; 0 for a state that everything is folded into."""
        return 0

    def trim(self, n_tokens: int) -> int:
        """Forgets the last `n_tokens` tokens, or as many as it can, and returns how many it forgot."""
        n_tokens = max(0, min(n_tokens, self.trimmable))
        self.offset -= n_tokens
        return n_tokens

    def snapshot(self) -> dict[str, Any]:
        """The present state, for `restore`. Costs nothing now, and one copy of the buffers at the next write."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a snapshot; it may be restored any number of times."""
        vars(self).update(state)

    def padding(self, n_tokens: int) -> mx.array | None:
        """Which of the next `n_tokens` tokens are padding, (B, n_tokens) boolean; None if no row can have any."""
        if self.left_padding is None:
            return None
        return mx.arange(self.offset, self.offset + n_tokens) < self.left_padding[:, None]

    def quantized(self, bits: int) -> "Cache":
        """This cache, empty yet, with what it keeps per token in `bits` bits; itself where that is nothing."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.offset} tokens)"


class KVCache(Cache):
    """Keys and values of all tokens so far, (B, n_kv_heads, offset, head_dim) each.

    The buffers grow by whole steps of 256 tokens, so that a step of decoding writes in place
    instead of copying everything that came before. Unpacks as `keys, values = cache`.
    Keys and values may differ in their last axis: MLA keeps its latent as keys and the rotated part as values.

    >>> cache = KVCache()
    >>> keys, values = cache.update_and_fetch(mx.zeros((1, 2, 3, 4)), mx.zeros((1, 2, 3, 4)))
    >>> keys.shape, cache.offset, cache.trim(2), cache.offset
    ((1, 2, 3, 4), 3, 2, 1)
    """

    def __init__(self, keys: mx.array | None = None, values: mx.array | None = None):
        super().__init__()
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self._dropped = 0  # tokens before the first one in the buffers
        if keys is not None and values is not None:
            self.update_and_fetch(keys, values)

    @property
    def keys(self) -> mx.array | None:
        """(B, n_kv_heads, offset, head_dim), or None before the first token."""
        return self._seen(self._keys)

    @property
    def values(self) -> mx.array | None:
        """(B, n_kv_heads, offset, head_dim), or None before the first token."""
        return self._seen(self._values)

    @property
    def trimmable(self) -> int:
        return self.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends one or more tokens (B, n_kv_heads, T, head_dim) and returns all keys and values."""
        if self._keys is None:
            return self._begin(keys, values)
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys = write(self._keys, keys, start)
        self._values = write(self._values, values, start)
        return self._keys[:, :, : self.offset], self._values[:, :, : self.offset]

    def quantized(self, bits: int) -> Cache:
        return QuantizedKVCache(bits)

    def __iter__(self) -> Iterator[mx.array | None]:
        return iter((self.keys, self.values))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> mx.array | None:
        return (self.keys, self.values)[index]

    def _begin(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The first tokens are kept as they are: a pass that nothing follows, as in training, copies nothing."""
        self._keys, self._values, self.offset = keys, values, keys.shape[2]
        return keys, values

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

    @property
    def trimmable(self) -> int:
        """All there are, but none that the next token could not do without."""
        return self.offset - self._dropped - (min(self.offset, self.reach - 1) if self._dropped else 0)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends tokens (B, n_kv_heads, T, head_dim); returns them and up to reach - 1 tokens before them."""
        if self._keys is None:
            return self._begin(keys, values)
        new, held = keys.shape[2], self.offset - self._dropped
        kept = self.reach - 1 + STEP_TOKENS
        if self._keys is not None and self._values is not None and held > kept and held + new > self._keys.shape[2]:
            last = slice(held - kept, held)
            self._keys, self._values = self._keys[:, :, last], self._values[:, :, last]
            self._dropped, held = self.offset - kept, kept
        self._keys = write(self._keys, keys, held)
        self._values = write(self._values, values, held)
        self.offset += new
        first, end = max(0, held - self.reach + 1), held + new
        return self._keys[:, :, first:end], self._values[:, :, first:end]

    def quantized(self, bits: int) -> Cache:
        return self  # a window is small


class QuantizedKVCache(KVCache):
    """As KVCache, in 8 or 4 bits per number, with a scale and an offset for each group of channels.

    What is fetched is computed back to the type of what came in: one layer at a time is held whole.
    """

    def __init__(self, bits: int = 8):
        if bits not in (4, 8):
            raise UserError(f"A quantized cache has {bits!r} bits; it must be 8 or 4")
        super().__init__()
        self.bits = bits
        self._packed: dict[str, mx.array] = {}

    @property
    def keys(self) -> mx.array | None:
        return self._unpack("keys")

    @property
    def values(self) -> mx.array | None:
        return self._unpack("values")

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        start, packed = self.offset, {}
        for name, new in (("keys", keys), ("values", values)):
            group = next((size for size in (64, 32) if new.shape[-1] % size == 0), None)
            if group is None:
                raise UserError(f"A quantized cache needs heads of a multiple of 32 channels, not {new.shape[-1]}")
            for part, array in zip(("", "_scales", "_biases"), mx.quantize(new, group, self.bits), strict=True):
                packed[name + part] = write(self._packed.get(name + part), array, start)
        self._packed, self.offset = packed, start + keys.shape[2]
        fetched_keys, fetched_values = self.keys, self.values
        assert fetched_keys is not None and fetched_values is not None
        return fetched_keys, fetched_values

    def _unpack(self, name: str) -> mx.array | None:
        if not self._packed:
            return None
        packed, scales, biases = (self._packed[name + part][:, :, : self.offset] for part in ("", "_scales", "_biases"))
        group = packed.shape[-1] * 32 // self.bits // scales.shape[-1]
        return mx.dequantize(packed, scales, biases, group, self.bits)


class RecurrentCache(Cache):
    """The state of a recurrent layer: named arrays of a size that does not grow with the tokens.

    >>> cache = RecurrentCache()
    >>> cache.advance(3, state=mx.zeros((1, 2, 4)))
    >>> cache.offset, cache["state"].shape, cache["tail"], cache.trimmable
    (3, (1, 2, 4), None, 0)
    """

    def __init__(self) -> None:
        super().__init__()
        self._arrays: dict[str, mx.array] = {}

    def __getitem__(self, name: str) -> mx.array | None:
        """The array of that name, None before the first token."""
        return self._arrays.get(name)

    def advance(self, n_tokens: int, **arrays: mx.array) -> None:
        """The arrays after `n_tokens` more tokens; those not given stay."""
        self._arrays = {**self._arrays, **arrays}
        self.offset += n_tokens


class JointCache(Cache):
    """The caches of mixers that work side by side in one layer; they are trimmed together."""

    def __init__(self, *parts: Cache):
        self.parts = parts

    @property
    def offset(self) -> int:  # type: ignore[override]
        return self.parts[0].offset

    @property
    def left_padding(self) -> mx.array | None:
        return self.parts[0].left_padding

    @left_padding.setter
    def left_padding(self, padding: mx.array | None) -> None:
        for part in self.parts:
            part.left_padding = padding

    @property
    def trimmable(self) -> int:
        return min(part.trimmable for part in self.parts)

    def trim(self, n_tokens: int) -> int:
        n_tokens = min(n_tokens, self.trimmable)
        return max(part.trim(n_tokens) for part in self.parts)

    def snapshot(self) -> dict[str, Any]:
        return {f"part{i}": part.snapshot() for i, part in enumerate(self.parts)}

    def restore(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.restore(state[f"part{i}"])

    def quantized(self, bits: int) -> Cache:
        return JointCache(*(part.quantized(bits) for part in self.parts))


def as_cache(entry: "Cache | tuple[mx.array, mx.array] | None") -> Any:
    """A cache object for what a caller gave: a plain `(keys, values)` tuple becomes a new KVCache."""
    return KVCache(*entry) if isinstance(entry, tuple) else entry


def write(buffer: mx.array | None, new: mx.array, start: int) -> mx.array:
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

"""Dropout whose random numbers can be drawn again, as a pass that is computed twice needs them."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

_keys: list[mx.array] = []  # the key that draws come from inside `drawing_from`; none: mx.random's global one


class Dropout(nn.Module):
    """While training, each number is 0 with probability p, and the others are larger by 1 / (1 - p) (1207.0580)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    @property
    def draws(self) -> bool:
        """Whether a call draws random numbers now."""
        return self.p > 0 and self.training

    def __call__(self, x: mx.array) -> mx.array:
        return drop(x, self.p) if self.draws else x


def drop(x: mx.array, p: float) -> mx.array:
    """x with each number set to 0 with probability p, and the others larger by 1 / (1 - p)."""
    kept = mx.random.bernoulli(1 - p, x.shape, key=_next_key())
    return (1 / (1 - p)) * kept * x


@contextmanager
def drawing_from(key: mx.array) -> Iterator[None]:
    """Within the block, dropout draws from `key` and leaves mx.random's global state alone: equal keys, equal draws."""
    _keys.append(mx.stop_gradient(key))
    try:
        yield
    finally:
        _keys.pop()


def new_key() -> mx.array:
    """A key for `drawing_from`, drawn from the key in use, else from mx.random's global state."""
    inner = _next_key()
    return inner if inner is not None else mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)


def _next_key() -> mx.array | None:
    if not _keys:
        return None
    _keys[-1], key = mx.random.split(_keys[-1])
    return key

"""Places in a forward pass where an instrument may read what flows, or put something else there.

A model without an instrument passes them for the price of one test. Compiled functions run them once, while they are
traced: instruments are for models that are called plainly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.mask import Mask


class Scores(NamedTuple):
    """What one softmax attention computes its weights from, as `kernels.attention` takes it."""

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float
    mask: Mask
    softcap: float | None


# reader(module, place, array) -> the array that flows on.
Reader = Callable[[nn.Module, str, mx.array], mx.array]
_readers: list[Reader] = []
_watchers: list[Callable[[Scores], None]] = []


def tap(module: nn.Module, place: str, x: mx.array) -> mx.array:
    """x, as the instruments that are on leave it."""
    for reader in _readers:
        x = reader(module, place, x)
    return x


def watched(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask, softcap: float | None) -> None:
    """Tells the instruments that are on of one softmax attention."""
    for watcher in _watchers:
        watcher(Scores(q, k, v, scale, mask, softcap))


@contextmanager
def reading(reader: Reader) -> Iterator[None]:
    """Inside the block `reader` is called at every tap, of every model, in the order of the computation."""
    _readers.append(reader)
    try:
        yield
    finally:
        _readers.remove(reader)


@contextmanager
def watching(watcher: Callable[[Scores], None]) -> Iterator[None]:
    """Inside the block `watcher` is told of every softmax attention, of every model."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)

"""All cores of a CPU for one step: the batch in parts, one part to a stream.

MLX runs the operations of a stream on one thread, and only BLAS uses more: half of a step is elementwise work, on one
core. With a stream per core, each computing a part of the batch with a single-threaded BLAS, all cores are busy.
On a GPU there is one stream and nothing here changes anything.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import mlx.core as mx

from lmxlab import blas, platform

MAX_STREAMS = 8  # each holds a gradient of its own


@cache
def cpu_streams() -> tuple[mx.Stream, ...]:
    """One stream per physical core when MLX computes on the CPU and BLAS lets itself be limited; else none.

    LMXLAB_STREAMS in the environment says how many instead; 1 switches them off.
    """
    cores = int(os.environ.get("LMXLAB_STREAMS") or platform.physical_cores())
    if mx.default_device() != mx.cpu or cores <= 1 or not blas.can_limit_threads():
        return ()
    return tuple(mx.new_stream(mx.cpu) for _ in range(min(cores, MAX_STREAMS)))


@contextmanager
def all_cores() -> Iterator[None]:
    """Within the block BLAS uses one thread per stream. What is computed in streams must be evaluated inside."""
    if not cpu_streams():
        yield
        return
    with blas.limit_threads(1):
        yield


def map_batch(function: Callable[..., Any], *arrays: mx.array) -> list[Any]:
    """function(*parts) for parts of the leading axis of `arrays`, each on a stream of its own; a result per part."""
    streams = cpu_streams()[: arrays[0].shape[0]]
    if len(streams) < 2:
        return [function(*arrays)]
    cuts = [arrays[0].shape[0] * i // len(streams) for i in range(len(streams) + 1)]
    results = []
    for stream, start, end in zip(streams, cuts, cuts[1:], strict=False):
        with mx.stream(stream):
            results.append(function(*(a[start:end] for a in arrays)))
    return results


class Balance:
    """Hands out the streams so that each gets about as many elements: `with balance.stream(parameter): ...`."""

    def __init__(self) -> None:
        self._loads = [0] * len(cpu_streams())

    def stream(self, array: mx.array) -> AbstractContextManager[Any]:
        """The stream that has least to do so far; the same sequence of sizes gets the same streams."""
        if not self._loads:
            return nullcontext()
        lightest = self._loads.index(min(self._loads))
        self._loads[lightest] += array.size
        return mx.stream(cpu_streams()[lightest])

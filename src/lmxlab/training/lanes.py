"""Elementwise work on several cores: on a CPU, MLX runs each stream on one thread, so big updates are dealt to a few."""

import os
import threading
from collections.abc import Sequence

import mlx.core as mx

MAX_LANES = 4  # more cores than this wait for memory
MIN_ELEMENTS = 1_000_000  # below, waiting for each other costs more than the lanes gain

_local = threading.local()  # a stream belongs to the thread that made it


def deal(sizes: Sequence[int]) -> list[mx.Stream]:
    """A stream for each of the pieces of work of `sizes` elements, so that the streams get about equal shares."""
    lanes = _lanes() if sum(sizes) >= MIN_ELEMENTS else [mx.default_stream(mx.default_device())]
    loads = [0] * len(lanes)
    dealt = [lanes[0]] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        lightest = loads.index(min(loads))
        loads[lightest] += sizes[index]
        dealt[index] = lanes[lightest]
    return dealt


def _lanes() -> list[mx.Stream]:
    default = mx.default_stream(mx.default_device())
    if mx.default_device() != mx.Device(mx.cpu):
        return [default]
    if not hasattr(_local, "extra"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _local.extra = [mx.new_stream(mx.cpu) for _ in range(min(cores, MAX_LANES) - 1)]
    return [default, *_local.extra]

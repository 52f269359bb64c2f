"""Learning-rate schedules: linear warmup, then cosine, linear, constant or warmup-stable-decay."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx

from lmxlab.errors import UnknownNameError
from lmxlab.training.config import SCHEDULES, TrainConfig

WARMUP_START = 1e-7
WSD_DECAY_FRACTION = 0.2  # of the steps after the warmup; Haegele et al. 2024, arXiv 2405.18392


class Schedule(Protocol):
    """Learning rate of a step counted from 0: a float for an int, an array for an array (inside a compiled step)."""

    def __call__(self, step: Any) -> Any: ...


def create_schedule(config: TrainConfig, peak: float | None = None) -> Schedule:
    """The schedule of `config`, reaching `peak` (default config.learning_rate) at step `warmup_steps`.

    With W warmup steps, S = max_steps, floor = peak * min_lr_ratio and progress u = clip((t - W) / (S - W), 0, 1):

        t < W     1e-7 + (peak - 1e-7) * t / W
        cosine    floor + (peak - floor) * (1 + cos(pi u)) / 2
        linear    peak + (floor - peak) * u
        constant  peak
        wsd       linear from peak to floor over the last fifth of u, peak before

    W >= S means that the run ends during the warmup; steps beyond S keep the last value.

    >>> create_schedule(TrainConfig(learning_rate=1.0, warmup_steps=0, max_steps=10))(5)
    0.5
    """
    top = config.learning_rate if peak is None else peak
    shape = _SHAPES.get(config.lr_schedule)
    if shape is None:
        raise UnknownNameError("schedule", config.lr_schedule, SCHEDULES)
    floor = top * config.min_lr_ratio
    warmup = config.warmup_steps
    decay_steps = max(config.max_steps - warmup, 1)

    def after_warmup(progress: Any, cos: Callable[[Any], Any], clip: Callable[[Any], Any]) -> Any:
        return top - (top - floor) * shape(progress, cos, clip)

    def schedule(step: Any) -> Any:
        if isinstance(step, mx.array):
            t = step.astype(mx.float32)
            rate = after_warmup(mx.clip((t - warmup) / decay_steps, 0, 1), mx.cos, lambda u: mx.clip(u, 0, 1))
            rate = mx.broadcast_to(mx.array(rate, mx.float32), t.shape)
            rising = WARMUP_START + (top - WARMUP_START) / max(warmup, 1) * t
            return mx.where(t < warmup, rising, rate)
        if step < warmup:
            return WARMUP_START + (top - WARMUP_START) / warmup * step
        return after_warmup(min((step - warmup) / decay_steps, 1.0), math.cos, lambda u: min(max(u, 0.0), 1.0))

    return schedule


# The part of the way from the peak (0) to the floor (1) that is gone at progress u.
_SHAPES: dict[str, Callable[[Any, Callable[[Any], Any], Callable[[Any], Any]], Any]] = {
    "cosine": lambda u, cos, clip: 0.5 - 0.5 * cos(math.pi * u),
    "linear": lambda u, cos, clip: u,
    "constant": lambda u, cos, clip: 0.0,
    "wsd": lambda u, cos, clip: clip((u - (1 - WSD_DECAY_FRACTION)) / WSD_DECAY_FRACTION),
}

"""A callback that shows whether a mixture's experts share the work."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.router import expert_load
from lmxlab.training.events import Callback


class ExpertLoadMonitor(Callback):
    """Puts into every `log_interval`-th step how even the load of the experts was in it, over all layers.

    `expert_load_max` and `expert_load_min` are the largest and the smallest share of a layer's choices that one expert
    got, times the number of experts: both 1 when all get as much, and 0 the latter when one gets nothing.
    """

    def __init__(self, model: nn.Module, log_interval: int = 10):
        self.model = model
        self.log_interval = log_interval

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.log_interval:
            return
        loads = [load * load.size for load in expert_load(self.model).values()]
        if loads:
            metrics["expert_load_max"] = float(mx.stack([load.max() for load in loads]).max())
            metrics["expert_load_min"] = float(mx.stack([load.min() for load in loads]).min())

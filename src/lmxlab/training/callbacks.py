"""What the training loop tells as it goes, and the callbacks that log, validate and stop it.

Those that measure time, FLOPs and memory are in lmxlab.training.monitors and are exported from here too.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.training.config import TrainConfig
from lmxlab.training.events import Callback
from lmxlab.training.monitors import FLOPCounter, HardwareMonitor, ThroughputMonitor, TimeBudget
from lmxlab.training.objective import mean_loss, next_token

__all__ = [
    "Callback",
    "EarlyStopping",
    "FLOPCounter",
    "HardwareMonitor",
    "MetricsLogger",
    "ThroughputMonitor",
    "TimeBudget",
    "ValTracker",
    "standard_callbacks",
]


class MetricsLogger(Callback):
    """Writes "step N: loss=5.0000, lr=3.00e-04" every `log_interval` steps, a line per evaluation, one at the end."""

    def __init__(self, log_interval: int = 10, write: Callable[[str], None] = print):
        self.log_interval = log_interval
        self.write = write

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.log_interval == 0:
            rate = metrics.get("learning_rate")
            self.write(f"step {step}: loss={metrics['loss']:.4f}" + ("" if rate is None else f", lr={rate:.2e}"))

    def on_eval_end(self, step: int, metrics: dict[str, Any]) -> None:
        if "eval_loss" in metrics:
            self.write(f"step {step}: eval_loss={metrics['eval_loss']:.4f}")

    def on_train_end(self, history: list[dict[str, Any]]) -> None:
        if history:
            self.write(f"Training ended after {len(history)} steps: loss={history[-1]['loss']:.4f}")


class EarlyStopping(Callback):
    """Sets should_stop at the `patience`-th evaluation in a row that lowers eval_loss by no more than `min_delta`."""

    def __init__(self, patience: int = 5, min_delta: float = 0.001):
        self.patience = patience
        self.min_delta = min_delta
        self.on_train_begin(None)

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self.best_loss = math.inf
        self.evals_without_gain = 0
        self.should_stop = False

    def on_eval_end(self, step: int, metrics: dict[str, Any]) -> None:
        loss = metrics.get("eval_loss")
        if loss is None:
            return
        if loss < self.best_loss - self.min_delta:
            self.best_loss, self.evals_without_gain = loss, 0
        else:
            self.evals_without_gain += 1
            self.should_stop = self.evals_without_gain >= self.patience

    def state_dict(self) -> dict[str, Any]:
        best = self.best_loss if math.isfinite(self.best_loss) else None  # JSON has no infinity
        return {"best_loss": best, "evals_without_gain": self.evals_without_gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.evals_without_gain = state["evals_without_gain"]
        self.should_stop = self.evals_without_gain >= self.patience


class ValTracker(Callback):
    """Scores `val_batches` before training, every `eval_interval` steps and at the end.

    Puts init_val_loss into every step's metrics, and val_loss, best_val_loss and train_val_gap (val_loss minus the
    step's loss) where it scores. Losses are nats per token, dropout off. Attributes: best_val_loss, init_val_loss
    (None before training). The score at the beginning is not repeated by a resumed run.
    """

    def __init__(
        self,
        model: nn.Module,
        val_batches: list[tuple[mx.array, mx.array]],
        eval_interval: int = 500,
        write: Callable[[str], None] = print,
    ):
        self.model = model
        self.val_batches = val_batches
        self.eval_interval = eval_interval
        self.write = write
        self.init_val_loss: float | None = None
        self.best_val_loss = math.inf

    def on_train_begin(self, config: TrainConfig | None) -> None:
        if self.init_val_loss is None:
            self.init_val_loss = self.best_val_loss = self._score()
            self.write(f"init_val_loss={self.init_val_loss:.4f}")

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        metrics["init_val_loss"] = self.init_val_loss
        if step % self.eval_interval == 0:
            self._track(metrics)

    def on_train_end(self, history: list[dict[str, Any]]) -> None:
        last: dict[str, Any] = history[-1] if history else {}
        if "val_loss" not in last:
            self._track(last)
        self.write(f"final_val_loss={last['val_loss']:.4f}")

    def state_dict(self) -> dict[str, Any]:
        return {"init_val_loss": self.init_val_loss, "best_val_loss": self.best_val_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.init_val_loss, self.best_val_loss = state["init_val_loss"], state["best_val_loss"]

    def _track(self, metrics: dict[str, Any]) -> None:
        loss = self._score()
        self.best_val_loss = min(self.best_val_loss, loss)
        metrics.update(val_loss=loss, best_val_loss=self.best_val_loss)
        if "loss" in metrics:
            metrics["train_val_gap"] = loss - metrics["loss"]

    def _score(self) -> float:
        return mean_loss(self.model, self.val_batches, partial(next_token, self.model)).get("loss", 0.0)


def standard_callbacks(
    *,
    log_interval: int = 10,
    tokens_per_step: int | None = None,
    flops_per_step: float | None = None,
    flop_budget: float | None = None,
    hardware_peak_tflops: float | None = None,
    model: nn.Module | None = None,
    val_batches: list[tuple[mx.array, mx.array]] | None = None,
    eval_interval: int = 500,
) -> list[Any]:
    """ThroughputMonitor, FLOPCounter (with flops_per_step), HardwareMonitor, ValTracker (with model and val_batches),
    MetricsLogger, in this order: what measures comes before what logs."""
    callbacks: list[Any] = [ThroughputMonitor(log_interval, tokens_per_step)]
    if flops_per_step is not None:
        callbacks.append(FLOPCounter(flops_per_step, log_interval, flop_budget, hardware_peak_tflops))
    callbacks.append(HardwareMonitor())
    if model is not None and val_batches is not None:
        callbacks.append(ValTracker(model, val_batches, eval_interval))
    callbacks.append(MetricsLogger(log_interval))
    return callbacks

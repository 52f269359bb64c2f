"""Callbacks that measure a run (speed, FLOPs, memory) and end it when a budget of FLOPs or time is used up."""

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.training.config import TrainConfig
from lmxlab.training.events import Callback


class ThroughputMonitor(Callback):
    """Speed. Puts tokens_processed (with tokens_per_step) into every step, steps_per_sec and tokens_per_sec, taken over
    the steps since the last ones, every `log_interval` steps; writes those and a summary at the end."""

    def __init__(
        self, log_interval: int = 10, tokens_per_step: int | None = None, write: Callable[[str], None] = print
    ):
        self.log_interval = log_interval
        self.tokens_per_step = tokens_per_step
        self.write = write
        self.on_train_begin(None)

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self.tokens_processed = 0
        self._steps = self._since = 0
        self._start: float = time.perf_counter()
        self._last: float = self._start

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self._steps += 1
        self._since += 1
        if self.tokens_per_step is not None:
            self.tokens_processed += self.tokens_per_step
            metrics["tokens_processed"] = self.tokens_processed
        if step % self.log_interval == 0:
            now = time.perf_counter()
            metrics.update(self._rates(self._since, now - self._last))
            self._last, self._since = now, 0
            self.write(f"step {step}: " + self._show(metrics))

    def on_train_end(self, history: list[dict[str, Any]]) -> None:
        if self._steps:
            seconds = time.perf_counter() - self._start
            speed = self._show(self._rates(self._steps, seconds))
            self.write(f"Throughput summary: {self._steps} steps in {seconds:.1f} s, {speed}")

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_processed": self.tokens_processed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens_processed = state["tokens_processed"]

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        rates = {"steps_per_sec": steps / max(seconds, 1e-9)}
        if self.tokens_per_step is not None:
            rates["tokens_per_sec"] = rates["steps_per_sec"] * self.tokens_per_step
        return rates

    def _show(self, rates: dict[str, Any]) -> str:
        tokens = f", {rates['tokens_per_sec']:.0f} tok/s" if "tokens_per_sec" in rates else ""
        return f"{rates['steps_per_sec']:.2f} steps/s{tokens}"


class FLOPCounter(Callback):
    """Counts FLOPs; sets should_stop at the step at which total_flops reaches `flop_budget`.

    Puts total_flops into every step's metrics, tflops_per_sec (and mfu, the share of hardware_peak_tflops) every
    `log_interval` steps.
    """

    def __init__(
        self,
        flops_per_step: float,
        log_interval: int = 10,
        flop_budget: float | None = None,
        hardware_peak_tflops: float | None = None,
        write: Callable[[str], None] = print,
    ):
        self.flops_per_step = flops_per_step
        self.log_interval = log_interval
        self.flop_budget = flop_budget
        self.hardware_peak_tflops = hardware_peak_tflops
        self.write = write
        self.total_flops = self._last_flops = 0.0
        self._last = time.perf_counter()
        self.should_stop = False

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self._set(0.0)

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.total_flops += self.flops_per_step
        self._stop_at_budget()
        metrics["total_flops"] = self.total_flops
        if step % self.log_interval == 0:
            now = time.perf_counter()
            rate = (self.total_flops - self._last_flops) / max(now - self._last, 1e-9) / 1e12
            self._last, self._last_flops = now, self.total_flops
            metrics["tflops_per_sec"] = rate
            line = f"step {step}: {self.total_flops:.3e} FLOPs, {rate:.3f} TFLOP/s"
            if self.hardware_peak_tflops:
                metrics["mfu"] = rate / self.hardware_peak_tflops
                line += f", MFU {metrics['mfu']:.1%}"
            self.write(line)

    def state_dict(self) -> dict[str, Any]:
        return {"total_flops": self.total_flops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set(state["total_flops"])

    def _set(self, total: float) -> None:
        self.total_flops = total
        self._last = time.perf_counter()
        self._last_flops = total
        self._stop_at_budget()

    def _stop_at_budget(self) -> None:
        self.should_stop = self.flop_budget is not None and self.total_flops >= self.flop_budget


class HardwareMonitor(Callback):
    """Puts wall_time_s and, where the backend counts it, peak_memory_mb (1e6 bytes) into every step's metrics."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        metrics["wall_time_s"] = time.perf_counter() - self.start
        peak = mx.get_peak_memory()
        if peak:
            metrics["peak_memory_mb"] = peak / 1e6


class TimeBudget(Callback):
    """Sets should_stop at the first step that ends `seconds` or more into training; resuming goes on counting."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter):
        if not seconds > 0:
            raise UserError(f"A time budget must be above 0 seconds, got {seconds}.")
        self.seconds = seconds
        self.clock = clock
        self.on_train_begin(None)

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self.should_stop = False
        self._before = 0.0
        self._start = self.clock()

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.should_stop = self.elapsed >= self.seconds

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._before + self.clock() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["elapsed"]
        self._start = self.clock()

"""What watches a run while it trains: the clock, the metrics file, the validation curve and whoever looks on."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lmxlab.experiments.budget import flops_per_step, tokens_per_step
from lmxlab.experiments.interrupt import Stop
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import ScoreModel
from lmxlab.training.events import Callback
from lmxlab.training.run_folder import RunFolder
from lmxlab.training.trainer import NonFiniteLoss, Trainer

SMOOTHED_STEPS = 20  # one batch's loss is noise: the train_loss of the result is the mean over the last steps


@dataclass(frozen=True)
class Progress:
    """How far a run is: `used` is the share of its budget, `score` the latest point of its curve."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    score: float | None

    @property
    def used(self) -> float:
        return self.step / self.steps


class Observer:
    """Told what a run does; the command line overrides this to show it."""

    def phase(self, spec: RunSpec, name: str) -> None:
        """The run begins to do `name`: data, compile, train, eval, checkpoint or sample."""

    def step(self, spec: RunSpec, progress: Progress) -> None:
        """An optimizer step is done."""

    def done(self, spec: RunSpec, score: float | None) -> None:
        """The run has ended, with this score; None when it crashed."""


class Clock:
    """Seconds per phase. Time inside a nested phase counts for that one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[float] = []  # per open phase: seconds its nested phases took

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            nested = self._open.pop()
            self.add(phase, spent - nested)
            if self._open:
                self._open[-1] += spent

    def add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class Recorder(Callback):
    """A Trainer callback. Its state is part of the checkpoint, so that a resumed run reports the whole of it.

    Attributes:
        curve: [training FLOPs, score] at each point of the validation curve.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        metric: str,
        score: ScoreModel,
        clock: Clock,
        observer: Observer,
        stop: Stop,
    ):
        self.spec, self.folder, self.clock, self.observer, self.stop = spec, folder, clock, observer, stop
        self.curve: list[list[float]] = []
        self._metric, self._score = metric, score
        self._scored: tuple[int, dict[str, float]] = (-1, {})  # step and scores of the last point of the curve
        self._losses: deque[float] = deque(maxlen=SMOOTHED_STEPS)
        self._flops, self._tokens = flops_per_step(spec), tokens_per_step(spec)
        self._seconds_before: dict[str, float] = {}
        self._timed_steps = 0
        self._steps_here = 0
        self._mark = time.perf_counter()

    @property
    def should_stop(self) -> bool:
        return self.stop.requested

    @property
    def train_loss(self) -> float:
        """Mean loss of the last steps, nats per token."""
        return sum(self._losses) / len(self._losses) if self._losses else math.nan

    @property
    def tokens_per_s(self) -> float:
        """Training speed: steps alone, without the one that compiled."""
        seconds = self.seconds.get("train", 0.0)
        return self._timed_steps * self._tokens / seconds if seconds else math.nan

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per phase, those before an interruption included."""
        now, before = self.clock.seconds, self._seconds_before
        return {phase: now.get(phase, 0.0) + before.get(phase, 0.0) for phase in {**before, **now}}

    def on_train_begin(self, config: Any) -> None:
        self.observer.phase(self.spec, "compile")
        self._mark = time.perf_counter()

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self._time_step()
        loss = float(metrics["loss"])
        self._losses.append(loss)
        optim, last = self.spec.optim, step >= self.spec.optim.max_steps
        if step % optim.log_interval == 0 or last:
            numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
            self.folder.append_metrics(step, {**self._spent(step), **numbers})
        if step % optim.eval_interval == 0 and not last:  # the end of the run is scored by itself
            self.evaluate(step)
        score = self.curve[-1][1] if self.curve else None
        self.observer.step(self.spec, Progress(step, optim.max_steps, loss, self.tokens_per_s, score))
        self._mark = time.perf_counter()

    def checkpoint(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Saves the state: the Trainer's `checkpointer`.

        A step's loss is that of the parameters before its update. Those after it are tried on a batch first, or the
        last good checkpoint could be the one that the last update spoilt.
        """
        self.observer.phase(self.spec, "checkpoint")
        with self.clock("checkpoint"):
            tried = self._score("batch")
            if not all(map(math.isfinite, tried.values())):
                raise NonFiniteLoss(trainer.step, tried.get("val_loss", math.nan), metrics["grad_norm"])
            step, result = self._scored
            loss = result.get("val_loss") if step == trainer.step else None
            self.folder.save_checkpoint(trainer, None if loss is None else {"eval_loss": loss})
        self.observer.phase(self.spec, "train")
        self._mark = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "curve": self.curve,
            "losses": list(self._losses),
            "timed_steps": self._timed_steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve = [list(point) for point in state["curve"]]
        self._losses = deque(state["losses"], maxlen=SMOOTHED_STEPS)
        self._timed_steps = state["timed_steps"]
        self._seconds_before = state["seconds"]

    def _time_step(self) -> None:
        spent = time.perf_counter() - self._mark
        if self._steps_here == 0:
            self.clock.add("compile", spent)
            self.observer.phase(self.spec, "train")
        else:
            self.clock.add("train", spent)
            self._timed_steps += 1
        self._steps_here += 1

    def evaluate(self, step: int) -> None:
        """Adds a point to the validation curve. Every point is taken on the same tokens, the last one too."""
        with self.clock("eval"):
            result = self._score("curve")
        self.curve.append([float(step * self._flops), result.get(self._metric, math.nan)])
        self._scored = step, result
        self.folder.append_metrics(step, {**self._spent(step), **result})

    def _spent(self, step: int) -> dict[str, float]:
        return {
            "tokens": step * self._tokens,
            "flops": float(step * self._flops),
            "train_s": round(self.seconds.get("train", 0.0), 3),
        }

"""The training loop: batches in, optimizer steps out, callbacks told, state saved and restored exactly."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from lmxlab.errors import UserError
from lmxlab.training import resume
from lmxlab.training.callbacks import Callback
from lmxlab.training.config import TrainConfig
from lmxlab.training.mtp import default_objective
from lmxlab.training.objective import Batch, Objective, item, mean_loss
from lmxlab.training.optimizers import create_mup_optimizer, create_optimizer, learning_rates
from lmxlab.training.step import Means, Steps

EvalData = Iterable[Batch] | Callable[[], Iterable[Batch]]


class NonFiniteLoss(UserError):
    """The loss or the gradient became NaN or infinite; `step` says when. Checkpoints written before are good."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        super().__init__(
            f"Training stopped at step {step}: loss {loss}, gradient norm {grad_norm}. The parameters are spoilt; "
            "go on from the last checkpoint with a lower learning_rate, a longer warmup, or dtype float32."
        )
        self.step = step


class Trainer:
    """Trains `model` on batches of arrays: of (x, y) tokens, each (B, T), y being x shifted by one, y < 0 not scored.

    Args:
        model: parameters that are not frozen are trained; the dtype they have is the one they keep.
        config: loop settings.
        optimizer: default create_optimizer(config), or create_mup_optimizer when the model has mup_base_width.
        callbacks: told in this order; any attribute `should_stop` that is true ends the loop after that step.
        checkpointer: called with the trainer and the step's metrics every checkpoint_interval and at the end, after
            all callbacks, so that what it saves (see `save`) is the state between two steps.
        objective: what is minimised; it says what else a batch may consist of. By default the cross-entropy of the
            next token, and of those after it for a model with prediction heads (`mtp.multi_token`).

    Attributes: model, config, optimizer, callbacks, step (optimizer steps done).
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        optimizer: optim.Optimizer | None = None,
        callbacks: list[Callback] | None = None,
        checkpointer: Callable[["Trainer", dict[str, Any]], None] | None = None,
        objective: Objective | None = None,
    ):
        self.model = model
        self.config = config
        self.optimizer = optimizer or _default_optimizer(model, config)
        self.callbacks: list[Any] = list(callbacks or [])
        self.checkpointer = checkpointer
        self.step = 0
        self._steps = Steps(model, self.optimizer, config, objective or default_objective(model))
        self._data: Any = None
        self._resumed: dict[str, Any] = {}
        self._spent: list[Any] = []  # one-shot evaluation iterators that were read; held so that no id is reused

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step on one batch.

        Returns loss (nats per token, before the update) and what else the objective tells, learning_rate as applied
        (and learning_rate/<group> for several groups) and grad_norm (before clipping). Raises NonFiniteLoss.
        """
        self._train_mode()
        return self._finish(*self._steps.update(*batch))

    def train_step_accumulated(self, micro_batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step on the token-weighted mean gradient of `micro_batches`, as if they were one batch.

        Each micro-batch is evaluated before the next one starts, so memory does not grow with their number.
        """
        if not micro_batches:
            raise UserError("An optimizer step needs at least one micro-batch, got none.")
        if len(micro_batches) == 1:
            return self.train_step(micro_batches[0])
        self._train_mode()
        total: Any = None
        counted = mx.array(0.0)
        for batch in micro_batches:
            means, count, gradients = self._steps.gradients(*batch)
            weighted = tree_map(lambda a: a * count.astype(a.dtype), (means, gradients))  # noqa: B023 (used at once)
            total = weighted if total is None else tree_map(mx.add, total, weighted)
            counted = counted + count
            del means, gradients, weighted
            mx.eval(total, counted)
        scale = 1 / mx.maximum(counted, 1)
        means, mean = tree_map(lambda a: a * scale.astype(a.dtype), total)
        del total
        return self._finish(means, self._steps.apply(mean))

    def _finish(self, means: Means, norm: mx.array) -> dict[str, float]:
        rates = learning_rates(self.optimizer)
        mx.eval(self._steps.state, means, norm)
        self.step += 1
        read = {**means, **rates, "grad_norm": norm}
        metrics = {name: item(value) for name, value in read.items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise NonFiniteLoss(self.step, metrics["loss"], metrics["grad_norm"])
        return metrics

    def train(self, train_data: Iterable[Batch], eval_data: EvalData | None = None) -> list[dict[str, Any]]:
        """Steps until config.max_steps, the end of the data, or a callback's should_stop; returns the steps' metrics.

        `train_data` with state_dict / load_state_dict (TokenBatches) is part of the saved state. A group of fewer than
        grad_accumulation_steps micro-batches at the end of the data is still applied. With `eval_data`, every
        eval_interval steps `evaluate` runs and its result joins that step's metrics.
        """
        self._begin(train_data)
        history: list[dict[str, Any]] = []
        batches = iter(train_data)
        while self.step < self.config.max_steps:
            group = _take(batches, self.config.grad_accumulation_steps)
            if not group:
                break
            metrics: dict[str, Any] = dict(self.train_step_accumulated(group))
            history.append(metrics)
            self._tell("on_step_end", self.step, metrics)
            if eval_data is not None and self.step % self.config.eval_interval == 0:
                metrics.update(self.evaluate(eval_data))
                self._tell("on_eval_end", self.step, metrics)
            stop = any(getattr(callback, "should_stop", False) for callback in self.callbacks)
            due = self.step % self.config.checkpoint_interval == 0 or stop or self.step >= self.config.max_steps
            if self.checkpointer and due:
                self.checkpointer(self, metrics)
            if stop:
                break
        self._tell("on_train_end", history)
        return history

    def evaluate(self, eval_data: EvalData) -> dict[str, float]:
        """{"eval_loss": nats per token, and eval_... for each metric of the objective} over all batches of `eval_data`.

        Dropout is off; the training flag is restored.

        `eval_data` is a list, anything iterable many times, or a function that returns an iterable. An iterator can be
        read only once: giving the same one again, or data without a batch, raises UserError.
        """
        if isinstance(eval_data, Iterator):
            if any(eval_data is spent for spent in self._spent):
                raise UserError(
                    "The evaluation data is an iterator that has been read already: give a list, or a function that "
                    "returns a fresh iterator, such as lambda: batch_iterator(...)."
                )
            self._spent.append(eval_data)
        batches = eval_data() if callable(eval_data) else eval_data
        means = mean_loss(self.model, batches, self._steps.score)
        if not means:
            raise UserError("The evaluation data holds no token to score: give at least one batch.")
        return {f"eval_{name}": value for name, value in means.items()}

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Writes everything that continuing bit for bit needs into the folder `path`, atomically."""
        resume.save(self, path, metadata)

    def restore(self, path: str | Path, ignore: Iterable[str] = ()) -> dict[str, Any]:
        """Continues from a folder that `save` wrote; returns its metadata.

        Raises UserError when the checkpoint is torn, or when its model or config differs, naming what does; `ignore`
        lists TrainConfig fields that may. Callbacks and data continue at the next `train`.
        """
        return resume.restore(self, path, ignore)

    def _train_mode(self) -> None:
        if not self.model.training:  # setting it walks over all modules, too slow for every step
            self.model.train()

    def _begin(self, train_data: Any) -> None:
        self._data = train_data
        if "data" in self._resumed and hasattr(train_data, "load_state_dict"):
            train_data.load_state_dict(self._resumed["data"])
        self._tell("on_train_begin", self.config)
        resume.load_callbacks(self.callbacks, self._resumed.get("callbacks", {}))
        self._resumed = {}

    def _tell(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, event, None)  # a callback may implement only what it needs
            if method is not None:
                method(*args)


def _default_optimizer(model: nn.Module, config: TrainConfig) -> optim.Optimizer:
    model_config: Any = getattr(model, "config", None)
    if getattr(model_config, "mup_base_width", None):
        return create_mup_optimizer(config, model_config.width_mult)
    return create_optimizer(config)


def _take(batches: Iterator[Batch], count: int) -> list[Batch]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            break
    return group

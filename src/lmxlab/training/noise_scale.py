"""The gradient noise scale: from which batch size on more data per step stops paying."""

import inspect
import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from lmxlab.analysis.gradients import gradient_of
from lmxlab.errors import UserError
from lmxlab.training.events import Callback
from lmxlab.training.objective import Loss, item


class NoiseScale(NamedTuple):
    """Estimates from one batch of B rows, gradients being those of single rows.

    Attributes:
        noise: tr(Sigma), the variance of a row's gradient, summed over parameters.
        signal: |G|^2, the squared norm of the true gradient; both are unbiased, so this may be negative.
    """

    noise: float
    signal: float

    @property
    def batch_size(self) -> float:
        """B_simple = tr(Sigma) / |G|^2, in rows; infinite where no signal was found."""
        return self.noise / self.signal if self.signal > 0 else math.inf


def gradient_noise_scale(model: nn.Module, loss_fn: Any, batch: tuple[mx.array, ...]) -> NoiseScale:
    """The simple noise scale of McCandlish et al. 2018 (1812.06162, appendix A.1), from gradients of 1 and of B rows.

        |G|^2     ~ (B |g_B|^2 - mean |g_1|^2) / (B - 1)
        tr(Sigma) ~ (mean |g_1|^2 - |g_B|^2) / (1 - 1 / B)

    A batch much smaller than their ratio wastes steps, one much larger wastes data.

    Args:
        loss_fn: loss_fn(model, *batch) or loss_fn(*batch), a mean over the rows; dropout is off.
        batch: arrays with B rows each, at least 2.
    """
    rows = len(batch[0])
    if rows < 2:
        raise UserError(f"The noise scale compares rows of a batch: it needs at least 2, got {rows}.")
    total: dict[str, mx.array] = {}
    squares = mx.array(0.0)
    for i in range(rows):
        leaves: Any = tree_flatten(probe_gradient(model, loss_fn, tuple(a[i : i + 1] for a in batch)))
        gradient = {name: leaf.astype(mx.float32) for name, leaf in leaves}
        squares = squares + _square(gradient)
        total = {name: total[name] + leaf if total else leaf for name, leaf in gradient.items()}
        mx.eval(total, squares)  # never the gradients of two rows at once
    small, large = item(squares) / rows, item(_square(total)) / rows**2
    return NoiseScale((small - large) / (1 - 1 / rows), (rows * large - small) / (rows - 1))


class GradientNoiseScaleCallback(Callback):
    """Puts exp_simple_noise_scale into the metrics every `eval_interval` steps: the batch size, in rows of the probe
    batch, at which noise and signal of its gradient are equal (see `gradient_noise_scale`).

    Noise and signal are averaged over the estimates so far, each step's weighing `decay` less than the next one's, and
    then divided: the ratio of a single estimate is too wild (1812.06162, appendix A.1). Left out while no signal is
    found. It takes a backward pass per row.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Any, probe_batch: tuple[mx.array, ...], eval_interval: int = 500,
        decay: float = 0.5,
    ):  # fmt: skip
        self.model = model
        self.loss_fn = loss_fn
        self.probe_batch = probe_batch
        self.eval_interval = eval_interval
        self.decay = decay
        self._noise = self._signal = 0.0

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.eval_interval:
            return
        found = gradient_noise_scale(self.model, self.loss_fn, self.probe_batch)
        # Both sums carry the same weights, so that their ratio needs no normalisation.
        self._noise = self.decay * self._noise + found.noise
        self._signal = self.decay * self._signal + found.signal
        if self._signal > 0:
            metrics["exp_simple_noise_scale"] = self._noise / self._signal

    def state_dict(self) -> dict[str, Any]:
        return {"noise": self._noise, "signal": self._signal}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._noise, self._signal = state["noise"], state["signal"]


def probe_gradient(model: nn.Module, loss_fn: Any, batch: tuple[mx.array, ...]) -> Any:
    """The gradient for the trainable parameters of a mean loss on `batch`, dropout off; the model is left as it was.

    loss_fn is called with the model and the batch, or with the batch alone if it takes no more, and returns a scalar,
    a tuple that starts with one, or a `Loss`.
    """
    takes_model = _takes(loss_fn, len(batch) + 1)

    def loss(model: nn.Module) -> mx.array:
        out = loss_fn(model, *batch) if takes_model else loss_fn(*batch)
        if isinstance(out, Loss):
            return out.total / mx.maximum(out.counted, 1)
        return out[0] if isinstance(out, tuple) else out

    return gradient_of(model, loss)


def _square(gradient: dict[str, mx.array]) -> mx.array:
    """The squared norm of a whole gradient."""
    return mx.stack([mx.square(leaf).sum() for leaf in gradient.values()]).sum()


def _takes(function: Any, count: int) -> bool:
    """Whether it can be called with `count` positional arguments; one whose signature cannot be read is thought to."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True

"""Callbacks that look into the model while it trains and put what they see into the steps' metrics, as exp_... keys.

What needs data looks at one probe batch that stays the same, with dropout off: the numbers of different steps can be
compared, and the run itself is not changed (its random state included).
"""

import logging
import math
from collections import deque
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from lmxlab.analysis.activations import ActivationCapture
from lmxlab.analysis.attention import extract_attention_maps, row_entropy
from lmxlab.analysis.gradients import layer_norms_of
from lmxlab.training.config import TrainConfig
from lmxlab.training.events import Callback
from lmxlab.training.noise_scale import probe_gradient
from lmxlab.training.objective import item
from lmxlab.training.step import global_norm

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 4  # of the matrices that have an effective rank worth telling


class GradientStatsCallback(Callback):
    """Gradient norms of the layers on the probe batch, every `log_interval` steps; nothing before `set_probe_batch`.

    Puts exp_grad_norm_mean and exp_grad_norm_std (over the layers: each block, the embedding, the final norm, the
    head) and exp_grad_norm_max_layer (the largest of these norms) into the metrics.

    Args:
        loss_fn: loss_fn(model, *batch) or loss_fn(*batch) -> a scalar, or a `Loss` such as `next_token` gives.
    """

    def __init__(self, model: nn.Module, loss_fn: Any, log_interval: int = 100):
        self.model = model
        self.loss_fn = loss_fn
        self.log_interval = log_interval
        self._batch: tuple[mx.array, ...] | None = None

    def set_probe_batch(self, batch: tuple[mx.array, mx.array]) -> None:
        """The batch that gradients are taken on from now on."""
        self._batch = tuple(batch)

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if self._batch is None or step % self.log_interval:
            return
        norms = list(layer_norms_of(probe_gradient(self.model, self.loss_fn, self._batch)).values())
        metrics["exp_grad_norm_mean"] = float(np.mean(norms))
        metrics["exp_grad_norm_std"] = float(np.std(norms))
        metrics["exp_grad_norm_max_layer"] = float(np.max(norms))


class WeightStatsCallback(Callback):
    """Puts exp_weight_norm, the L2 norm of all parameters, and exp_weight_delta, how far it is from the norm at the
    beginning of the run, into the metrics every `log_interval` steps."""

    def __init__(self, model: nn.Module, log_interval: int = 100):
        self.model = model
        self.log_interval = log_interval
        self._start: float | None = None

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self._start = self._norm()

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.log_interval:
            return
        norm = self._norm()
        start = self._start = norm if self._start is None else self._start
        metrics["exp_weight_norm"] = norm
        metrics["exp_weight_delta"] = abs(norm - start)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = state["start"]

    def _norm(self) -> float:
        return item(global_norm(self.model.parameters()))


class ActivationStatsCallback(Callback):
    """Puts exp_act_norm_ratio (norm of the last layer's output / of the first one's) and exp_act_sparsity_mean (the
    share of outputs that are nearer to 0 than `eps`, averaged over the layers) into the metrics every
    `eval_interval` steps. `probe_batch` is (B, T) tokens."""

    def __init__(self, model: Any, probe_batch: mx.array, eval_interval: int = 500, eps: float = 1e-3):
        self.model = model
        self.probe_batch = probe_batch
        self.eval_interval = eval_interval
        self.eps = eps

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.eval_interval:
            return
        with ActivationCapture(self.model, places=("output",)) as capture:
            self.model(self.probe_batch)
        norms = list(capture.layer_norms().values())
        near_zero = [item((mx.abs(x) < self.eps).mean()) for x in capture.activations.values()]
        metrics["exp_act_norm_ratio"] = norms[-1] / norms[0] if norms[0] else math.inf
        metrics["exp_act_sparsity_mean"] = float(np.mean(near_zero))


class AttentionEntropyCallback(Callback):
    """How spread attention is: -sum p ln p of a query's weights, in nats, averaged over queries and rows of the batch
    for each head; exp_attn_entropy_mean and exp_attn_entropy_std are over the heads of all layers.

    Only softmax attention counts; a model that has none gets no such metrics, and a warning says so once.
    """

    def __init__(self, model: Any, probe_batch: mx.array, eval_interval: int = 500):
        self.model = model
        self.probe_batch = probe_batch
        self.eval_interval = eval_interval
        self._warned = False

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.eval_interval:
            return
        maps = extract_attention_maps(self.model, self.probe_batch)
        heads = [np.array(row_entropy(map_).mean(axis=(0, 2))) for name, map_ in maps.items() if "/" not in name]
        if heads:
            metrics["exp_attn_entropy_mean"] = float(np.concatenate(heads).mean())
            metrics["exp_attn_entropy_std"] = float(np.concatenate(heads).std())
        elif not self._warned:
            self._warned = True
            logger.warning("no attention entropy: %s", "; ".join(maps.skipped.values()))


class LossCurvatureCallback(Callback):
    """Puts exp_grad_noise_scale, the standard deviation of the last `window_size` grad_norms over their mean, into
    every step's metrics from the second on.

    It says how unsteady the gradient's length is. It is not the gradient noise scale of the literature, which
    compares gradients of small and large batches: that is `GradientNoiseScaleCallback`.
    """

    def __init__(self, window_size: int = 50):
        self.window_size = window_size
        self._norms: deque[float] = deque(maxlen=window_size)

    def on_train_begin(self, config: TrainConfig | None) -> None:
        self._norms.clear()

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if "grad_norm" not in metrics:
            return
        self._norms.append(float(metrics["grad_norm"]))
        if len(self._norms) >= 2:
            mean = float(np.mean(self._norms))
            metrics["exp_grad_noise_scale"] = float(np.std(self._norms)) / mean if mean else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._norms = deque(state["norms"], maxlen=self.window_size)


class EffectiveRankCallback(Callback):
    """Puts exp_effective_rank_mean, the mean of `effective_rank` over all matrices with sides of at least 4, into the
    metrics every `eval_interval` steps. A singular value decomposition of each: seconds for a large model."""

    def __init__(self, model: nn.Module, eval_interval: int = 500):
        self.model = model
        self.eval_interval = eval_interval

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.eval_interval:
            return
        leaves: Any = tree_flatten(self.model.parameters())
        matrices = [p for _, p in leaves if p.ndim == 2 and min(p.shape) >= SMALLEST_SIDE]
        matrices = [p for p in matrices if mx.issubdtype(p.dtype, mx.floating)]  # packed weights are no numbers
        if matrices:
            metrics["exp_effective_rank_mean"] = float(np.mean([effective_rank(p) for p in matrices]))


def effective_rank(matrix: mx.array) -> float:
    """exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007): from 1 to the rank.

    >>> round(effective_rank(mx.eye(5)), 4)
    5.0
    """
    values: Any = mx.linalg.svd(matrix.astype(mx.float32), compute_uv=False, stream=mx.cpu)
    total = values.sum()
    if item(total) == 0:
        return 0.0
    return math.exp(item(row_entropy(values / total)))

"""Which experts a token goes to, and with what weights; and the biases that keep the experts' loads even."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.config import BlockConfig
from lmxlab.core.kernels.experts import count_choices


class Router(nn.Module):
    """Scores s = softmax(W x) or sigmoid(W x) in float32, and the top k of s + b, weighted by s.

    Published mixtures are settings of this one router:

    | model | scores | normalised | balanced | groups |
    |---|---|---|---|---|
    | Mixtral (2401.04088), Qwen 3 | softmax | yes | no | 1 |
    | Jamba (2403.19887) | softmax | no | no | 1 |
    | DeepSeek-V2 (2405.04434) | softmax | no | no | by their best score |
    | DeepSeek-V3 (2412.19437), Nemotron-H | sigmoid | yes | yes | by the sum of their two best |
    | Llama 4 | sigmoid | no | no | 1 |

    Normalising softmax scores over the selection is the softmax of the selected logits alone. Weights come from s,
    never from the balancing bias b, and are multiplied by `config.moe_routed_scaling_factor`. Indices carry no
    gradient.

    b is no trained parameter. A forward pass in training adds to the load of each expert, and `balance`, once per
    optimizer step, moves b by `config.router_balance_step` against the sign of its excess (2408.15664).

    Args:
        n_experts, top_k: how many there are, and are chosen for each token.
        scores: "softmax" or "sigmoid".
        normalized: whether a token's weights are divided by their sum.
        balanced: whether there is a balancing bias.
    """

    def __init__(self, config: BlockConfig, n_experts: int, top_k: int, scores: str, normalized: bool, balanced: bool):
        super().__init__()
        self.top_k, self.scores, self.normalized = top_k, scores, normalized
        self.n_groups, self.kept_groups = config.moe_n_groups, config.moe_topk_groups
        self.scaling, self.balance_step = config.moe_routed_scaling_factor, config.router_balance_step
        self.weight = mx.zeros((n_experts, config.d_model))
        self.init_weights(config.d_model**-0.5)
        # Private arrays are state, which a compiled step carries through, but are neither saved nor trained.
        self._load, self._last_load = mx.zeros((n_experts,)), mx.zeros((n_experts,))
        if balanced:
            self.balance_bias = mx.zeros((n_experts,))
            self.freeze(keys=["balance_bias"], recurse=False)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """x (N, d_model) -> indices of experts (N, top_k), and their weights (N, top_k) float32."""
        logits = x.astype(mx.float32) @ self.weight.T.astype(mx.float32)
        scores = kernels.softmax(logits) if self.scores == "softmax" else mx.sigmoid(logits)
        choice = mx.stop_gradient(scores)
        if "balance_bias" in self:
            choice = choice + mx.stop_gradient(self.balance_bias)
        if self.kept_groups < self.n_groups:
            choice = self._within_best_groups(choice)
        indices = mx.argpartition(-choice, self.top_k - 1, axis=-1)[:, : self.top_k]
        if self.training:
            self._load = self._load + count_choices(indices, len(self.weight))
        weights = mx.take_along_axis(scores, indices, axis=-1)
        if self.normalized:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        return indices, weights * self.scaling

    def _within_best_groups(self, choice: mx.array) -> mx.array:
        """(N, E) with minus infinity outside each token's `kept_groups` best groups of neighbouring experts."""
        grouped = choice.reshape(len(choice), self.n_groups, -1)
        best = grouped.max(axis=-1) if self.scores == "softmax" else mx.topk(grouped, 2, axis=-1).sum(axis=-1)
        dropped = mx.argpartition(-best, self.kept_groups - 1, axis=-1)[:, self.kept_groups :, None]
        grouped = mx.put_along_axis(grouped, dropped, mx.array(-mx.inf), axis=1)
        return grouped.reshape(choice.shape)

    def balance(self) -> None:
        """Moves the bias by the load since the last call, and starts to count anew.

        A frozen router's bias stays: adapters are trained over a model that does not move.
        """
        if "balance_bias" in self and "weight" in self.trainable_parameters():
            lack = mx.sign(self._load.mean() - self._load)
            self.balance_bias = self.balance_bias + self.balance_step * lack
        self._load, self._last_load = mx.zeros_like(self._load), self._load

    @property
    def load(self) -> mx.array:
        """(E,) the share of all choices that each expert got in the last step; NaN before the first."""
        return self._last_load / self._last_load.sum()

    def init_weights(self, std: float) -> None:
        """Draws the weight from N(0, std^2)."""
        self.weight = mx.random.normal(self.weight.shape, scale=std)

    def unfreeze(self, *args: Any, **kwargs: Any) -> "Router":
        """As nn.Module.unfreeze; the balancing bias stays frozen."""
        super().unfreeze(*args, **kwargs)
        if "balance_bias" in self:
            self.freeze(keys=["balance_bias"], recurse=False)
        return self


def balance(model: nn.Module) -> None:
    """Ends a training step for every router: call it once after `optimizer.update`, as the Trainer does.

    With gradient accumulation once for all micro-batches, whose loads are added.
    """
    for _, router in routers(model):
        router.balance()


def expert_load(model: nn.Module) -> dict[str, mx.array]:
    """By the path of each router, the share of the choices that each expert got in the last training step, (E,).

    Where all are alike it is 1 / E. To measure on other data, call the model within `counting`.
    """
    return {path: router.load for path, router in routers(model)}


@contextmanager
def counting(model: nn.Module) -> Iterator[None]:
    """Within the block forward passes count towards `expert_load`, though not in training; no bias moves."""
    before = [(router, router.training, router._load) for _, router in routers(model)]
    for router, _, _ in before:
        router._training, router._load = True, mx.zeros_like(router._load)
    try:
        yield
    finally:
        for router, training, load in before:
            router._training, router._load, router._last_load = training, load, router._load


def routers(model: nn.Module) -> list[tuple[str, Router]]:
    """Every router in the model, with its path."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, Router)]

"""Optimizers by name, each with its schedule and with weight decay on matrices only.

`mlx.optimizers` is the base. What it leaves out or does otherwise than the papers is mended by small subclasses, held
against torch.optim and lion-pytorch in the tests: decay by parameter name, AdamW's bias correction, Adafactor with the
given learning rate, and Muon's decay, which MLX adds to the gradient before it is orthogonalised.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.training.adamw import AdamW
from lmxlab.training.config import OPTIMIZERS, TrainConfig
from lmxlab.training.decay import MatrixDecay, decays
from lmxlab.training.muon import Muon, NorMuon
from lmxlab.training.schedule_free import ScheduleFreeAdamW
from lmxlab.training.schedules import Schedule, create_schedule

__all__ = ["create_mup_optimizer", "create_optimizer", "create_schedule", "is_hidden_matrix", "learning_rates"]

MUP_OPTIMIZERS = ("adamw", "lion")
MUONS = {"muon": Muon, "normuon": NorMuon}


class Lion(MatrixDecay, optim.Lion):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        kept = parameter * (1 - self.learning_rate * decay).astype(parameter.dtype) if decay else parameter
        return super().apply_single(gradient, kept, state)


class SGD(MatrixDecay, optim.SGD):
    """Momentum SGD; the decay is the classical one, added to the gradient, as in torch.optim.SGD."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        return super().apply_single(gradient + decay * parameter if decay else gradient, parameter, state)


class Adafactor(MatrixDecay, optim.Adafactor):
    """Factored second moments (Shazeer & Stern 2018, arXiv 1804.04235); steps of learning_rate * max(1e-3, RMS(w)).

    MLX's decay shrinks with RMS(w) too; here, as in torch.optim.Adafactor, it is learning_rate * decay * w.
    """

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict, decay: float = 0.0) -> mx.array:
        updated = super().apply_single(gradient, parameter, state)
        return updated - self.learning_rate.astype(parameter.dtype) * decay * parameter if decay else updated


def create_optimizer(config: TrainConfig) -> optim.Optimizer:
    """The optimizer that `config.optimizer` names, on the schedule of `config`.

    adamw, lion, adafactor, sgd and schedule_free are one optimizer for all parameters; muon and normuon are an
    optim.MultiOptimizer of Muon or NorMuon for the hidden matrices and AdamW for embeddings, output head, norms and
    biases. Raises UnknownNameError.
    """
    if config.optimizer in MUONS:
        matrices = MUONS[config.optimizer](
            create_schedule(config),
            momentum=0.95 if config.momentum is None else config.momentum,
            decay=config.weight_decay,
            adjust_lr=config.muon_lr_adjust,
            iteration=config.muon_iteration,
            cautious=config.cautious_decay,
        )
        return _groups(
            {config.optimizer: matrices, "adamw": _adamw(config, create_schedule(config), config.weight_decay)}
        )
    build = _BUILDERS.get(config.optimizer)
    if build is None:
        raise UnknownNameError("optimizer", config.optimizer, OPTIMIZERS)
    return build(config, create_schedule(config), config.weight_decay)


def create_mup_optimizer(config: TrainConfig, width_mult: float) -> optim.Optimizer:
    """Learning rates of muP (Yang et al. 2022, arXiv 2203.03466, table 8): optim.MultiOptimizer of two groups.

    Embeddings, output head and vectors keep the base rate; hidden matrices get rate / width_mult, and weight decay
    times width_mult so that rate * decay does not change with the width. The rules are those of Adam-like optimizers;
    sgd, adafactor and muon raise UserError.
    """
    if config.optimizer not in MUP_OPTIMIZERS:
        raise UserError(
            f"muP's rates are for {' and '.join(MUP_OPTIMIZERS)}, not {config.optimizer!r}: choose one of them."
        )
    build = _BUILDERS[config.optimizer]
    base = build(config, create_schedule(config), config.weight_decay)
    rate = config.learning_rate / width_mult
    hidden = build(config, create_schedule(config, peak=rate), config.weight_decay * width_mult)
    return _groups({"base": base, "hidden": hidden}, first_takes=lambda path, p: not is_hidden_matrix(path, p))


def is_hidden_matrix(path: str, parameter: mx.array) -> bool:
    """Whether a parameter maps width to width: hidden matrices and stacked experts, not embeddings, head or kernels."""
    matrix = parameter.ndim == 2 or (parameter.ndim == 3 and "expert" in path)
    return matrix and decays(path, parameter) and "head" not in path.split(".")


def learning_rates(optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """The last step's rates as applied: `learning_rate` (of the first group), `learning_rate/<group>` for several."""
    if not isinstance(optimizer, optim.MultiOptimizer):
        return {"learning_rate": optimizer.learning_rate}
    names = getattr(optimizer, "group_names", range(len(optimizer.optimizers)))
    rates = {
        f"learning_rate/{name}": part.learning_rate for name, part in zip(names, optimizer.optimizers, strict=True)
    }
    return {"learning_rate": optimizer.optimizers[0].learning_rate, **rates}


def _groups(
    parts: dict[str, optim.Optimizer], first_takes: Callable[[str, mx.array], bool] = is_hidden_matrix
) -> optim.Optimizer:
    groups: Any = optim.MultiOptimizer(list(parts.values()), [first_takes])
    groups.group_names = tuple(parts)
    return groups


def _adamw(config: TrainConfig, schedule: Schedule, decay: float) -> optim.Optimizer:
    return AdamW(
        schedule, betas=config.betas or (0.9, 0.999), eps=config.eps, decay=decay, cautious=config.cautious_decay
    )


def _lion(config: TrainConfig, schedule: Schedule, decay: float) -> optim.Optimizer:
    return Lion(schedule, betas=list(config.betas or (0.9, 0.99)), decay=decay, cautious=config.cautious_decay)


def _sgd(config: TrainConfig, schedule: Schedule, decay: float) -> optim.Optimizer:
    return SGD(schedule, momentum=0.9 if config.momentum is None else config.momentum, decay=decay)


def _adafactor(config: TrainConfig, schedule: Schedule, decay: float) -> optim.Optimizer:
    return Adafactor(schedule, relative_step=False, decay=decay)


def _schedule_free(config: TrainConfig, schedule: Schedule, decay: float) -> optim.Optimizer:
    return ScheduleFreeAdamW(schedule, betas=config.betas or (0.9, 0.999), eps=config.eps, decay=decay)


_BUILDERS: dict[str, Callable[[TrainConfig, Schedule, float], Any]] = {
    "adamw": _adamw,
    "lion": _lion,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "schedule_free": _schedule_free,
}

"""Settings of the training loop, checked when they are made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lmxlab.errors import UnknownNameError, UserError

OPTIMIZERS = ("adamw", "lion", "adafactor", "sgd", "muon", "normuon", "schedule_free")
CAUTIOUS = ("adamw", "lion", "muon", "normuon")  # whose decay is decoupled from their step
SCHEDULES = ("cosine", "linear", "constant", "wsd")
DTYPES = ("float32", "bfloat16", "float16")
MUON_ADJUSTMENTS = ("match_rms_adamw", "original")
MUON_ITERATIONS = ("newton_schulz", "polar_express")


@dataclass(frozen=True)
class TrainConfig:
    """Loop settings; a value that cannot work raises UserError naming the field.

    Attributes:
        learning_rate: peak learning rate, reached after the warmup.
        weight_decay: decoupled decay (coupled L2 for sgd), never on norms, biases, embeddings or other vectors.
        warmup_steps: steps of linear warmup from 1e-7; may pass max_steps, and may be 0.
        max_steps: optimizer steps of the run.
        batch_size: rows of one micro-batch; the loop takes what the data gives, so this is for whoever makes the data.
        grad_accumulation_steps: micro-batches per optimizer step.
        max_grad_norm: global norm that gradients are clipped to; 0 switches clipping off.
        eval_interval, log_interval, checkpoint_interval: in optimizer steps.
        optimizer: adamw, lion, adafactor, sgd, muon, normuon (muon with a second moment per neuron, arXiv 2510.05491),
            or schedule_free (AdamW with averaging instead of a schedule, arXiv 2405.15682: lr_schedule constant).
        lr_schedule: after the warmup: cosine, linear, constant, or wsd (constant, then linear over the last fifth).
        compile_step: fuse the whole step with mx.compile.
        seed: of whoever makes the model and the data; the loop itself draws only from mx.random.state.
        dtype: arithmetic of the forward and backward pass. float32 runs in the dtype the parameters have; bfloat16 and
            float16 keep float32 master weights and optimizer state and compute in the half type (Micikevicius et al.
            2017, arXiv 1710.03740); the loss is a float32 mean either way.
        min_lr_ratio: the schedule ends at learning_rate * min_lr_ratio.
        betas: of adamw (default 0.9, 0.999), lion (0.9, 0.99), schedule_free and the adamw part of muon and normuon.
        eps: of adamw and schedule_free.
        momentum: of sgd (default 0.9), muon and normuon (0.95).
        muon_lr_adjust: `adjust_lr_fn` of torch.optim.Muon. match_rms_adamw (arXiv 2502.16982, section 2.2) gives
            updates the size of AdamW's, so that one learning_rate serves both groups; original wants about 0.02.
        muon_iteration: how muon and normuon orthogonalise: newton_schulz, or polar_express (arXiv 2505.16932), which
            comes closer in as many steps.
        cautious_decay: decay only what the step does not take further from 0 (arXiv 2510.12402); of adamw, lion, muon,
            normuon.
    """

    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    max_steps: int = 1000
    batch_size: int = 32
    grad_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    eval_interval: int = 100
    log_interval: int = 10
    checkpoint_interval: int = 500
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    compile_step: bool = True
    seed: int = 42
    dtype: str = "float32"
    min_lr_ratio: float = 0.0
    betas: tuple[float, float] | None = None
    eps: float = 1e-8
    momentum: float | None = None
    muon_lr_adjust: str = "match_rms_adamw"
    muon_iteration: str = "newton_schulz"
    cautious_decay: bool = False

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "grad_accumulation_steps", "eval_interval", "log_interval"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("checkpoint_interval", self.checkpoint_interval >= 1, "at least 1")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number of 0 or more")
        self._require("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0")
        self._require("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "between 0 and 1")
        self._require("eps", 0 < self.eps < 1, "between 0 and 1")
        if self.momentum is not None:
            self._require("momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        if self.betas is not None:
            pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
            self._require("betas", pair, "two numbers of at least 0 and below 1")
            object.__setattr__(self, "betas", tuple(self.betas))  # JSON and TOML give lists
        for kind, name, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.lr_schedule, SCHEDULES),
            ("dtype", self.dtype, DTYPES),
            ("muon_lr_adjust", self.muon_lr_adjust, MUON_ADJUSTMENTS),
            ("muon_iteration", self.muon_iteration, MUON_ITERATIONS),
        ):
            if name not in allowed:
                raise UnknownNameError(kind, name, allowed)
        if self.cautious_decay and self.optimizer not in CAUTIOUS:
            raise UserError(
                f"TrainConfig.cautious_decay goes with {', '.join(CAUTIOUS)}, not with {self.optimizer!r}: "
                "leave it out."
            )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"TrainConfig.{name} must be {allowed}, got {getattr(self, name)!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` inverts it."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The config that `values` describe; a key that is no field raises UnknownNameError.

        >>> TrainConfig.from_dict({"max_steps": 5}).max_steps
        5
        """
        allowed = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in allowed:
                raise UnknownNameError("config key", key, allowed)
        return cls(**values)

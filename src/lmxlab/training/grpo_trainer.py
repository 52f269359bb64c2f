"""GRPO with everything in one place: prompts and a reward function in, metrics of each step out."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.models.base import LanguageModel
from lmxlab.training.config import TrainConfig
from lmxlab.training.events import Callback
from lmxlab.training.grpo import GRPO, SCALES
from lmxlab.training.rollouts import RolloutMonitor, Rollouts, check_group
from lmxlab.training.sampling import Completion, Decodes, Prompt, text_reward, token_reward
from lmxlab.training.trainer import Trainer

__all__ = ["Completion", "GRPOConfig", "GRPOTrainer", "Prompt", "RolloutMonitor", "Rollouts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of GRPOTrainer; a value that cannot work raises UserError naming the field.

    Attributes:
        group_size: completions of each prompt, at least 2.
        max_gen_tokens: of a completion.
        temperature: of sampling, and of the policy that is trained.
        beta: weight of the penalty on leaving the reference.
        epsilon: how far from 1 the ratio to the sampling policy counts.
        learning_rate: of the default optimizer.
        max_grad_norm: global norm that gradients are clipped to; 0 switches clipping off.
        epsilon_high, loss_type, ratio: see `GRPO`.
        scale_rewards: "group", "batch" or "none"; see `group_advantages`.
        prompts_per_step: prompts that are completed together.
        updates: optimizer steps on each batch of completions.
        stop_tokens: end a completion.
        skip_flat_groups, skip_unended: leave completions out; see `Rollouts`.
        compile_step: fuse the whole step with mx.compile.
        seed: of the draws.
    """

    group_size: int = 4
    max_gen_tokens: int = 256
    temperature: float = 0.8
    beta: float = 0.1
    epsilon: float = 0.2
    learning_rate: float = 1e-5
    max_grad_norm: float = 1.0
    epsilon_high: float | None = None
    loss_type: str = "grpo"
    ratio: str = "token"
    scale_rewards: str = "group"
    prompts_per_step: int = 1
    updates: int = 1
    stop_tokens: tuple[int, ...] = ()
    skip_flat_groups: bool = False
    skip_unended: bool = False
    compile_step: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_group(self.group_size, self.temperature)
        for name in ("max_gen_tokens", "prompts_per_step", "updates"):
            if getattr(self, name) < 1:
                raise UserError(f"GRPOConfig.{name} must be at least 1, got {getattr(self, name)}.")
        if self.scale_rewards not in SCALES:
            raise UnknownNameError("scale of rewards", self.scale_rewards, SCALES)
        self.objective(), self.train_config(1)  # they check the others

    def objective(self) -> GRPO:
        """What is minimised."""
        options = {"loss_type": self.loss_type, "ratio": self.ratio, "max_tokens": self.max_gen_tokens}
        return GRPO(self.beta, self.epsilon, self.epsilon_high, temperature=self.temperature, **options)  # type: ignore[arg-type]

    def train_config(self, max_steps: int) -> TrainConfig:
        """The settings of the loop."""
        return TrainConfig(
            learning_rate=self.learning_rate,
            max_steps=max_steps,
            warmup_steps=0,
            lr_schedule="constant",
            weight_decay=0.0,
            max_grad_norm=self.max_grad_norm,
            compile_step=self.compile_step,
            seed=self.seed,
        )


class GRPOTrainer:
    """Trains a model on what a reward function thinks of its completions: a `Trainer` over `Rollouts`.

    Args:
        model: the policy.
        ref_model: the reference. The model itself is its own reference with its adapters off; without adapters the
            reference moves along, and the penalty is 0. None: the model's adapters off.
        config: settings.
        reward_fn: of the prompt (L,) and of the whole sequence (L + n,), each 1-D; with a tokenizer, of the prompt's
            text and of the completion's. Larger is better.
        optimizer: default AdamW at config.learning_rate without decay.
        callbacks: told of begin (with None), steps and end.
        tokenizer: for a reward_fn of texts.

    Attributes: model, config, trainer, rollouts (None before training).
    """

    def __init__(
        self,
        model: LanguageModel,
        ref_model: LanguageModel | None,
        config: GRPOConfig,
        reward_fn: Callable[[mx.array, mx.array], float] | Callable[[str, str], float],
        optimizer: optim.Optimizer | None = None,
        callbacks: list[Callback] | None = None,
        *,
        tokenizer: Decodes | None = None,
    ):
        self.model, self.ref_model, self.config = model, ref_model, config
        reward: Any = reward_fn
        self.score = token_reward(reward) if tokenizer is None else text_reward(reward, tokenizer)
        self.rollouts: Rollouts | None = None
        self.trainer: Trainer = _Loop(model, config.train_config(1), optimizer, callbacks, objective=config.objective())

    def train(self, prompt_iterator: Iterable[mx.array | Prompt], n_steps: int) -> list[dict[str, Any]]:
        """`n_steps` optimizer steps on completions of the prompts, (L,) or (1, L) each; returns the steps' metrics.

        Those of `GRPO` and of `Rollouts.told`, loss and grad_norm. Fewer steps are done if the prompts end first, which
        a warning tells.

        Raises:
            UserError: no prompt at all, or a reward function that raises or gives something else than finite numbers.
        """
        config = self.config
        self.rollouts = Rollouts(
            self.model,
            prompt_iterator,
            self.score,
            ref_model=self.ref_model,
            prompts_per_round=config.prompts_per_step,
            group_size=config.group_size,
            max_tokens=config.max_gen_tokens,
            temperature=config.temperature,
            stop_tokens=config.stop_tokens,
            updates=config.updates,
            beta=config.beta,
            scale=config.scale_rewards,
            skip_flat=config.skip_flat_groups,
            skip_unended=config.skip_unended,
            seed=config.seed + self.trainer.step,  # another call draws other completions of the same prompts
        )
        monitor = RolloutMonitor(self.rollouts)
        self.trainer.config = dataclasses.replace(self.trainer.config, max_steps=self.trainer.step + n_steps)
        self.trainer.callbacks.insert(0, monitor)
        try:
            history = self.trainer.train(self.rollouts)
        finally:
            self.trainer.callbacks.remove(monitor)
        if len(history) < n_steps:
            logger.warning("GRPO ended after %d of %d steps.", len(history), n_steps)
        return history

    def save(self, path: str | Path) -> None:
        """Writes everything that going on bit for bit needs, with the completions in use, into the folder `path`."""
        self.trainer.save(path)

    def restore(self, path: str | Path) -> None:
        """Goes on from a folder that `save` wrote: `train` then takes the same prompts from their beginning."""
        self.trainer.restore(path, ignore=["max_steps"])


class _Loop(Trainer):
    """Tells callbacks of the beginning without a config: GRPO's is no TrainConfig."""

    def _tell(self, event: str, *args: Any) -> None:
        super()._tell(event, *((None,) if event == "on_train_begin" else args))

"""Batches for GRPO: completions that the policy just wrote, scored, and compared within their groups."""

import base64
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.decoding import context_length
from lmxlab.models.sampling import Keys
from lmxlab.training.config import TrainConfig
from lmxlab.training.events import Callback
from lmxlab.training.grpo import group_advantages
from lmxlab.training.logprobs import reference_logprobs
from lmxlab.training.sampling import Completion, Prompt, Score, rewards_of, sample
from lmxlab.training.step import Precision

PAD_MULTIPLE = 32  # lengths that batches are padded to: each new one is compiled again
MOST_IDLE_ROUNDS = 50  # in a row with nothing to train on, before a run gives up
FLAT_STEPS = 20  # in a row without a group that has better and worse, before a warning

logger = logging.getLogger(__name__)


class Rollouts:
    """Batches for the objective `GRPO`: tokens, mask, advantages, rewards, sampled and reference log-probabilities.

    When a batch is asked for and none is left, the model as it is then completes the next prompts, `group_size` times
    each. What they gave is trained on `updates` times, each time in another order and in parts of `batch_size`. It ends
    when the prompts do, with a warning.

    Its state is part of a checkpoint, with the completions not used up: a run goes on exactly. The prompts go on by
    their own `state_dict`, if they have one, else as many are skipped as were drawn.

    Args:
        model: the policy.
        prompts: token ids (L,) or (1, L), or `Prompt`s.
        score: gives a reward for each completion; see `token_reward` and `text_reward`.
        ref_model: the reference, as in `reference_logprobs`; nothing is computed with it where beta is 0.
        prompts_per_round: prompts that are completed together.
        group_size: completions of each prompt, at least 2.
        max_tokens: of a completion.
        temperature: of sampling, above 0; the same for the objective.
        stop_tokens: end a completion, and belong to it.
        updates: how often each completion is trained on.
        batch_size: completions of one batch; None: all of a round.
        beta: of the objective.
        scale: of the rewards, see `group_advantages`.
        skip_flat: leaves groups out whose rewards are all equal, as DAPO does: then not even the penalty moves them.
        skip_unended: does not train on completions that came to no end (DAPO's overlong filtering).
        dtype: of sampling and of the reference's pass, as `TrainConfig.dtype` of the run.
        seed: of the draws and orders; MLX's global random state is left alone.

    Attributes:
        told: of the last round: reward_std (within groups), flat_groups (share of groups whose rewards are all equal:
            their advantages are exactly 0), unended (share of completions), entropy (nats per token, estimated by the
            drawn ones).
        flat_groups, groups: counts of all rounds so far.
        completions, rewards: of the last round.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Iterable[mx.array | Prompt],
        score: Score,
        *,
        ref_model: LanguageModel | None = None,
        prompts_per_round: int = 8,
        group_size: int = 4,
        max_tokens: int = 256,
        temperature: float = 1.0,
        stop_tokens: Sequence[int] = (),
        updates: int = 1,
        batch_size: int | None = None,
        beta: float = 0.1,
        scale: str = "group",
        skip_flat: bool = False,
        skip_unended: bool = False,
        dtype: str = "float32",
        seed: int = 0,
    ):
        for name, value in (("prompts_per_round", prompts_per_round), ("max_tokens", max_tokens), ("updates", updates)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1.")
        check_group(group_size, temperature)
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
        self.model, self.ref_model, self.prompts, self.score = model, ref_model, prompts, score
        self.prompts_per_round, self.group_size, self.max_tokens = prompts_per_round, group_size, max_tokens
        self.temperature, self.stop_tokens = temperature, tuple(stop_tokens)
        self.updates, self.batch_size, self.beta, self.scale = updates, batch_size, beta, scale
        self.skip_flat, self.skip_unended, self.seed = skip_flat, skip_unended, seed
        self._precision = Precision(TrainConfig(dtype=dtype))
        self.told: dict[str, float] = {}
        self.flat_groups = self.groups = 0
        self.completions: list[Completion] = []
        self.rewards = np.zeros(0, np.float32)
        self._round = self._drawn = self._used = 0
        self._pending: list[mx.array] = []
        self._source: Iterator[Any] | None = None

    def __iter__(self) -> "Rollouts":
        return self

    def __next__(self) -> tuple[mx.array, ...]:
        if self._used >= self.updates * self._parts:
            self._begin()
        update, part = divmod(self._used, self._parts)
        self._used += 1
        if self._parts == 1:
            return tuple(self._pending)
        order = self._rng(update).permutation(len(self._pending[0]))
        size = self.batch_size or len(order)
        rows = mx.array(order[part * size : (part + 1) * size])
        return tuple(array[rows] for array in self._pending)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values: counts, and the completions in use."""
        prompts = self.prompts.state_dict() if hasattr(self.prompts, "state_dict") else None
        return {
            **{"round": self._round, "drawn": self._drawn, "used": self._used, "seed": self.seed},
            **{"flat_groups": self.flat_groups, "groups": self.groups, "told": self.told, "prompts": prompts},
            "pending": [_packed(array) for array in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, with the same prompts from their beginning, and with the state's seed."""
        self._round, self._drawn, self._used = state["round"], state["drawn"], state["used"]
        self.seed, self.told = state["seed"], dict(state["told"])
        self.flat_groups, self.groups = state["flat_groups"], state["groups"]
        self._pending = [_unpacked(array) for array in state["pending"]]
        if state["prompts"] is not None:
            self.prompts.load_state_dict(state["prompts"])  # type: ignore[attr-defined]  # its state came from there
            self._source = iter(self.prompts)
        else:
            self._source = islice(iter(self.prompts), self._drawn, None)

    @property
    def _parts(self) -> int:
        """Batches of one update."""
        rows = len(self._pending[0]) if self._pending else 0
        return -(-rows // (self.batch_size or max(rows, 1)))

    def _begin(self) -> None:
        """Samples until a round has something to train on."""
        for _ in range(MOST_IDLE_ROUNDS):
            prompts = self._next_prompts()
            self._round += 1
            keys = Keys(int(self._rng().integers(2**63)))
            repeated = [prompt for prompt in prompts for _ in range(self.group_size)]
            stop = {"stop_tokens": self.stop_tokens, "keys": keys}
            with self._precision.computing(self.model):
                self.completions = sample(self.model, repeated, self.max_tokens, self.temperature, **stop)  # type: ignore[arg-type]
            self.rewards = rewards_of(self.score, self.completions)
            self._pending, self._used = self._arrays(), 0
            if self._pending:
                return
        raise UserError(
            f"{MOST_IDLE_ROUNDS} rounds in a row gave nothing to train on (rewards of all groups equal, or completions "
            "without an end): give easier or harder prompts, larger groups, or more max_tokens."
        )

    def _next_prompts(self) -> list[Prompt]:
        if self._source is None:
            self._source = iter(self.prompts)
        prompts = [_prompt(given) for given in islice(self._source, self.prompts_per_round)]
        self._drawn += len(prompts)
        if not prompts:
            if not self._drawn:
                raise UserError("There are no prompts: give at least one.")
            logger.warning("The prompts ended after %d, and training ends with them.", self._drawn)
            raise StopIteration
        return prompts

    def _arrays(self) -> list[mx.array]:
        rewards = mx.array(self.rewards)
        groups = np.arange(len(self.completions)) // self.group_size
        advantages = group_advantages(rewards, mx.array(groups), self.scale)
        grouped = self.rewards.reshape(-1, self.group_size)
        flat = grouped.max(axis=1) == grouped.min(axis=1)
        self.flat_groups, self.groups = self.flat_groups + int(flat.sum()), self.groups + flat.size
        nats = -mx.concatenate([completion.logprobs for completion in self.completions])
        self.told = {
            "reward_std": float(grouped.std(axis=1, ddof=1).mean()),
            "flat_groups": float(flat.mean()),
            "unended": float(np.mean([not completion.ended for completion in self.completions])),
            "entropy": float(nats.mean()),
        }
        kept = [
            i
            for i, completion in enumerate(self.completions)
            if not (self.skip_flat and flat[groups[i]] or self.skip_unended and not completion.ended)
        ]
        if not kept:
            return []
        tokens, mask, sampled = _padded([self.completions[i] for i in kept], context_length(self.model.config))
        reference = mx.zeros(sampled.shape)
        if self.beta:
            with self._precision.computing(self.ref_model or self.model):
                reference = reference_logprobs(self.model, self.ref_model, tokens, self.temperature) * mask
                mx.eval(reference)
        rows = mx.array(kept)
        arrays = [tokens, mask, advantages[rows], rewards[rows], sampled, reference]
        mx.eval(arrays)
        return arrays

    def _rng(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self._round, *more])


class RolloutMonitor(Callback):
    """Puts what the last round told (`Rollouts.told`) into every step's metrics; warns where it taught nothing."""

    def __init__(self, rollouts: Rollouts):
        self.rollouts = rollouts
        self._flat_steps = 0

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        metrics.update(self.rollouts.told)
        self._flat_steps = self._flat_steps + 1 if self.rollouts.told.get("flat_groups") == 1 else 0
        if self._flat_steps == FLAT_STEPS:
            logger.warning(
                "step %d: for %d steps all completions of a prompt had equal rewards, which teaches nothing: "
                "look at samples and rewards, or start from a model that is right now and then",
                step,
                FLAT_STEPS,
            )


def check_group(group_size: int, temperature: float) -> None:
    """UserError for groups in which nothing can be better than the rest."""
    if group_size < 2:
        raise UserError(f"group_size is {group_size}; a completion is compared with others of its prompt: at least 2.")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; at 0 all completions of a group are the same: above 0.")


def _prompt(given: Any) -> Prompt:
    prompt = given if isinstance(given, Prompt) else Prompt(given)
    tokens = prompt.tokens if isinstance(prompt.tokens, mx.array) else mx.array(prompt.tokens, mx.int32)
    tokens = tokens[0] if tokens.ndim == 2 and tokens.shape[0] == 1 else tokens
    if tokens.ndim != 1 or tokens.size == 0:
        raise UserError(f"A prompt has shape {tuple(tokens.shape)}; give (L,) or (1, L), at least one token.")
    return prompt._replace(tokens=tokens)


def _padded(completions: list[Completion], limit: int | None) -> tuple[mx.array, mx.array, mx.array]:
    """Tokens (B, T), and for the targets (B, T - 1) the mask and the log-probabilities; padding on the right."""
    longest = max(completion.prompt.size + completion.tokens.size for completion in completions)
    width = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    if limit is not None:  # positions may end there; the last token is not read
        width = max(longest, min(width, limit + 1))
    tokens = np.zeros((len(completions), width), np.int32)
    mask, logprobs = (np.zeros((len(completions), width - 1), np.float32) for _ in range(2))
    for i, completion in enumerate(completions):
        start, n = completion.prompt.size, completion.tokens.size
        tokens[i, : start + n] = np.array(completion.whole)
        mask[i, start - 1 : start - 1 + n] = 1
        logprobs[i, start - 1 : start - 1 + n] = np.array(completion.logprobs)
    return mx.array(tokens), mx.array(mask), mx.array(logprobs)


def _packed(array: mx.array) -> dict[str, Any]:
    values = np.array(array)
    return {"dtype": str(values.dtype), "shape": values.shape, "data": base64.b64encode(values.tobytes()).decode()}


def _unpacked(saved: dict[str, Any]) -> mx.array:
    values = np.frombuffer(base64.b64decode(saved["data"]), saved["dtype"])
    return mx.array(values.reshape(saved["shape"]))

"""Group relative policy optimisation as a run: judged by the mean reward of greedy answers to held-out prompts."""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from lmxlab.data.questions import Question, load_questions
from lmxlab.errors import UserError
from lmxlab.experiments import methods
from lmxlab.experiments.example_task import ExampleTask
from lmxlab.experiments.loaded import build_model
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import Extent, ScoreModel
from lmxlab.models.base import LanguageModel
from lmxlab.training.events import Callback
from lmxlab.training.grpo import GRPO
from lmxlab.training.rollouts import RolloutMonitor, Rollouts
from lmxlab.training.sampling import Completion, Prompt, mean_reward

CURVE_PROMPTS = 32  # of a point of the curve


class RolloutTask(ExampleTask):
    """Questions with answers that can be checked; an answer gets reward 1 if it is right, else 0."""

    def __init__(self, spec: RunSpec, method: methods.GRPO):
        super().__init__(spec)
        self._method = method
        questions = load_questions(self.path)
        self._train, self._held = (self._prompts(part) for part in self.split(questions))
        end = getattr(self.tokenizer, "eos_token_id", None)
        self._stop = tuple(token for token in (end, self.tokenizer.bos_id) if token is not None)
        self._objective = GRPO(
            method.beta,
            method.epsilon,
            loss_type=method.loss_type,
            temperature=method.temperature,
            max_tokens=method.max_gen_tokens,
        )
        self._monitors: list[Callback] = []

    @property
    def prompt(self) -> list[int]:
        tokens: list[int] = self._held[0].tokens.tolist()  # type: ignore[assignment]  # 1-D
        return tokens

    def batches(self, model: LanguageModel) -> Rollouts:
        method, optim = self._method, self.spec.optim
        adapted = self.spec.lora.rank > 0
        # Without adapters that could be switched off, the reference is a second copy of the model.
        reference = build_model(self.spec) if method.beta and not adapted else None
        rollouts = Rollouts(
            model,
            Cycle(self._train, self.spec.seed),
            self.reward,
            ref_model=reference,
            prompts_per_round=max(1, optim.batch_size // method.group_size),
            group_size=method.group_size,
            max_tokens=method.max_gen_tokens,
            temperature=method.temperature,
            stop_tokens=self._stop,
            updates=method.updates,
            beta=method.beta,
            scale=method.scale_rewards,
            dtype=optim.dtype,
            seed=self.spec.seed,
        )
        self._monitors.append(RolloutMonitor(rollouts))
        return rollouts

    def callbacks(self) -> list[Callback]:
        return self._monitors

    def objective(self, model: LanguageModel) -> GRPO:
        return self._objective

    def scorer(self, model: LanguageModel) -> ScoreModel:
        limits: dict[Extent, int] = {"batch": 1, "curve": CURVE_PROMPTS, "whole": len(self._held)}

        def scored(extent: Extent) -> dict[str, float]:
            prompts = self._held[: limits[extent]]
            options = {"stop_tokens": self._stop, "batch_size": self.eval_rows}
            reward = mean_reward(model, prompts, self.reward, self._method.max_gen_tokens, **options)  # type: ignore[arg-type]
            return {"val_mean_reward": reward, "scored_prompts": len(prompts)}

        return scored

    def reward(self, completions: Sequence[Completion]) -> list[float]:
        """1 for each right answer, else 0."""
        return [float(c.about.is_right(c.text(self.tokenizer))) for c in completions]

    def _prompts(self, questions: list[Question]) -> list[Prompt]:
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        encoded = [(begin + self.tokenizer.encode(question.prompt), question) for question in questions]
        longest = max(len(tokens) for tokens, _ in encoded)
        room = self.spec.seq_len - self._method.max_gen_tokens
        if longest > room:
            raise UserError(
                f"{self.path} has a prompt of {longest} tokens; with seq_len {self.spec.seq_len} and "
                f"grpo.max_gen_tokens {self._method.max_gen_tokens} at most {room} fit: change one of them."
            )
        return [Prompt(mx.array(tokens), question) for tokens, question in encoded]


class Cycle:
    """The items again and again, each time in another order that the seed decides; its place can be saved."""

    def __init__(self, items: Sequence[Prompt], seed: int):
        self._items, self._seed, self._drawn = items, seed, 0

    def __iter__(self) -> Iterator[Prompt]:
        return self

    def __next__(self) -> Prompt:
        epoch, place = divmod(self._drawn, len(self._items))
        self._drawn += 1
        return self._items[np.random.default_rng([self._seed, epoch]).permutation(len(self._items))[place]]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._drawn = state["drawn"]

"""Group relative policy optimisation as a run: judged by the mean reward of greedy answers to held-out prompts."""

import hashlib
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from lmxlab.data.questions import Question, load_questions
from lmxlab.data.tokenizer import CorpusTokenizer
from lmxlab.errors import UserError
from lmxlab.eval.problems import Problem, generate_problems
from lmxlab.eval.sandbox import Sandbox
from lmxlab.eval.verifiable import ProgramReward, problem_prompt
from lmxlab.experiments import methods
from lmxlab.experiments.example_task import ExampleTask
from lmxlab.experiments.loaded import build_model
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import Extent, ScoreModel
from lmxlab.models.base import LanguageModel
from lmxlab.training.events import Callback
from lmxlab.training.grpo import GRPO
from lmxlab.training.rollouts import RolloutMonitor, Rollouts
from lmxlab.training.sampling import Completion, Prompt, Score, mean_reward

CURVE_PROMPTS = 32  # of a point of the curve
PROBLEMS = "problems"  # of a dataset that is generated: problems:FAMILY:DIFFICULTY
N_PROBLEMS, N_HELD_OUT = 256, 64


class RolloutTask(ExampleTask):
    """Questions with answers that can be checked, or generated problems whose programs are run in the sandbox.

    An answer is one line; it gets reward 1 if it is right, else 0.
    """

    def __init__(self, spec: RunSpec, method: methods.GRPO):
        super().__init__(spec)
        self._method = method
        kind, _, name = spec.data.dataset.partition(":")
        if kind == PROBLEMS:
            train, held = self._problems(name)
            self._train, self._held = (
                self._checked([problem_prompt(p, self.tokenizer) for p in part]) for part in (train, held)
            )
            self.reward: Score = LazyProgramReward(self.tokenizer)
        else:
            questions = self.split(load_questions(self.file()))
            self._train, self._held = (self._checked([self._prompt(q) for q in part]) for part in questions)
            self.reward = self._right
        ends = (getattr(self.tokenizer, "eos_token_id", None), self.tokenizer.bos_id, self._newline)
        self.ends = tuple(token for token in ends if token is not None)
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
        # A round is what one step takes: of fewer completions, accumulation would put two updates into one step.
        per_batch = max(1, optim.batch_size // method.group_size)
        rollouts = Rollouts(
            model,
            Cycle(self._train, self.spec.seed),
            self.reward,
            ref_model=reference,
            prompts_per_round=per_batch * optim.grad_accumulation_steps,
            group_size=method.group_size,
            max_tokens=method.max_gen_tokens,
            temperature=method.temperature,
            stop_tokens=self.ends,
            updates=method.updates,
            batch_size=per_batch * method.group_size,
            beta=method.beta,
            scale=method.scale_rewards,
            dtype=optim.dtype,
            seed=self.spec.seed,
        )
        self._monitors = [RolloutMonitor(rollouts)]  # of the last ones: those that the speed was measured on are gone
        return rollouts

    def callbacks(self) -> list[Callback]:
        return self._monitors

    def objective(self, model: LanguageModel) -> GRPO:
        return self._objective

    def scorer(self, model: LanguageModel) -> ScoreModel:
        limits: dict[Extent, int] = {"batch": 1, "curve": CURVE_PROMPTS, "whole": len(self._held)}

        def scored(extent: Extent) -> dict[str, float]:
            prompts = self._held[: limits[extent]]
            options = {"stop_tokens": self.ends, "batch_size": self.eval_rows}
            reward = mean_reward(model, prompts, self.reward, self._method.max_gen_tokens, **options)  # type: ignore[arg-type]
            return {"val_mean_reward": reward, "scored_prompts": len(prompts)}

        return scored

    def _right(self, completions: Sequence[Completion]) -> list[float]:
        return [float(c.about.is_right(c.text(self.tokenizer))) for c in completions]

    @property
    def _newline(self) -> int | None:
        """The token that ends a line, where it is one token: answers are of one line."""
        tokens = self.tokenizer.encode("\n")
        return tokens[0] if len(tokens) == 1 else None

    def _problems(self, name: str) -> tuple[list[Problem], list[Problem]]:
        """Generated problems to train on, and others that are held out."""
        family, _, level = name.partition(":")
        if level and not level.isdigit():
            raise UserError(f"{self.spec.data.dataset!r}: write {PROBLEMS}:FAMILY or {PROBLEMS}:FAMILY:DIFFICULTY.")
        difficulty, seed = (1, int(level or 2)), self.spec.data.seed
        train = generate_problems(N_PROBLEMS, family, difficulty, seed=seed)
        held = generate_problems(N_HELD_OUT, family, difficulty, seed=seed, split="held_out")
        digest = hashlib.sha256("".join(problem.solution for problem in (*train, *held)).encode()).hexdigest()
        self.info |= {"hash": digest, "dataset": self.spec.data.dataset, "examples": N_PROBLEMS, "held_out": N_HELD_OUT}
        return train, held

    def _prompt(self, question: Question) -> Prompt:
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return Prompt(mx.array(begin + self.tokenizer.encode(question.prompt)), question)

    def _checked(self, prompts: list[Prompt]) -> list[Prompt]:
        longest = max(prompt.tokens.size for prompt in prompts)
        room = self.spec.seq_len - self._method.max_gen_tokens
        if longest > room:
            raise UserError(
                f"{self.spec.data.dataset} has a prompt of {longest} tokens; with seq_len {self.spec.seq_len} and "
                f"grpo.max_gen_tokens {self._method.max_gen_tokens} at most {room} fit: change one of them."
            )
        return prompts


class LazyProgramReward:
    """The reward of programs: 1 if all tests of the problem pass, else 0. Its sandbox starts at the first program."""

    def __init__(self, tokenizer: CorpusTokenizer):
        self._tokenizer = tokenizer
        self._reward: ProgramReward | None = None

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        if self._reward is None:
            self._reward = ProgramReward(Sandbox(), self._tokenizer, all_or_nothing=True)
        return self._reward(completions)


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

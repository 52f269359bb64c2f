"""Reinforcement learning with verifiable rewards: problems as prompts, verdicts as rewards, pass@k as the score."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from lmxlab.data.completions import Example
from lmxlab.data.tokenizer import Tokenizer
from lmxlab.errors import UserError
from lmxlab.eval.metrics import pass_at_k
from lmxlab.eval.problems import Problem, curriculum
from lmxlab.eval.sandbox import Sandbox, Verdict
from lmxlab.models.base import LanguageModel
from lmxlab.models.sampling import Keys
from lmxlab.training.sampling import Completion, Prompt, sample

MOST_REMEMBERED = 100_000  # verdicts


class ProgramReward:
    """A `Score` for `Rollouts`: the share of a problem's tests that the program passes, 0 for one that does not run.

    Verdicts are remembered: a small model often writes the same program, and programs see the same random numbers every
    time, so that a verdict can be repeated. Prompts carry their problem in `about`, as `problem_prompts` makes them.

    Args:
        all_or_nothing: pay 1 for programs that pass all tests, and nothing for the rest.

    Attributes:
        programs, ran: completions so far, and how many of them had to be run.
    """

    def __init__(self, sandbox: Sandbox, tokenizer: Tokenizer, *, all_or_nothing: bool = False):
        self.sandbox, self.tokenizer, self.all_or_nothing = sandbox, tokenizer, all_or_nothing
        self.programs = self.ran = 0
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        verdicts = self.verdicts([(completion.about, completion.text(self.tokenizer)) for completion in completions])
        return [float(verdict.passed) if self.all_or_nothing else verdict.pass_rate for verdict in verdicts]

    def verdicts(self, answers: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """About (problem, completion) pairs."""
        keys = []
        wanted: dict[tuple[str, str], tuple[str, Any]] = {}
        for problem, text in answers:
            if not isinstance(problem, Problem):
                raise UserError(
                    f"A prompt is about {problem!r}; give prompts of problem_prompts, which are of problems."
                )
            program = problem.program(text)
            keys.append((problem.name, program))
            if keys[-1] not in self._verdicts:
                wanted[keys[-1]] = (program, problem.tests)
        if len(self._verdicts) > MOST_REMEMBERED:
            kept = {key: self._verdicts[key] for key in keys if key in self._verdicts}
            self._verdicts = kept
        self._verdicts.update(zip(wanted, self.sandbox.run_many(wanted.values()), strict=True))
        self.programs, self.ran = self.programs + len(keys), self.ran + len(wanted)
        return [self._verdicts[key] for key in keys]


class ProblemPrompts:
    """Prompts for `Rollouts`, from easy to hard: `n_rounds` rounds of `per_round` problems, see `curriculum`.

    Its place is part of a checkpoint. A round takes its problems in a seeded order without repetition, as far as there
    are enough that are open.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: Tokenizer,
        n_rounds: int,
        per_round: int = 8,
        *,
        warmup: float = 0.5,
        seed: int = 0,
    ):
        if not problems or per_round < 1:
            raise UserError(f"Prompts need problems ({len(problems)}) and a per_round ({per_round}) of at least 1.")
        self.problems, self.tokenizer = problems, tokenizer
        self.n_rounds, self.per_round, self.warmup, self.seed = n_rounds, per_round, warmup, seed
        self._drawn = 0

    def __iter__(self) -> Iterator[Prompt]:
        number = 0
        for open_now in curriculum(self.problems, self.n_rounds, seed=self.seed, warmup=self.warmup):
            for i in range(self.per_round):
                number += 1
                if number > self._drawn:
                    self._drawn = number
                    yield problem_prompt(open_now[i % len(open_now)], self.tokenizer)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, at the next iteration."""
        self._drawn = int(state["drawn"])


def problem_prompt(problem: Problem, tokenizer: Tokenizer) -> Prompt:
    """What the model reads, beginning with BOS where the tokenizer has one; it is about the problem."""
    return Prompt(mx.array(_tokens(problem, tokenizer), mx.int32), problem)


def verified_examples(
    problems: Sequence[Problem], reward: ProgramReward, answers: Sequence[str] | None = None
) -> list[Example]:
    """Examples for supervised fine-tuning, only of answers whose program passes all tests; each ends with a newline.

    Args:
        answers: a continuation for each problem, such as what a model wrote; the problems' own when None.
    """
    texts = [problem.answer for problem in problems] if answers is None else answers
    if len(texts) != len(problems):
        raise UserError(f"There are {len(texts)} answers for {len(problems)} problems: give one for each.")
    verdicts = reward.verdicts(list(zip(problems, texts, strict=True)))
    tokenizer = reward.tokenizer
    return [
        Example(_tokens(problem, tokenizer), tokenizer.encode(text + "\n"))
        for problem, text, verdict in zip(problems, texts, verdicts, strict=True)
        if verdict.passed
    ]


def solve(
    model: LanguageModel,
    problems: Sequence[Problem],
    reward: ProgramReward,
    *,
    samples: int = 8,
    k_values: Sequence[int] = (1, 8),
    temperature: float = 1.0,
    max_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """{"pass@k": ...} over problems, from what `solved` counts (2107.03374).

    Raises:
        UserError: a k above `samples`.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens, "batch_size": batch_size, "seed": seed}
    counts = solved(model, problems, reward, samples=samples, **options)  # type: ignore[arg-type]
    return {f"pass@{k}": sum(pass_at_k(samples, count, k) for count in counts) / len(counts) for k in k_values}


def solved(
    model: LanguageModel,
    problems: Sequence[Problem],
    reward: ProgramReward,
    *,
    samples: int = 8,
    temperature: float = 1.0,
    max_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
) -> list[int]:
    """How many of `samples` answers, of one line each, pass all tests, for each problem."""
    if not problems:
        raise UserError("There is no problem to solve: give at least one.")
    tokenizer, keys = reward.tokenizer, Keys(seed)
    (newline,) = tokenizer.encode("\n")
    prompts = [problem_prompt(problem, tokenizer) for problem in problems for _ in range(samples)]
    answers = []
    for start in range(0, len(prompts), batch_size):
        drawn = sample(model, prompts[start : start + batch_size], max_tokens, temperature, [newline], keys)
        answers += [(completion.about, completion.text(tokenizer)) for completion in drawn]
    passed = [verdict.passed for verdict in reward.verdicts(answers)]
    return [sum(passed[i : i + samples]) for i in range(0, len(passed), samples)]


def _tokens(problem: Problem, tokenizer: Tokenizer) -> list[int]:
    bos = getattr(tokenizer, "bos_id", None)
    return ([] if bos is None else [bos]) + tokenizer.encode(problem.prompt)

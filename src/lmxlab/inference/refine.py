"""Iterative refinement (2303.17651): generate, criticise, generate again in the light of the critique."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.inference.sampling import one_prompt, sample_rows, with_prompt
from lmxlab.models.base import LanguageModel
from lmxlab.models.sampling import Keys, Sampler


@dataclass(frozen=True)
class Critique:
    """How good an answer is, and what to tell the model about it (token ids; it reads them after the answer)."""

    score: float
    feedback: Sequence[int] = ()


@dataclass(frozen=True)
class Round:
    """One answer and its critique."""

    answer: list[int]
    critique: Critique


@dataclass(frozen=True)
class Refinement:
    """The best answer, (1, L) with its prompt; its score; all rounds; why there were no more of them.

    `stopped` is "good enough", "no improvement" or "rounds".
    """

    text: mx.array
    score: float
    rounds: list[Round] = field(default_factory=list)
    stopped: str = "rounds"


CritiqueFn = Callable[[list[int], list[int]], Critique]  # prompt and answer -> critique


def refine(
    model: LanguageModel,
    prompt: mx.array,
    critique_fn: CritiqueFn,
    *,
    rounds: int = 4,
    max_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_tokens: Sequence[int] | None = None,
    good_enough: float = float("inf"),
    patience: int = 2,
    seed: int | None = None,
) -> Refinement:
    """Answers a prompt, asks for a critique, and answers again after the prompt, the best answer and its feedback.

    Args:
        prompt: token ids (1, T) or (T,).
        critique_fn: judges an answer: a verifier, a person, or a model (`model_critique`).
        rounds: most answers to give.
        max_tokens, temperature, top_k, top_p, stop_tokens, seed: of each answer, as in `generate`.
        good_enough: an answer with this score ends the refinement.
        patience: so does this number of answers in a row that are no better than the best one.

    Returns:
        The answer with the highest score, the first of equal ones.
    """
    result = None
    sampler = Sampler(temperature, top_k, top_p)
    steps = refinements(
        model, prompt, critique_fn, sampler, max_tokens=max_tokens, stop_tokens=stop_tokens, keys=Keys(seed)
    )
    if rounds < 1 or patience < 1:
        raise UserError(f"rounds is {rounds} and patience {patience}; give at least 1 of each")
    stopped, scores = "rounds", []
    for result in steps:
        scores.append(result.rounds[-1].critique.score)
        if result.score >= good_enough:
            stopped = "good enough"
        elif len(scores) - 1 - scores.index(max(scores)) >= patience:
            stopped = "no improvement"
        elif len(scores) < rounds:
            continue
        break
    assert result is not None
    return Refinement(result.text, result.score, result.rounds, stopped)


def refinements(
    model: LanguageModel,
    prompt: mx.array,
    critique_fn: CritiqueFn,
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_tokens: Sequence[int] | None = None,
    keys: Keys,
) -> Iterator[Refinement]:
    """What `refine` has found after each round, without end."""
    prompt = one_prompt(prompt)
    ids: list[int] = prompt[0].tolist()  # type: ignore[assignment]
    done: list[Round] = []
    best: Round | None = None
    while True:
        question = prompt if best is None else with_prompt(prompt, [*best.answer, *best.critique.feedback])
        (sample,) = sample_rows(model, question, 1, max_tokens, sampler, stop_tokens=stop_tokens, keys=keys)
        done.append(Round(sample.tokens, critique_fn(ids, sample.tokens)))
        if best is None or done[-1].critique.score > best.critique.score:
            best = done[-1]
        yield Refinement(with_prompt(prompt, best.answer), best.critique.score, list(done))


def model_critique(
    model: LanguageModel,
    ask: Sequence[int],
    score: Callable[[list[int]], float],
    *,
    max_tokens: int = 50,
    temperature: float = 0.0,
    stop_tokens: Sequence[int] | None = None,
    seed: int | None = None,
) -> CritiqueFn:
    """A critique that a model writes when it reads prompt, answer and the question `ask`; it is its own feedback.

    Args:
        score: reads the score in the critique's tokens.
    """
    keys, sampler = Keys(seed), Sampler(temperature)

    def critique(prompt: list[int], answer: list[int]) -> Critique:
        text = mx.array([[*prompt, *answer, *ask]])
        (sample,) = sample_rows(model, text, 1, max_tokens, sampler, stop_tokens=stop_tokens, keys=keys)
        return Critique(score(sample.tokens), [*ask, *sample.tokens])

    return critique

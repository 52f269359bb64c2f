"""Which way to spend inference compute: methods compared at equal FLOPs.

A method is a generator of answers that improve as it goes on. Each is let run until its model's forward passes have
cost the budget; its last answer within the budget is the one that counts. FLOPs are counted pass by pass: the products
of every token read, at the context it was read in, and an output projection only where logits were asked for. Reward
models and verifiers that are other models are not in the count, unless they are given as the metered model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.inference.beam_search import beam_search
from lmxlab.inference.refine import CritiqueFn, refinements
from lmxlab.inference.sampling import (
    Sample,
    Score,
    count_votes,
    one_prompt,
    read_prompt,
    sample_rows,
    score_samples,
    with_prompt,
)
from lmxlab.inference.tree_search import simulations
from lmxlab.models.base import LanguageModel
from lmxlab.models.flops import forward_flops_per_token
from lmxlab.models.sampling import Keys, Sampler

Method = Callable[["Meter", mx.array, Keys], Iterator[mx.array]]


class Meter:
    """A model that counts what it does; everything else is the model's own.

    Attributes:
        flops: of all passes so far.
        tokens: how many new tokens' logits were asked for.
    """

    def __init__(self, model: LanguageModel):
        self._model = model
        self.flops = 0
        self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hidden_states(self, x: mx.array, cache: Sequence[Any] | None = None) -> tuple[mx.array, list]:
        before = next((entry.offset for entry in cache or () if entry is not None), 0)
        self.flops += x.size * (self._per_token(before + x.shape[1]) - self._projection)
        return self._model.hidden_states(x, cache)

    def logits(self, hidden: mx.array) -> mx.array:
        n = hidden.size // hidden.shape[-1]
        self.flops += n * self._projection
        self.tokens += n
        return self._model.logits(hidden)

    @property
    def _projection(self) -> int:
        return 2 * self._model.config.block.d_model * self._model.config.vocab_size

    def _per_token(self, length: int) -> int:
        return forward_flops_per_token(self._model.config, length)


@dataclass(frozen=True)
class BudgetRow:
    """What a method made of the budget, as means over the prompts.

    Attributes:
        tokens: new tokens computed for the answer, those of discarded candidates among them.
        flops: spent until the answer that counts.
        score: of that answer; None if one answer of the method costs more than the budget.
    """

    method: str
    tokens: float
    flops: float
    score: float | None


def compare_at_budget(
    model: LanguageModel,
    prompts: Sequence[mx.array],
    methods: Mapping[str, Method],
    score_fn: Callable[[mx.array, mx.array], float],
    flops: float,
    *,
    seed: int = 0,
) -> list[BudgetRow]:
    """Lets every method answer every prompt for at most `flops` FLOPs each.

    Args:
        prompts: token ids (1, T) or (T,) each.
        methods: name -> method, as the functions of this module make them.
        score_fn: prompt (1, T) and text (1, L) -> how good the text is.

    Returns:
        One row per method, best first; methods that the budget does not reach for are last.
    """
    if not prompts or flops <= 0:
        raise UserError(
            f"There are {len(prompts)} prompts and {flops} FLOPs for each; give at least one, and more than 0"
        )
    rows = []
    for name, method in methods.items():
        spent, written, scores = [], [], []
        for i, prompt in enumerate(map(one_prompt, prompts)):
            answer, cost = _answer(model, prompt, method, flops, Keys(seed + i))
            if answer is not None:
                scores.append(float(score_fn(prompt, answer)))
                spent.append(cost[0])
                written.append(cost[1])
        complete = len(scores) == len(prompts)
        mean = [sum(values) / len(values) if values else 0.0 for values in (written, spent, scores)]
        rows.append(BudgetRow(name, mean[0], mean[1], mean[2] if complete else None))
    return sorted(rows, key=lambda row: (row.score is None, -(row.score or 0.0)))


def budget_table(rows: Sequence[BudgetRow]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| method | tokens | FLOPs | score |", "|---|---|---|---|"]
    for row in rows:
        score = "over budget" if row.score is None else f"{row.score:.3f}"
        lines.append(f"| {row.method} | {row.tokens:,.0f} | {row.flops:.3g} | {score} |")
    return "\n".join(lines)


def _answer(
    model: LanguageModel, prompt: mx.array, method: Method, flops: float, keys: Keys
) -> tuple[mx.array | None, tuple[int, int]]:
    """The last answer within the budget, and the FLOPs and tokens until then."""
    meter = Meter(model)
    answer, cost = None, (0, 0)
    for found in method(meter, prompt, keys):
        if meter.flops > flops:
            break
        if (meter.flops, meter.tokens) == cost:  # it goes on without the model: nothing more will come of it
            break
        answer, cost = found, (meter.flops, meter.tokens)
    return answer, cost


def greedy(max_tokens: int, stop_tokens: Sequence[int] | None = None) -> Method:
    """One answer, always the likeliest token."""

    def method(model: Any, prompt: mx.array, keys: Keys) -> Iterator[mx.array]:
        (sample,) = sample_rows(model, prompt, 1, max_tokens, Sampler(0.0), stop_tokens=stop_tokens)
        yield with_prompt(prompt, sample.tokens)

    return method


def best_of(
    max_tokens: int,
    score_fn: str | Score = "log_prob",
    sampler: Sampler | None = None,
    batch: int = 4,
    stop_tokens: Sequence[int] | None = None,
) -> Method:
    """As many draws as the budget allows, `batch` at a time, of which `score_fn` chooses as in `best_of_n`."""

    def method(model: Any, prompt: mx.array, keys: Keys) -> Iterator[mx.array]:
        best: tuple[float, Sample] | None = None
        for samples in _draws(model, prompt, batch, max_tokens, sampler, stop_tokens, keys):
            for score, sample in zip(score_samples(score_fn, prompt, samples), samples, strict=True):
                if best is None or score > best[0]:
                    best = (score, sample)
            assert best is not None
            yield with_prompt(prompt, best[1].tokens)

    return method


def majority(
    max_tokens: int,
    extract: Callable[[list[int]], Any] | None = None,
    sampler: Sampler | None = None,
    batch: int = 4,
    stop_tokens: Sequence[int] | None = None,
) -> Method:
    """As many draws as the budget allows, `batch` at a time, and the answer that most of them give."""

    def method(model: Any, prompt: mx.array, keys: Keys) -> Iterator[mx.array]:
        answers: list[list[int]] = []
        for samples in _draws(model, prompt, batch, max_tokens, sampler, stop_tokens, keys):
            answers += [sample.tokens for sample in samples]
            votes = count_votes(answers, extract)
            yield with_prompt(prompt, votes[0][0] if votes else answers[0])

    return method


def beams(max_tokens: int, width: int = 4, stop_tokens: Sequence[int] | None = None) -> Method:
    """One beam search."""

    def method(model: Any, prompt: mx.array, keys: Keys) -> Iterator[mx.array]:
        yield beam_search(model, prompt, width, max_tokens, stop_tokens=stop_tokens)[0][0]

    return method


def tree(
    max_tokens: int,
    value_fn: Score,
    sampler: Sampler | None = None,
    block_tokens: int = 8,
    n_children: int = 4,
    per_block: int = 1,
    exploration: float = 1.0,
    stop_tokens: Sequence[int] | None = None,
) -> Method:
    """As many simulations of `tree_search` as the budget allows, `per_block` from each start of a walk."""

    def method(model: Any, prompt: mx.array, keys: Keys) -> Iterator[mx.array]:
        options: dict[str, Any] = {"block_tokens": block_tokens, "n_children": n_children, "exploration": exploration}
        options |= {"max_tokens": max_tokens, "rule": "puct", "stop_tokens": stop_tokens, "keys": keys}
        options["per_block"] = per_block
        for result in simulations(model, prompt, value_fn, sampler or Sampler(), **options):
            if result.done:  # a beginning is no answer
                yield result.text

    return method


def refinement(
    max_tokens: int, critique_fn: CritiqueFn, sampler: Sampler | None = None, stop_tokens: Sequence[int] | None = None
) -> Method:
    """As many rounds of `refine` as the budget allows."""

    def method(model: Any, prompt: mx.array, keys: Keys) -> Iterator[mx.array]:
        options: dict[str, Any] = {"max_tokens": max_tokens, "stop_tokens": stop_tokens, "keys": keys}
        for result in refinements(model, prompt, critique_fn, sampler or Sampler(0.8), **options):
            yield result.text

    return method


def _draws(
    model: Any,
    prompt: mx.array,
    batch: int,
    max_tokens: int,
    sampler: Sampler | None,
    stop_tokens: Sequence[int] | None,
    keys: Keys,
) -> Iterator[list[Sample]]:
    read = read_prompt(model, prompt)
    options: dict[str, Any] = {"stop_tokens": stop_tokens, "keys": keys, "read": read}
    while True:
        yield sample_rows(model, prompt, batch, max_tokens, sampler or Sampler(0.8), **options)

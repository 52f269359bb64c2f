"""Several answers instead of one: the best of n, or what most of them say."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.errors import UserError
from lmxlab.inference.rollback import restore, select_rows, snapshot
from lmxlab.models.base import LanguageModel, check_tokens, evaluating
from lmxlab.models.decoding import decode, prefill
from lmxlab.models.sampling import Keys, Sampler

Score = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Sample:
    """One continuation.

    Attributes:
        tokens: what was drawn, without the stop token.
        log_prob: of all draws (the stop token's too) under the model itself, at temperature 1 and without limits.
        n_draws: how many tokens were drawn, the stop token among them.
        end: the stop token, None if it did not end.
    """

    tokens: list[int]
    log_prob: float
    n_draws: int
    end: int | None


def sample_rows(
    model: LanguageModel,
    prompt: mx.array,
    n: int,
    max_tokens: int,
    sampler: Sampler,
    *,
    stop_tokens: Sequence[int] | None = None,
    keys: Keys | None = None,
    read: Sequence[dict[str, Any] | None] | None = None,
) -> list[Sample]:
    """n continuations of one prompt (1, T), decoded as one batch whose prompt is read once.

    Args:
        read: what `read_prompt` returned for this prompt; without it, that is called.
    """
    if n < 1:
        raise UserError(f"n is {n}; draw at least 1")
    check_tokens(prompt, model.config.vocab_size)
    cache = model.make_cache()
    if max_tokens > 0:
        restore(cache, read_prompt(model, prompt) if read is None else read)
        select_rows(cache, [0] * n)
    rows = mx.repeat(prompt, n, axis=0)
    stop = frozenset(stop_tokens or ())
    drawn: list[list[int]] = [[] for _ in range(n)]
    ends: list[int | None] = [None] * n
    steps: list[mx.array] = []
    for step in decode(model, rows, max_tokens, sampler, keys=keys, cache=cache):
        steps.append(step.log_probs())
        mx.async_eval(steps[-1])
        tokens: list[int] = step.tokens.tolist()  # type: ignore[assignment]
        for i, token in enumerate(tokens):
            if ends[i] is None:
                drawn[i].append(token)
                ends[i] = token if token in stop else None
        if None not in ends:
            break
    log_probs: list[list[float]] = mx.stack(steps, axis=1).tolist() if steps else [[]] * n  # type: ignore[assignment]
    return [
        Sample(row[: len(row) - (end is not None)], sum(each[: len(row)]), len(row), end)
        for row, each, end in zip(drawn, log_probs, ends, strict=True)
    ]


def read_prompt(model: LanguageModel, prompt: mx.array) -> list[dict[str, Any] | None]:
    """The states of the caches after all but the last token of a prompt (1, T): where several texts can go on from."""
    cache = model.make_cache()
    if prompt.shape[1] > 1:
        with evaluating(model):
            model.hidden_states(prefill(model, prompt[:, :-1], cache), cache)
    return snapshot(cache)


def best_of_n(
    model: LanguageModel,
    prompt: mx.array,
    n: int = 4,
    max_tokens: int = 100,
    temperature: float = 0.8,
    score_fn: str | Score = "log_prob",
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: Sequence[int] | None = None,
    seed: int | None = None,
) -> mx.array:
    """Draws n continuations of one prompt (1, T) or (T,) and returns the best, prompt and all, (1, L).

    Args:
        score_fn: "log_prob", the sum of the model's log-probabilities of a row's own draws; "length_normalized", their
            mean; or a function of texts (n, L), rows that ended filled up with their stop token, to (n,) or (n, 1).
            One that takes `lengths=` (as a RewardModel does) is given the length of each.
        temperature, top_k, top_p, min_p, stop_tokens, seed: as in `generate`.
    """
    prompt = one_prompt(prompt)
    sampler = Sampler(temperature, top_k, top_p, min_p=min_p)
    samples = sample_rows(model, prompt, n, max_tokens, sampler, stop_tokens=stop_tokens, keys=Keys(seed))
    scores = score_samples(score_fn, prompt, samples)
    best = max(range(n), key=scores.__getitem__)
    return with_prompt(prompt, samples[best].tokens)


def majority_vote(
    model: LanguageModel,
    prompt: mx.array,
    n: int = 5,
    max_tokens: int = 50,
    temperature: float = 0.8,
    *,
    extract: Callable[[list[int]], Hashable | None] | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: Sequence[int] | None = None,
    seed: int | None = None,
) -> list[tuple[list[int], int]]:
    """Draws n continuations and counts which answers they give (self-consistency, 2203.11171).

    Args:
        extract: the answer in a continuation's tokens, None if it gives none: it then has no vote. Without it, the
            answer is the whole continuation.

    Returns:
        (the first continuation with that answer, how many gave it), most votes first.
    """
    prompt = one_prompt(prompt)
    sampler = Sampler(temperature, top_k, top_p, min_p=min_p)
    samples = sample_rows(model, prompt, n, max_tokens, sampler, stop_tokens=stop_tokens, keys=Keys(seed))
    return count_votes([sample.tokens for sample in samples], extract)


def count_votes(
    answers: Sequence[list[int]], extract: Callable[[list[int]], Hashable | None] | None = None
) -> list[tuple[list[int], int]]:
    """Groups continuations by their answer, as `majority_vote` returns them; of equal counts, the first to appear."""
    groups: dict[Hashable, list[list[int]]] = {}
    for tokens in answers:
        answer = tuple(tokens) if extract is None else extract(tokens)
        if answer is not None:
            groups.setdefault(answer, []).append(tokens)
    ranked = sorted(groups.values(), key=len, reverse=True)
    return [(group[0], len(group)) for group in ranked]


def score_samples(score_fn: str | Score, prompt: mx.array, samples: Sequence[Sample]) -> list[float]:
    """A number for each sample, as `best_of_n` documents `score_fn`."""
    if score_fn == "log_prob":
        return [sample.log_prob for sample in samples]
    if score_fn == "length_normalized":
        return [sample.log_prob / max(sample.n_draws, 1) for sample in samples]
    if isinstance(score_fn, str):
        raise UserError(f"score_fn is {score_fn!r}; it must be 'log_prob', 'length_normalized' or a function")
    return score_texts(score_fn, prompt, [(sample.tokens, sample.end) for sample in samples])


def score_texts(score_fn: Score, prompt: mx.array, texts: Sequence[tuple[list[int], int | None]]) -> list[float]:
    """score_fn of prompt + tokens for each (tokens, end), in one call; shorter rows are filled up with their end."""
    longest = max(len(tokens) for tokens, _ in texts)
    new = [tokens + [end or 0] * (longest - len(tokens)) for tokens, end in texts]
    rows = mx.concatenate([mx.repeat(prompt, len(texts), axis=0), mx.array(new, prompt.dtype).reshape(-1, longest)], 1)
    lengths = [prompt.shape[1] + len(tokens) for tokens, _ in texts]
    options: dict[str, Any] = {"lengths": mx.array(lengths)} if getattr(score_fn, "takes_lengths", False) else {}
    with evaluating(score_fn) if isinstance(score_fn, nn.Module) else nullcontext():
        scores = mx.array(score_fn(rows, **options))
    if scores.size != len(texts):
        raise UserError(
            f"score_fn returned the shape {tuple(scores.shape)} for {len(texts)} texts; it must return "
            f"({len(texts)},) or ({len(texts)}, 1)"
        )
    return scores.reshape(-1).astype(mx.float32).tolist()  # type: ignore[return-value]


def one_prompt(prompt: mx.array) -> mx.array:
    """(1, T) of a prompt (T,) or (1, T); UserError for more rows or no tokens."""
    rows = prompt[None] if prompt.ndim == 1 else prompt
    if rows.ndim != 2 or rows.shape[0] != 1 or rows.size == 0:
        raise UserError(f"The prompt has shape {tuple(prompt.shape)}; give one prompt of at least one token")
    return rows


def with_prompt(prompt: mx.array, tokens: Sequence[int]) -> mx.array:
    """(1, T) and new tokens -> (1, T + n)."""
    return mx.concatenate([prompt, mx.array(list(tokens), prompt.dtype).reshape(1, -1)], axis=1)

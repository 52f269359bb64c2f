"""Beam search: the likeliest texts that keeping a few beginnings at a time can find."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.inference.rollback import select_rows
from lmxlab.inference.sampling import one_prompt, score_texts, with_prompt
from lmxlab.models.base import LanguageModel, check_tokens, evaluating
from lmxlab.models.decoding import prefill


class Beam(NamedTuple):
    """A beginning, and the sum of the log-probabilities of its tokens."""

    tokens: list[int]
    log_prob: float


def beam_search(
    model: LanguageModel,
    prompt: mx.array,
    beam_width: int = 4,
    max_tokens: int = 100,
    score_fn: Callable[[mx.array], mx.array] | None = None,
    *,
    stop_tokens: Sequence[int] | None = None,
    length_penalty: float = 0.0,
) -> list[tuple[mx.array, float]]:
    """The `beam_width` best continuations found, best first; all beams are one batch that shares a cache.

    Equal to `generate(num_beams=...)` of transformers with its default early stopping: a text that ends within the
    first beam_width candidates of a step is finished, and the search is over when no beam could become better than
    the worst finished text.

    Args:
        prompt: token ids (1, T) or (T,).
        score_fn: reranks the texts found: texts (n, L) -> (n,) or (n, 1). Its scores are then those returned.
        stop_tokens: a text ends with the first of them, which belongs to it.
        length_penalty: scores are log-probabilities / (new tokens ** length_penalty): above 0 favours longer texts.

    Returns:
        (text (1, L), score) pairs. Without penalty and score_fn, the score is the sum of the log-probabilities of the
        new tokens. Fewer than beam_width only if there are fewer texts.

    Raises:
        UserError: more than one prompt, or an argument out of its range.
    """
    prompt = one_prompt(prompt)
    if beam_width < 1 or max_tokens < 0:
        raise UserError(f"beam_width is {beam_width} and max_tokens {max_tokens}; give at least 1 and 0")
    check_tokens(prompt, model.config.vocab_size)
    stop = frozenset(stop_tokens or ())
    with evaluating(model):
        found = _search(model, prompt, beam_width, max_tokens, stop, length_penalty)
    if score_fn is not None:
        scores = score_texts(score_fn, prompt, [(beam.tokens, None) for beam in found])
    else:
        scores = [_score(beam, length_penalty) for beam in found]
    ranked = sorted(zip(found, scores, strict=True), key=lambda pair: -pair[1])
    return [(with_prompt(prompt, beam.tokens), score) for beam, score in ranked]


def _search(
    model: LanguageModel, prompt: mx.array, width: int, max_tokens: int, stop: frozenset[int], penalty: float
) -> list[Beam]:
    running, finished = [Beam([], 0.0)], []
    cache = model.make_cache()
    x = prefill(model, prompt, cache)
    for length in range(1, max_tokens + 1):
        hidden, _ = model.hidden_states(x, cache)
        # Of each beam at most one candidate ends per stop token, so this many leave enough that go on.
        candidates = _best(model.logits(hidden[:, -1]), running, max(2, 1 + len(stop)) * width)
        ended = [beam.tokens[-1] in stop or length == max_tokens for _, beam in candidates]
        finished += [beam for (_, beam), end in zip(candidates[:width], ended[:width], strict=True) if end]
        finished = sorted(finished, key=lambda beam: -_score(beam, penalty))[:width]
        going_on = [candidate for candidate, end in zip(candidates, ended, strict=True) if not end][:width]
        running = [beam for _, beam in going_on]
        if not running or len(finished) == width and _score(running[0], penalty) <= _score(finished[-1], penalty):
            break
        select_rows(cache, [row for row, _ in going_on])
        x = mx.array([[beam.tokens[-1]] for beam in running])
    return finished or running


def _best(logits: mx.array, beams: list[Beam], n: int) -> list[tuple[int, Beam]]:
    """The n likeliest beams one token longer, best first, each with the row that it continues; logits (rows, V)."""
    logits = logits.astype(mx.float32)
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    totals = (log_probs + mx.array([beam.log_prob for beam in beams])[:, None]).reshape(-1)
    n = min(n, totals.size)
    order = mx.argpartition(-totals, n - 1)[:n] if n < totals.size else mx.arange(n)
    order = order[mx.argsort(-totals[order])]
    places: list[int] = order.tolist()  # type: ignore[assignment]
    values: list[float] = totals[order].tolist()  # type: ignore[assignment]
    found = []
    for place, value in zip(places, values, strict=True):
        row, token = divmod(place, logits.shape[-1])
        found.append((row, Beam([*beams[row].tokens, token], value)))
    return found


def _score(beam: Beam, penalty: float) -> float:
    return beam.log_prob / max(len(beam.tokens), 1) ** penalty

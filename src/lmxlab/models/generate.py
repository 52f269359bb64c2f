"""Decoding one token at a time, with a cache."""

from collections.abc import Iterator
from contextlib import nullcontext

import mlx.core as mx

from lmxlab.core.cache import Cache
from lmxlab.core.position import RoPE
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, check_tokens, evaluating
from lmxlab.models.sampling import Sampler

PREFILL_TOKENS = 512


def generate(
    model: LanguageModel,
    prompt: mx.array,
    max_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop_tokens: list[int] | None = None,
) -> mx.array:
    """Continues each row of the prompt.

    Dropout is off. Equal seeds (`mx.random.seed`) give equal texts.

    Args:
        prompt: token ids (B, T), or (T,) for one row.
        max_tokens: new tokens per row; 0 returns the prompt.
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: sample among the k most likely tokens; 0 or at least the vocabulary: no limit. Wins over top_p.
        top_p: sample among the fewest most likely tokens whose probabilities reach top_p (1904.09751).
        repetition_penalty: divides positive and multiplies negative logits of tokens that the prompt or the output
            already has (1909.05858).
        stop_tokens: a row ends before the first of them that it would emit.

    Returns:
        (B, T + n) or (T + n,): the prompt and n <= max_tokens new tokens, n that of the longest row. A row that ended
        earlier is filled up with the stop token it met.

    Raises:
        UserError: a prompt that is empty or not of this vocabulary, or an argument out of its range.
    """
    rows = prompt if prompt.ndim == 2 else prompt[None]
    stop = frozenset(stop_tokens or ())
    ended: list[int | None] = [None] * rows.shape[0]  # the stop token that ended a row
    columns: list[list[int]] = []
    for column in _decode(model, rows, max_tokens, Sampler(temperature, top_k, top_p, repetition_penalty)):
        tokens = [token if end is None else end for token, end in zip(column, ended, strict=True)]
        ended = [token if end is None and token in stop else end for token, end in zip(tokens, ended, strict=True)]
        if None not in ended:
            break
        columns.append(tokens)
    if columns:
        rows = mx.concatenate([rows, mx.array(columns, dtype=rows.dtype).T], axis=1)
    return rows if prompt.ndim == 2 else rows[0]


def stream_generate(
    model: LanguageModel,
    prompt: mx.array,
    max_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop_tokens: list[int] | None = None,
) -> Iterator[int]:
    """As `generate` for one row, (1, T) or (T,): yields each new token as it is decoded."""
    rows = prompt if prompt.ndim == 2 else prompt[None]
    if rows.shape[0] != 1:
        raise UserError(f"stream_generate takes one prompt; this one has {rows.shape[0]} rows: use generate")
    stop = frozenset(stop_tokens or ())
    for (token,) in _decode(model, rows, max_tokens, Sampler(temperature, top_k, top_p, repetition_penalty)):
        if token in stop:
            return
        yield token


def _decode(model: LanguageModel, prompt: mx.array, max_tokens: int, sampler: Sampler) -> Iterator[list[int]]:
    """Yields one token for every row, `max_tokens` times; the next one is computed while the caller uses this one."""
    if max_tokens < 0:
        raise UserError(f"max_tokens is {max_tokens}; it must be 0 or more")
    if prompt.ndim != 2 or prompt.size == 0:
        raise UserError(f"The prompt has shape {tuple(prompt.shape)}; give at least one token to continue from")
    check_tokens(prompt, model.config.vocab_size)
    seen = sampler.seen_tokens(prompt, model.config.vocab_size)
    # Setting the mode walks over all modules, too slow for every token.
    mode = evaluating if any(module.training for module in model.modules()) else nullcontext
    cache = model.make_cache()

    def step(tokens: mx.array) -> mx.array:
        nonlocal seen
        with mode(model):
            hidden, _ = model.hidden_states(tokens, cache)
            drawn = sampler(model.logits(hidden[:, -1]), seen)
        if seen is not None:
            seen = mx.put_along_axis(seen, drawn[:, None], mx.array(True), axis=1)
        mx.async_eval(drawn)
        return drawn

    if max_tokens == 0:
        return
    with mode(model):
        rest = _prefill(model, prompt, cache)
    drawn = step(rest)
    for remaining in range(max_tokens - 1, -1, -1):
        following = step(drawn[:, None]) if remaining else drawn
        yield drawn.tolist()  # type: ignore[misc]
        drawn = following


def _prefill(model: LanguageModel, prompt: mx.array, cache: list[Cache | None]) -> mx.array:
    """Reads all but the last part of a long prompt into the cache, part by part, and returns that last part.

    Attention over a whole long prompt at once holds a square of its length. Dynamic rope scaling goes by the length of
    a pass, so there the prompt stays whole.
    """
    if any(isinstance(block.position, RoPE) and block.position.depends_on_length for block in model.blocks):
        return prompt
    while prompt.shape[1] > PREFILL_TOKENS:
        hidden, _ = model.hidden_states(prompt[:, :PREFILL_TOKENS], cache)
        mx.eval(hidden)
        prompt = prompt[:, PREFILL_TOKENS:]
    return prompt

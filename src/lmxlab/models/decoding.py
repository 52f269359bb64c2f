"""The decoder: from a prompt, one token after the other for every row, with a cache."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import mlx.core as mx

from lmxlab.core.config import ModelConfig
from lmxlab.core.position import RoPE
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, check_tokens, evaluating
from lmxlab.models.sampling import Keys, Sampler

PREFILL_TOKENS = 256  # 512 holds twice the scores for no more speed (benchmarks/decode.py)
CONTEXTS = ("error", "window", "extend")


class Step(NamedTuple):
    """One new token for every row: what was drawn (B,), and from which logits (B, V), before any processing."""

    tokens: mx.array
    logits: mx.array

    def log_probs(self) -> mx.array:
        """(B,) float32: of the tokens under the model itself, at temperature 1 and without limits."""
        logits = self.logits.astype(mx.float32)
        return mx.take_along_axis(logits, self.tokens[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)


def decode(
    model: LanguageModel,
    prompt: mx.array,
    max_tokens: int,
    sampler: Sampler,
    *,
    keys: Keys | None = None,
    left_padding: Sequence[int] | None = None,
    context: str | int = "error",
    cache: list[Any] | None = None,
    cache_bits: int | None = None,
) -> Iterator[Step]:
    """Yields `max_tokens` steps; the next one is computed while the caller uses this one. Dropout is off.

    Args:
        prompt: token ids (B, T).
        keys: where the draws come from; None: MLX's global random state.
        left_padding: how many tokens before each row's text are padding. Fill with tokens that the row has: the
            repetition penalty counts them.
        context: as in `generate`; a window moves over all rows together.
        cache: caches that hold the first tokens of the prompt, and go on with the others and the new ones.
        cache_bits: keeps keys and values in 8 or 4 bits.

    Raises:
        UserError: a prompt that is empty, not of this vocabulary or too long, or an argument out of its range.
    """
    if not isinstance(max_tokens, int) or max_tokens < 0:
        raise UserError(f"max_tokens is {max_tokens!r}; it must be an integer, 0 or more")
    if cache is not None and cache_bits is not None:
        raise UserError(
            f"cache_bits is {cache_bits}, but the cache is there already: make it with make_cache(bits=...)"
        )
    if prompt.ndim != 2 or prompt.size == 0:
        raise UserError(f"The prompt has shape {tuple(prompt.shape)}; give at least one token to continue from")
    if cache is not None and left_padding is not None and any(left_padding):
        held = next((entry.left_padding for entry in cache if entry is not None), None)
        if held is None or held.tolist() != list(left_padding):
            raise UserError("The prompts are of different lengths, which the cache was not made for: leave out cache")
    vocab_size = model.config.vocab_size
    check_tokens(prompt, vocab_size)
    sampler.check_vocabulary(vocab_size)
    window = _window(model.config, prompt.shape[1], max_tokens, context)
    seen = sampler.seen_tokens(prompt, vocab_size)
    # Setting the mode walks over all modules, too slow for every token.
    mode: Any = evaluating if any(module.training for module in model.modules()) else nullcontext
    keys = keys or Keys()

    def step(tokens: mx.array) -> Step:
        nonlocal seen
        with mode(model):
            hidden, _ = model.hidden_states(tokens, cache)
            logits = model.logits(hidden[:, -1])
            drawn = sampler(logits, seen, keys())
        if seen is not None:
            seen = mx.put_along_axis(seen, drawn[:, None], mx.array(True), axis=1)
        mx.async_eval(drawn)
        return Step(drawn, logits)

    done, width = 0, prompt.shape[1]
    while done < max_tokens:
        room = max_tokens - done
        if window is not None:
            if prompt.shape[1] > window:  # keep what leaves room for the new tokens, and at least the second half
                prompt = prompt[:, -max(window + 1 - room, window // 2, 1) :]
            room = min(room, window + 1 - prompt.shape[1])  # the last new token is not read
        rest = prompt
        if cache is None or done:
            cut = width - prompt.shape[1]
            padding = None if left_padding is None else [max(0, n - cut) for n in left_padding]
            cache = model.make_cache(padding, cache_bits)
        else:
            rest = prompt[:, next((entry.offset for entry in cache if entry is not None), 0) :]
            if rest.size == 0 or window is not None and width + max_tokens - 1 > window:
                raise UserError(
                    f"The cache holds {width - rest.shape[1]} of the prompt's {width} tokens; give at least one more, "
                    "and no window that they do not fit in"
                )
        with mode(model):
            rest = prefill(model, rest, cache)
        following = step(rest)
        drawn = []
        for i in range(room):
            current = following
            if i + 1 < room:
                following = step(current.tokens[:, None])
            drawn.append(current.tokens)
            yield current
        done, width = done + room, width + room
        prompt = mx.concatenate([prompt, mx.stack(drawn, axis=1).astype(prompt.dtype)], axis=1)


def pad_left(rows: Sequence[mx.array]) -> tuple[mx.array, list[int]]:
    """Rows of tokens (T_i,) as one array (B, max T), each filled up before its text with its own first token.

    Returns:
        The array, and how many tokens of each row are padding.
    """
    longest = max(row.size for row in rows)
    padding = [longest - row.size for row in rows]
    filled = [mx.concatenate([mx.repeat(row[:1], n), row]) for row, n in zip(rows, padding, strict=True)]
    return mx.stack(filled), padding


def prefill(model: LanguageModel, prompt: mx.array, cache: list[Any], states: list[mx.array] | None = None) -> mx.array:
    """Reads all but the last part of a long prompt into the cache, part by part, and returns that last part.

    The hidden states of what was read are appended to `states`, if given.

    Attention over a whole long prompt at once holds a square of its length. Dynamic rope scaling goes by the length of
    a pass, so there the prompt stays whole.
    """
    if any(isinstance(block.position, RoPE) and block.position.depends_on_length for block in model.blocks):
        return prompt
    while prompt.shape[1] > PREFILL_TOKENS:
        hidden, _ = model.hidden_states(prompt[:, :PREFILL_TOKENS], cache)
        mx.eval(hidden)
        if states is not None:
            states.append(hidden)
        prompt = prompt[:, PREFILL_TOKENS:]
    return prompt


def context_length(config: ModelConfig) -> int | None:
    """How many positions the model was made for: the least `max_seq_len` of the layers whose positions have an end.

    None if none has: ALiBi, dynamic rope scaling and layers without positions (recurrent ones) go on for ever.
    """
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    scaled = [layer.rope_scaling is not None and layer.rope_scaling.kind == "dynamic" for layer in layers]
    return min(
        (
            layer.max_seq_len
            for layer, dynamic in zip(layers, scaled, strict=True)
            if layer.position in ("learned", "sinusoidal", "rope") and not dynamic
        ),
        default=None,
    )


def _window(config: ModelConfig, prompt_len: int, max_tokens: int, context: str | int) -> int | None:
    """How many tokens the model may see at once, None: all; UserError if they are too many to go on."""
    limit = context_length(config)
    if isinstance(context, int) and not isinstance(context, bool):
        if context < 1:
            raise UserError(f"context is {context}; a window has at least 1 token")
        return context if limit is None else min(context, limit)
    if context not in CONTEXTS:
        raise UserError(f"context is {context!r}; it must be one of {', '.join(CONTEXTS)}, or a number of tokens")
    if context == "window":
        return limit
    if limit is None or prompt_len + max_tokens - 1 <= limit:
        return None
    advice = "give context='window' to go on with the last tokens only, or a shorter text"
    table_ends = any(config.get_block_config(i).position == "learned" for i in range(config.n_layers))
    if table_ends:
        raise UserError(
            f"A prompt of {prompt_len} tokens and {max_tokens} new ones are longer than max_seq_len {limit} of the "
            f"learned positions: {advice}"
        )
    if prompt_len > limit and context == "error":
        raise UserError(
            f"The prompt of {prompt_len} tokens is longer than the model's context (max_seq_len {limit}): {advice}, "
            "or context='extend' to let positions run past it"
        )
    return None

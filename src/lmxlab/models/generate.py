"""Continuing token ids: whole, or token by token."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.decoding import decode, pad_left
from lmxlab.models.sampling import Keys, Sampler
from lmxlab.models.stop import Decodes, TextWatch, check_stop_strings

Prompts = Sequence[mx.array | Sequence[int]]  # of different lengths


@overload
def generate(model: LanguageModel, prompt: mx.array, *args: Any, **options: Any) -> mx.array: ...
@overload
def generate(model: LanguageModel, prompt: Prompts, *args: Any, **options: Any) -> list[mx.array]: ...
def generate(
    model: LanguageModel,
    prompt: mx.array | Prompts,
    max_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop_tokens: list[int] | None = None,
    *,
    min_p: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    compose: bool = False,
    stop_strings: Sequence[str] | None = None,
    tokenizer: Decodes | None = None,
    seed: int | None = None,
    context: str | int = "error",
    cache: list[Any] | None = None,
    cache_bits: int | None = None,
) -> mx.array | list[mx.array]:
    """Continues each row of the prompt.

    Dropout is off. The logits are processed in this order: bias, penalty, temperature, top-k, top-p, min-p.

    Args:
        prompt: token ids (B, T), or (T,) for one row; or a list of prompts of different lengths, which are decoded
            together, each as it would be alone.
        max_tokens: new tokens per row; 0 returns the prompt.
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: sample among the k most likely tokens; 0 or at least the vocabulary: no limit. Wins over top_p.
        top_p: sample among the fewest most likely tokens whose probabilities reach top_p (1904.09751).
        repetition_penalty: divides positive and multiplies negative logits of tokens that the prompt or the output
            already has (1909.05858).
        stop_tokens: a row ends before the first of them that it would emit.
        min_p: sample among the tokens at least min_p times as likely as the most likely one (2407.01082).
        logit_bias: token id -> what is added to its logit; -inf bans it.
        compose: top_p applies to what top_k left, as in transformers, instead of not at all.
        stop_strings: a row ends before the first token that has a part of the first of these that its new text
            contains; they are found in what `tokenizer` decodes, across tokens.
        tokenizer: needed for stop_strings.
        seed: makes the draws the same every time, and leaves MLX's global random state (`mx.random.seed`) alone.
        context: what to do about a prompt that is longer than the model's context (`max_seq_len`): "error" refuses
            it; "window" goes on with the last tokens that fit, and when the new ones have filled the context, with
            its second half; a number is a window of so many tokens; "extend" lets positions run past it. Learned
            positions end, so with them "error" and "extend" also count the new tokens.
        cache: caches that hold the first tokens of the prompt, as `load_prompt_cache` reads them; they go on to hold
            what is decoded.
        cache_bits: keeps keys and values in 8 or 4 bits.

    Returns:
        (B, T + n) or (T + n,): the prompt and n <= max_tokens new tokens, n that of the longest row. A row that ended
        earlier is filled up with the token it ended at. For a list of prompts: a list, each as long as it became.

    Raises:
        UserError: a prompt that is empty, too long or not of this vocabulary, or an argument out of its range.
    """
    rows, padding = _rows(prompt)
    sampler = Sampler(temperature, top_k, top_p, repetition_penalty, min_p, logit_bias, compose)
    stop = check_stop_strings(stop_strings, tokenizer)
    texts = [_Row(stop_tokens, stop, tokenizer, row) for row in _lists(rows, bool(stop))]
    options: dict[str, Any] = {"context": context, "cache": cache, "cache_bits": cache_bits}
    for step in decode(model, rows, max_tokens, sampler, keys=Keys(seed), left_padding=padding, **options):
        drawn: list[int] = step.tokens.tolist()  # type: ignore[assignment]
        for text, token in zip(texts, drawn, strict=True):
            text.push(token)
        if all(text.ended for text in texts):
            break
    for text in texts:
        text.finish()
    if not isinstance(prompt, mx.array):
        padding = padding or [0] * len(texts)
        new_tokens = [mx.array(text.tokens, dtype=rows.dtype) for text in texts]
        return [mx.concatenate([row[n:], new]) for row, n, new in zip(rows, padding, new_tokens, strict=True)]
    longest = max(len(text.tokens) for text in texts)
    if longest:
        new = [text.tokens + [text.end] * (longest - len(text.tokens)) for text in texts]
        rows = mx.concatenate([rows, mx.array(new, dtype=rows.dtype)], axis=1)
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
    *,
    min_p: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    compose: bool = False,
    stop_strings: Sequence[str] | None = None,
    tokenizer: Decodes | None = None,
    seed: int | None = None,
    context: str | int = "error",
    cache: list[Any] | None = None,
    cache_bits: int | None = None,
) -> Iterator[int]:
    """As `generate` for one row, (1, T) or (T,): yields each new token as it is decoded.

    With stop strings a token comes as soon as it cannot be part of one any more.
    """
    rows = prompt if prompt.ndim == 2 else prompt[None]
    if rows.shape[0] != 1:
        raise UserError(f"stream_generate takes one prompt; this one has {rows.shape[0]} rows: use generate")
    sampler = Sampler(temperature, top_k, top_p, repetition_penalty, min_p, logit_bias, compose)
    stop = check_stop_strings(stop_strings, tokenizer)
    (before,) = _lists(rows, bool(stop))
    text = _Row(stop_tokens, stop, tokenizer, before)
    options: dict[str, Any] = {"context": context, "cache": cache, "cache_bits": cache_bits}
    for step in decode(model, rows, max_tokens, sampler, keys=Keys(seed), **options):
        yield from text.push(step.tokens.item())  # type: ignore[arg-type]
        if text.ended:
            return
    yield from text.finish()


class _Row:
    """The new tokens of one row, and what ends them."""

    def __init__(
        self, stop_tokens: Sequence[int] | None, stop: list[str], tokenizer: Decodes | None, prompt: list[int]
    ):
        self.tokens: list[int] = []
        self.ended = False
        self.end = 0  # the token that it ended at
        if stop_tokens is not None and not isinstance(stop_tokens, Sequence):
            raise UserError(f"stop_tokens is {stop_tokens!r}; give a list of token ids")
        self._stop_tokens = frozenset(stop_tokens or ())
        self._watch = TextWatch(tokenizer, prompt, stop) if stop and tokenizer is not None else None
        self._held: list[int] = []

    def push(self, token: int) -> list[int]:
        """The tokens that are now sure to belong to the row."""
        if self.ended:
            return []
        if token in self._stop_tokens:
            self.end, kept = token, self.finish()
            self.ended = True
            return kept
        if self._watch is None:
            self.tokens.append(token)
            return [token]
        self._held.append(token)
        kept = self._keep(self._watch.push(token).tokens)
        if self._watch.ended:
            self.ended, self.end = True, self._held[0]
        return kept

    def finish(self) -> list[int]:
        """The tokens that were held back, when no more come."""
        if self.ended or self._watch is None:
            return []
        kept = self._keep(self._watch.finish().tokens)
        if self._watch.ended:
            self.ended, self.end = True, self._held[0]
        return kept

    def _keep(self, tokens: list[int]) -> list[int]:
        self.tokens += tokens
        self._held = self._held[len(tokens) :]
        return tokens


def _rows(prompt: mx.array | Prompts) -> tuple[mx.array, list[int] | None]:
    """(B, T) and the padding of each row, None where there is none."""
    if isinstance(prompt, mx.array):
        return (prompt if prompt.ndim == 2 else prompt[None]), None
    rows = [row if isinstance(row, mx.array) else mx.array(list(row), mx.int32) for row in prompt]
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows):
        raise UserError(f"The prompts have shapes {[row.shape for row in rows]}; give each (T,), at least one token")
    tokens, padding = pad_left(rows)
    return tokens, padding if any(padding) else None


def _lists(rows: mx.array, wanted: bool) -> list[list[int]]:
    """The token ids of each row; empty lists where nobody will read them."""
    return rows.tolist() if wanted else [[] for _ in range(rows.shape[0])]  # type: ignore[return-value]

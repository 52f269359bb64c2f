"""From the logits of the next token to a token: bias, penalty, temperature, top-k, top-p, min-p, draw.

Each step equals the logits processor of the same name in `transformers`, and they run in its order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from lmxlab.errors import UserError


def add_bias(logits: mx.array, bias: Mapping[int, float]) -> mx.array:
    """logits (..., V) plus a number for some token ids; -inf bans a token."""
    ids, values = mx.array(list(bias), mx.int32), mx.array(list(bias.values()), logits.dtype)
    return logits.at[..., ids].add(values)


def penalize_repetition(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Divides positive and multiplies negative logits (B, V) by `penalty` where `seen` (B, V) is true (1909.05858)."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: mx.array, k: int) -> mx.array:
    """-inf for every logit of (..., V) below the k-th largest of its row (ties with it stay)."""
    if k >= logits.shape[-1]:
        return logits
    threshold = mx.min(mx.topk(logits, k, axis=-1), axis=-1, keepdims=True)
    return mx.where(logits < threshold, -mx.inf, logits)


def keep_top_p(logits: mx.array, p: float) -> mx.array:
    """-inf outside the fewest most likely tokens of each row of (..., V) whose probabilities sum to at least p."""
    order = mx.argsort(logits, axis=-1)  # least likely first
    ranked = mx.softmax(mx.take_along_axis(logits, order, axis=-1).astype(mx.float32), axis=-1)
    dropped = mx.cumsum(ranked, axis=-1) <= 1 - p
    dropped[..., -1] = False  # the most likely token always stays
    return mx.where(mx.put_along_axis(mx.zeros_like(dropped), order, dropped, axis=-1), -mx.inf, logits)


def keep_min_p(logits: mx.array, p: float) -> mx.array:
    """-inf for every token of (..., V) less likely than p times the most likely one of its row (2407.01082)."""
    probabilities = mx.softmax(logits.astype(mx.float32), axis=-1)
    return mx.where(probabilities < p * probabilities.max(axis=-1, keepdims=True), -mx.inf, logits)


class Keys:
    """A new key for every call, all from one seed; without a seed None, which means MLX's global random state."""

    def __init__(self, seed: int | None = None):
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
            raise UserError(f"seed is {seed!r}; it must be an integer, 0 or more and below 2^64")
        self._key = None if seed is None else mx.random.key(seed)

    def __call__(self) -> mx.array | None:
        if self._key is None:
            return None
        self._key, key = mx.random.split(self._key)
        return key


@dataclass(frozen=True)
class Sampler:
    """Draws the next token of every row; the arguments are those of `generate`.

    >>> Sampler(temperature=0.0)(mx.array([[0.1, 0.7, 0.2]])).tolist()
    [1]
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    compose: bool = False

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty", "min_p"):
            if not isinstance(getattr(self, name), int | float):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be a number")
        for ok, name, value, allowed in (
            (self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more"),
            (isinstance(self.top_k, int) and self.top_k >= 0, "top_k", self.top_k, "an integer, 0 (off) or more"),
            (0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]"),
            (
                0 < self.repetition_penalty < math.inf,
                "repetition_penalty",
                self.repetition_penalty,
                "above 0 (1 is off)",
            ),
            (0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1] (0 is off)"),
        ):
            if not ok:
                raise UserError(f"{name} is {value}; it must be {allowed}")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UserError if logit_bias names a token that is not in the vocabulary."""
        for token, bias in (self.logit_bias or {}).items():
            if not 0 <= token < vocab_size:
                raise UserError(f"logit_bias names token {token}; the vocabulary has the ids 0 to {vocab_size - 1}")
            if not bias < math.inf:
                raise UserError(
                    f"logit_bias is {bias} for token {token}; it must be a number, or -inf to ban the token"
                )

    def seen_tokens(self, prompt: mx.array, vocab_size: int) -> mx.array | None:
        """Which tokens each row of the prompt (B, T) has, (B, vocab_size) boolean; None if no penalty needs it."""
        if self.repetition_penalty == 1.0:
            return None
        return mx.put_along_axis(mx.zeros((prompt.shape[0], vocab_size), mx.bool_), prompt, mx.array(True), axis=1)

    def warp(self, logits: mx.array, seen: mx.array | None = None) -> mx.array:
        """The logits (..., V) whose softmax is drawn from, float32; at temperature 0 all but the likeliest are -inf."""
        logits = self._adjust(logits, seen)
        if self.temperature == 0:
            likeliest = mx.arange(logits.shape[-1]) == mx.argmax(logits, axis=-1, keepdims=True)
            return mx.where(likeliest, 0.0, -mx.inf)
        logits = logits.astype(mx.float32) / self.temperature
        limited = 0 < self.top_k < logits.shape[-1]
        if limited:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1 and (self.compose or not limited):
            logits = keep_top_p(logits, self.top_p)
        return keep_min_p(logits, self.min_p) if self.min_p > 0 else logits

    def probabilities(self, logits: mx.array, seen: mx.array | None = None) -> mx.array:
        """The distribution that tokens are drawn from, (..., V) float32."""
        return mx.softmax(self.warp(logits, seen), axis=-1)

    def __call__(self, logits: mx.array, seen: mx.array | None = None, key: mx.array | None = None) -> mx.array:
        """logits (B, V) -> token ids (B,), drawn with `key` or, without one, from MLX's global random state."""
        if self.temperature == 0:
            return mx.argmax(self._adjust(logits, seen), axis=-1)
        return mx.random.categorical(self.warp(logits, seen), key=key)

    def _adjust(self, logits: mx.array, seen: mx.array | None) -> mx.array:
        """What applies to greedy decoding too: bias and penalty."""
        if self.logit_bias:
            logits = add_bias(logits, self.logit_bias)
        return logits if seen is None else penalize_repetition(logits, seen, self.repetition_penalty)

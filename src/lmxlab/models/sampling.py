"""From the logits of the next token to a token: penalty, temperature, top-k or top-p, draw.

Each step equals the logits processor of the same name in `transformers`, and they run in its order.
"""

from dataclasses import dataclass

import mlx.core as mx

from lmxlab.errors import UserError


def penalize_repetition(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Divides positive and multiplies negative logits (B, V) by `penalty` where `seen` (B, V) is true (1909.05858)."""
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: mx.array, k: int) -> mx.array:
    """-inf for every logit of (B, V) below the k-th largest of its row (ties with it stay)."""
    if k >= logits.shape[-1]:
        return logits
    threshold = mx.min(mx.topk(logits, k, axis=-1), axis=-1, keepdims=True)
    return mx.where(logits < threshold, -mx.inf, logits)


def keep_top_p(logits: mx.array, p: float) -> mx.array:
    """-inf outside the fewest most likely tokens of each row of (B, V) whose probabilities sum to at least p."""
    order = mx.argsort(logits, axis=-1)  # least likely first
    ranked = mx.softmax(mx.take_along_axis(logits, order, axis=-1).astype(mx.float32), axis=-1)
    dropped = mx.cumsum(ranked, axis=-1) <= 1 - p
    dropped[..., -1] = False  # the most likely token always stays
    return mx.where(mx.put_along_axis(mx.zeros_like(dropped), order, dropped, axis=-1), -mx.inf, logits)


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

    def __post_init__(self) -> None:
        for ok, name, value, allowed in (
            (self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more"),
            (self.top_k >= 0, "top_k", self.top_k, "0 (off) or more"),
            (0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]"),
            (self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0 (1 is off)"),
        ):
            if not ok:
                raise UserError(f"{name} is {value}; it must be {allowed}")

    def seen_tokens(self, prompt: mx.array, vocab_size: int) -> mx.array | None:
        """Which tokens each row of the prompt (B, T) has, (B, vocab_size) boolean; None if no penalty needs it."""
        if self.repetition_penalty == 1.0:
            return None
        return mx.put_along_axis(mx.zeros((prompt.shape[0], vocab_size), mx.bool_), prompt, mx.array(True), axis=1)

    def __call__(self, logits: mx.array, seen: mx.array | None = None) -> mx.array:
        """logits (B, V) -> token ids (B,)."""
        if seen is not None:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.temperature == 0:
            return mx.argmax(logits, axis=-1)
        logits = logits.astype(mx.float32) / self.temperature
        if self.top_k > 0:
            logits = keep_top_k(logits, self.top_k)
        elif self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        return mx.random.categorical(logits)

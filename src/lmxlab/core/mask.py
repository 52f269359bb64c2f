"""Masks of attention: None, "causal", boolean (True: may attend) or numbers that are added to the scores."""

import mlx.core as mx

from lmxlab.errors import UserError

Mask = mx.array | str | None
HIDDEN = -1e4  # an additive mask that is lower hides what it stands for


def causal(queries: int, keys: int) -> mx.array:
    """Boolean (queries, keys): the last query sees every key, each one before it one key less."""
    return mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)


def additive(mask: Mask, queries: int, keys: int, dtype: mx.Dtype) -> mx.array:
    """The mask as numbers of `dtype`, broadcastable to (..., queries, keys); zeros of size 1 for None.

    What is masked gets a large finite number, also where it is -inf: a query that may see nothing is then no NaN.
    """
    if mask is None:
        return mx.zeros((1,), dtype)
    if isinstance(mask, str):
        mask = causal(queries, keys)
    lowest = mx.finfo(dtype).min / 2  # scores are added to it
    if mask.dtype == mx.bool_:
        return mx.where(mask, 0.0, lowest).astype(dtype)
    return mx.maximum(mask.astype(mx.float32), lowest).astype(dtype)


def check_causal(mask: Mask, queries: int, keys: int, mixer: str) -> None:
    """Raises UserError for a mask array that says anything else than "causal": what recurrences cannot obey."""
    if not isinstance(mask, mx.array):
        return
    seen = mask if mask.dtype == mx.bool_ else mask == 0
    hidden = mx.logical_not(mask) if mask.dtype == mx.bool_ else mask <= HIDDEN
    if mask.shape[-2:] != (queries, keys) or not mx.where(causal(queries, keys), seen, hidden).all():
        raise UserError(f"{mixer} is causal by itself and takes no other mask; use mask='causal'")


def restrict(mask: mx.array, allowed: mx.array) -> mx.array:
    """A boolean or additive mask, with what is not `allowed` (boolean) masked, too."""
    return mask & allowed if mask.dtype == mx.bool_ else mx.where(allowed, mask, mx.finfo(mask.dtype).min)


def hide_padding(mask: Mask, end: int, queries: int, keys: int, padding: mx.array) -> mx.array:
    """The mask for the last `queries` positions before `end` over the last `keys`, none to a row's left padding.

    A padded query sees itself: with nothing to see its output would be no number, and spread from there.

    Args:
        padding: (B,) how many tokens before each row's text are padding.

    Returns:
        A boolean or additive mask, broadcastable to (B, heads, queries, keys).
    """
    positions = mx.arange(end - keys, end)
    own = positions[-queries:, None] == positions
    real = (positions >= padding[:, None, None, None]) | own
    if isinstance(mask, str):
        return real & causal(queries, keys)
    return real if mask is None else restrict(mask, real)

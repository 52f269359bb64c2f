"""What prediction heads say of a text: chained states, and the logits that the model's own output makes of them."""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from lmxlab.core.mtp import MTPHead
from lmxlab.core.recompute import recompute
from lmxlab.core.segments import visible
from lmxlab.models.base import LanguageModel


def head_states(
    model: LanguageModel,
    heads: Sequence[MTPHead],
    hidden: mx.array,
    x: mx.array,
    segments: mx.array | None = None,
) -> Iterator[mx.array]:
    """The states of each head in turn: the k-th (from 1) has one at each of the first T - k positions.

    At position i it has read tokens 0 to i + k and speaks of token i + k + 1, so that with the token after x as last
    target there is a state for every target from the k-th on, and for none beyond. Heads that so short a text has no
    position for are left out.

    Args:
        hidden: `model.hidden_states(x)`, (B, T, d_model).
        x: tokens (B, T).
        segments: (B, T), as in `LanguageModel.hidden_states`.

    Returns:
        (B, T - k, d_model) for k = 1, 2, ...
    """
    below = hidden
    for k, head in enumerate(heads, start=1):
        length = x.shape[1] - k
        if length < 1:
            return
        mask = None if segments is None else visible(segments[:, :length])
        inputs = below[:, :length], model.embed(x[:, k:])
        if model.config.gradient_checkpointing and model.training:
            below = recompute(head, lambda h, e: head(h, e, mask), *inputs)  # noqa: B023 (called at once)
        else:
            below = head(*inputs, mask)
        yield below


def finished(model: LanguageModel, states: mx.array) -> mx.array:
    """States of a head (..., d_model) -> what the output projection is applied to: the model's own final norm."""
    return model._scaled(model.final_norm(states))


def mtp_logits(model: LanguageModel, states: mx.array) -> mx.array:
    """States of a head (..., d_model) -> logits (..., vocab_size), by what the model itself ends with."""
    return model.logits(finished(model, states))

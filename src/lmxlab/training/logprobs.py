"""Log-probabilities of given tokens under a policy and under the reference that it is held to."""

import mlx.core as mx

from lmxlab.core.adapters import adapters_of, without_adapters
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, evaluating


def token_logprobs(model: LanguageModel, tokens: mx.array, temperature: float = 1.0) -> mx.array:
    """log p(token | those before it) for all tokens (B, T) but the first of each row: (B, T-1) float32.

    Padding belongs on the right: a causal model's earlier positions never see it, so that no mask is needed.

    Args:
        temperature: divides the logits, as it did where the tokens were sampled.
    """
    hidden, _ = model.hidden_states(tokens[:, :-1])
    return -model.nats_of(hidden, tokens[:, 1:], temperature)


def reference_logprobs(
    model: LanguageModel, ref_model: LanguageModel | None, tokens: mx.array, temperature: float = 1.0
) -> mx.array:
    """`token_logprobs` of the reference, without a gradient and without dropout: (B, T-1) float32.

    Args:
        ref_model: the reference. None, or the model itself: the model with its adapters off. A model without adapters
            as its own reference moves along, so that the distance to it is always 0.

    Raises:
        UserError: no reference, and the model has no adapters to switch off.
    """
    if ref_model is None and not adapters_of(model):
        raise UserError("There is no reference model: give one, or train adapters, which can be switched off for it.")
    if ref_model is not None and ref_model.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"The reference has a vocabulary of {ref_model.config.vocab_size} tokens, the model one of "
            f"{model.config.vocab_size}: both must read the same tokens."
        )
    if ref_model is None or ref_model is model:
        with evaluating(model), without_adapters(model):
            return mx.stop_gradient(token_logprobs(model, tokens, temperature))
    with evaluating(ref_model):
        return mx.stop_gradient(token_logprobs(ref_model, tokens, temperature))


def after_prompt(lengths: mx.array, width: int) -> mx.array:
    """1 for the tokens after prompts of these lengths (B,), in rows of `width`: (B, width) float32."""
    return (mx.arange(width) >= lengths[:, None]).astype(mx.float32)


def before_padding(tokens: mx.array, pad_id: int) -> mx.array:
    """1 up to the last token that is not padding, (B, T) float32: a pad id inside the text is text."""
    return (mx.cumsum(tokens != pad_id, axis=1, reverse=True) > 0).astype(mx.float32)


def until_stop(tokens: mx.array, stop_id: int) -> mx.array:
    """1 up to and including the first `stop_id` of each row of completions (B, T), 0 after it: (B, T) float32."""
    stops = (tokens == stop_id).astype(mx.int32)
    return (mx.cumsum(stops, axis=1) - stops == 0).astype(mx.float32)

"""The logit lens: what the model would predict if it ended after each layer."""

from dataclasses import dataclass

import mlx.core as mx

from lmxlab.analysis.activations import ActivationCapture
from lmxlab.models.base import LanguageModel


@dataclass(frozen=True)
class LogitLens:
    """Predictions after 0, 1, ... n_layers layers; L = n_layers + 1 rows, of which the last one is the model's own.

    Attributes:
        top: (L, B, T) the likeliest next token.
        entropy: (L, B, T) of the prediction, in nats.
        divergence: (L, B, T) KL(model || prediction), in nats; 0 in the last row.
        nats: (L, B, T) of the targets, or None without any.
    """

    top: mx.array
    entropy: mx.array
    divergence: mx.array
    nats: mx.array | None


def logit_lens(model: LanguageModel, tokens: mx.array, targets: mx.array | None = None) -> LogitLens:
    """Reads the residual stream after every layer through the final norm and output projection (nostalgebraist 2020).

    Early layers need not speak the output's language, so a poor reading says little: compare layers and models, not
    numbers (2303.08112 trains a translator for each layer).

    Args:
        tokens: (B, T) ids; targets: (B, T) next tokens, of which a negative one has 0 nats.
    """
    with ActivationCapture(model) as capture:
        model(tokens)
        states = [capture.activations["layer_0/input"]]
        states += [capture.activations[f"layer_{i}/output"] for i in range(len(model.blocks))]
        final = log_predictions(model, states[-1])
        rows = []
        for h in states:  # one layer's logits at a time: (B, T, vocab_size) is the largest array here
            log_p = log_predictions(model, h)
            row = [
                log_p.argmax(axis=-1),
                -(mx.exp(log_p) * log_p).sum(axis=-1),
                (mx.exp(final) * (final - log_p)).sum(axis=-1),
            ]
            if targets is not None:
                taken = mx.take_along_axis(log_p, mx.maximum(targets, 0)[..., None], axis=-1)[..., 0]
                row.append(mx.where(targets >= 0, -taken, 0.0))
            mx.eval(row)
            rows.append(row)
    top, entropy, divergence, *nats = (mx.stack(list(column)) for column in zip(*rows, strict=True))
    return LogitLens(top, entropy, divergence, nats[0] if nats else None)


def log_predictions(model: LanguageModel, h: mx.array) -> mx.array:
    """Residual stream (B, T, d_model) -> log-probabilities of the next token, (B, T, vocab_size) float32."""
    logits = model.logits(model._scaled(model.final_norm(h))).astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

"""The last reading of the lens is the model's own, and all of them are predictions."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.analysis import ActivationCapture, logit_lens
from lmxlab.analysis.logit_lens import log_predictions
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES

TOKENS = mx.array([[1, 2, 3, 4, 5, 6]])
TARGETS = mx.array([[2, 3, 4, 5, 6, -100]])


@pytest.mark.parametrize("family", ["gpt", "gemma", "falcon_h1"])
def test_the_last_reading_is_the_model_s_own_prediction(family: str) -> None:
    model = LanguageModel(FAMILIES[family].tiny())
    lens = logit_lens(model, TOKENS, TARGETS)
    logits, _ = model(TOKENS)
    assert lens.top.shape == (len(model.blocks) + 1, 1, 6)
    assert mx.array_equal(lens.top[-1], logits.argmax(axis=-1))
    assert mx.array_equal(lens.divergence[-1], mx.zeros((1, 6)))
    np.testing.assert_allclose(lens.nats[-1, :, :5], model.nats(TOKENS, mx.maximum(TARGETS, 0))[:, :5], atol=2e-4)
    assert lens.nats[:, 0, 5].tolist() == [0.0] * len(lens.nats)
    assert lens.entropy.min().item() > 0 and lens.divergence[:-1].min().item() > -1e-5


def test_an_early_reading_is_final_norm_and_head_of_that_layer_s_state() -> None:
    """With the layers after it taken away, the model ends there."""
    config = dataclasses.replace(FAMILIES["llama"].tiny(), mup_base_width=32)
    model = LanguageModel(config)
    lens = logit_lens(model, TOKENS)
    assert lens.nats is None
    with ActivationCapture(model) as capture:
        model(TOKENS)
    model.blocks = model.blocks[:1]
    logits = model(TOKENS)[0]
    assert mx.array_equal(lens.top[1], logits.argmax(axis=-1))
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert mx.allclose(log_predictions(model, capture.activations["layer_0/output"]), expected, atol=1e-5)

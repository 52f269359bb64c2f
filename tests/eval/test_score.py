"""Scoring a model: bits per byte from the bytes of the scored tokens, at the weights of the moment."""

import math

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.data import eval_batches
from lmxlab.eval.score import Score, Scorer
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_tiny


def test_bits_per_byte_are_nats_over_the_bytes_of_the_scored_tokens() -> None:
    model = LanguageModel(gpt_tiny())
    tokens = np.array(mx.random.randint(0, 256, (333,)), dtype=np.uint16)
    token_bytes = np.arange(256, dtype=np.int32) % 4  # a quarter of the tokens are special: no bytes
    nats, n_bytes, scored = 0.0, 0, 0
    for x, y in eval_batches(tokens, 4, 16):
        logits = np.array(model(x)[0], dtype=np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for row, targets in zip(log_p.reshape(-1, 256), np.array(y).reshape(-1), strict=True):
            if token_bytes[targets]:
                nats, n_bytes, scored = nats - row[targets], n_bytes + token_bytes[targets], scored + 1
    score = Scorer(model, token_bytes)(eval_batches(tokens, 4, 16))
    assert (score.tokens, score.bytes) == (scored, n_bytes) and 0 < scored < 332
    assert score.val_bpb == pytest.approx(nats / (math.log(2) * n_bytes), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / scored), rel=1e-4)


def test_scoring_follows_the_weights_and_leaves_dropout_on() -> None:
    import dataclasses

    block = dataclasses.replace(gpt_tiny().block, dropout=0.5)
    model = LanguageModel(dataclasses.replace(gpt_tiny(), block=block))
    model.train()
    tokens, scorer = np.arange(200, dtype=np.uint16), Scorer(model, np.ones(256, np.int32))
    first = scorer(eval_batches(tokens, 4, 16))
    assert scorer(eval_batches(tokens, 4, 16)) == first  # no dropout while scoring
    assert model.training and model.embed_dropout.training
    model.embed.weight = model.embed.weight * 3
    assert scorer(eval_batches(tokens, 4, 16)).nats != first.nats


def test_nothing_scored_is_missing_not_zero() -> None:
    empty = Score(0.0, 0, 0)
    assert math.isnan(empty.val_bpb) and math.isnan(empty.val_loss) and math.isnan(empty.perplexity)

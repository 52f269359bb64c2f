import mlx.core as mx
import numpy as np
import pytest

from lmxlab.models.sampling import Sampler, keep_top_k, keep_top_p, penalize_repetition


def processors() -> tuple:
    torch = pytest.importorskip("torch", reason="the oracle for sampling is transformers, which needs torch")
    pytest.importorskip("transformers", reason="the oracle for sampling is transformers")
    from transformers.generation import logits_process

    return torch, logits_process


def drawn(ties: bool) -> np.ndarray:
    logits = np.random.default_rng(0).normal(0, 3, (16, 50)).astype(np.float32)
    return np.round(logits) if ties else logits


@pytest.mark.oracle
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 3, 49, 50, 100])
def test_top_k_equals_transformers(k: int, ties: bool) -> None:
    torch, process = processors()
    logits = drawn(ties)
    expected = process.TopKLogitsWarper(k)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.array(keep_top_k(mx.array(logits), k)), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_equals_transformers(p: float) -> None:
    torch, process = processors()
    logits = drawn(ties=False)
    expected = process.TopPLogitsWarper(p)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.array(keep_top_p(mx.array(logits), p)), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_equals_transformers(penalty: float) -> None:
    torch, process = processors()
    logits = drawn(ties=False)
    seen = np.random.default_rng(1).integers(0, 50, (16, 20))
    expected = process.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(seen), torch.tensor(logits)).numpy()
    mask = Sampler(repetition_penalty=penalty).seen_tokens(mx.array(seen), 50)
    assert mask is not None
    ours = penalize_repetition(mx.array(logits), mask, penalty)
    np.testing.assert_allclose(np.array(ours), expected, rtol=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = mx.log(mx.array([[0.5, 0.1, 0.25, 0.15]]))
    for p, kept in ((0.4, {0}), (0.6, {0, 2}), (0.85, {0, 2, 3}), (1.0, {0, 1, 2, 3})):
        row = np.array(keep_top_p(logits, p))[0]
        assert set(np.flatnonzero(np.isfinite(row))) == kept


def test_draws_follow_the_tempered_probabilities() -> None:
    logits = mx.log(mx.array([0.5, 0.3, 0.2]))
    n = 20_000
    draws = np.array(Sampler(temperature=0.5)(mx.broadcast_to(logits, (n, 3))))
    expected = np.array([0.25, 0.09, 0.04]) / 0.38
    observed = np.bincount(draws, minlength=3) / n
    assert (abs(observed - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_top_k_wins_over_top_p() -> None:
    logits = mx.broadcast_to(mx.log(mx.array([0.4, 0.3, 0.2, 0.1])), (2000, 4))
    assert set(np.array(Sampler(top_k=3, top_p=0.1)(logits))) == {0, 1, 2}


def test_temperature_zero_is_greedy_after_the_penalty() -> None:
    logits = mx.array([[2.0, 1.9, -1.0]])
    seen = mx.array([[True, False, True]])
    assert Sampler(temperature=0)(logits).tolist() == [0]
    assert Sampler(temperature=0, repetition_penalty=2.0)(logits, seen).tolist() == [1]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_half_precision_logits_are_sampled_in_float32(top_p: float) -> None:
    logits, temperature = mx.array([199.0, 198.0], mx.bfloat16), 0.012
    assert len(set((logits / temperature).tolist())) == 1  # division in bfloat16 merges them
    draws = Sampler(temperature=temperature, top_p=top_p)(mx.broadcast_to(logits, (64, 2)))
    assert draws.tolist() == [0] * 64  # e^(1/0.012) times as likely


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0}]
)
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} is "):
        Sampler(**settings)

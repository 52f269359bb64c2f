import mlx.core as mx
import numpy as np
import pytest

from lmxlab.models.sampling import Sampler, add_bias, keep_min_p, keep_top_k, keep_top_p, penalize_repetition


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


@pytest.mark.oracle
@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 1.0])
def test_min_p_equals_transformers(p: float) -> None:
    torch, process = processors()
    logits = drawn(ties=False)
    expected = process.MinPLogitsWarper(p)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.array(keep_min_p(mx.array(logits), p)), expected)


@pytest.mark.oracle
def test_the_bias_equals_transformers() -> None:
    torch, process = processors()
    logits, bias = drawn(ties=False), {3: 2.5, 49: -1.0, 7: float("-inf")}
    reference = process.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    expected = reference(torch.zeros((16, 5), dtype=torch.long), torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.array(add_bias(mx.array(logits), bias)), expected)


@pytest.mark.oracle
def test_all_steps_compose_as_in_transformers() -> None:
    torch, process = processors()
    logits, bias = drawn(ties=False), {3: 2.5, 7: -4.0}
    seen = np.random.default_rng(1).integers(0, 50, (16, 20))
    expected = torch.tensor(logits)
    for step in (
        process.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}),
        process.RepetitionPenaltyLogitsProcessor(1.4),
        process.TemperatureLogitsWarper(1.7),
        process.TopKLogitsWarper(12),
        process.TopPLogitsWarper(0.9),
        process.MinPLogitsWarper(0.1),
    ):
        expected = step(torch.tensor(seen), expected)
    sampler = Sampler(1.7, 12, 0.9, 1.4, min_p=0.1, logit_bias=bias, compose=True)
    ours = np.array(sampler.warp(mx.array(logits), sampler.seen_tokens(mx.array(seen), 50)))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)
    kept = np.isfinite(ours).sum(axis=1)
    assert kept.min() < kept.max() < 12  # each limit removes some


def test_a_top_k_of_the_whole_vocabulary_is_no_limit() -> None:
    logits = mx.log(mx.array([[0.6, 0.3, 0.1]]))
    assert np.isfinite(np.array(Sampler(top_k=3, top_p=0.8).warp(logits))).tolist() == [[True, True, False]]


def test_probabilities_are_those_of_the_draws() -> None:
    logits = mx.log(mx.array([0.5, 0.3, 0.15, 0.05]))
    probabilities = np.array(Sampler(top_k=3, temperature=0.5).probabilities(logits))
    np.testing.assert_allclose(probabilities, np.array([0.25, 0.09, 0.0225, 0]) / 0.3625, rtol=1e-5)
    np.testing.assert_array_equal(np.array(Sampler(temperature=0).probabilities(logits)), [1, 0, 0, 0])


def test_a_key_makes_the_draw_and_leaves_the_global_state() -> None:
    logits = mx.zeros((64, 20))
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(5)
    draws = [Sampler()(logits, key=mx.random.key(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert mx.random.uniform(shape=(3,)).tolist() == expected


def test_a_bias_on_an_unknown_token_is_refused() -> None:
    with pytest.raises(ValueError, match="token 50; the vocabulary has the ids 0 to 49"):
        Sampler(logit_bias={50: 1.0}).check_vocabulary(50)


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
    "settings",
    [
        *({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0}),
        *({"min_p": -0.1}, {"min_p": 1.1}),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} is "):
        Sampler(**settings)

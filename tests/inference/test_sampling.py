"""Several answers: each scored by its own tokens, votes counted by answer."""

import mlx.core as mx
import pytest
from tests.models.architectures import build, tokens

from lmxlab.inference.reward_model import RewardModel
from lmxlab.inference.sampling import best_of_n, count_votes, majority_vote, sample_rows
from lmxlab.models.generate import generate
from lmxlab.models.sampling import Keys, Sampler

from .test_beam_search import log_prob
from .test_speculative import TARGETS


@pytest.mark.parametrize("name", ["llama", "gemma3", "hybrid"])
@pytest.mark.parametrize("n_prompt", [1, 6])
def test_samples_carry_their_own_log_probability(name: str, n_prompt: int) -> None:
    model, prompt = build(TARGETS[name]()), tokens(1, n_prompt)
    stop = list(range(0, 61, 12))
    samples = sample_rows(model, prompt, 6, 15, Sampler(0.7, top_k=20), stop_tokens=stop, keys=Keys(0))
    assert len({tuple(sample.tokens) for sample in samples}) > 3
    assert {sample.end is None for sample in samples} == {True, False}  # some ended
    for sample in samples:
        drawn = sample.tokens + ([] if sample.end is None else [sample.end])
        assert sample.n_draws == len(drawn) and not set(sample.tokens) & set(stop)
        assert sample.end in (None, *stop) and (sample.end is not None or len(drawn) == 15)
        text = mx.concatenate([prompt, mx.array([drawn])], axis=1)
        assert sample.log_prob == pytest.approx(log_prob(model, text, n_prompt), abs=1e-3)


@pytest.mark.parametrize("score_fn", ["log_prob", "length_normalized"])
def test_the_best_of_n_has_the_best_score(score_fn: str) -> None:
    model, prompt, stop = build(TARGETS["llama"]()), tokens(1, 5), list(range(0, 61, 9))
    best = best_of_n(model, prompt, 8, 12, 1.0, score_fn, stop_tokens=stop, seed=2)
    samples = sample_rows(model, prompt, 8, 12, Sampler(), stop_tokens=stop, keys=Keys(2))
    scores = [s.log_prob / (s.n_draws if score_fn == "length_normalized" else 1) for s in samples]
    assert best.tolist() == [prompt[0].tolist() + samples[scores.index(max(scores))].tokens]


def test_the_two_scores_differ_where_lengths_do() -> None:
    model, prompt, stop = build(TARGETS["llama"]()), tokens(1, 5), list(range(0, 61, 9))
    settings = {"n": 8, "max_tokens": 12, "temperature": 1.0, "stop_tokens": stop}
    texts = {
        score: [best_of_n(model, prompt, **settings, score_fn=score, seed=s).tolist() for s in range(10)]
        for score in ("log_prob", "length_normalized")
    }
    mean_length = {score: sum(len(text[0]) for text in found) / 10 for score, found in texts.items()}
    assert mean_length["log_prob"] < mean_length["length_normalized"]  # a sum favours texts that end at once


def test_a_score_function_sees_whole_texts_and_may_return_a_column() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 5)
    seen = []

    def score(texts: mx.array) -> mx.array:
        seen.append(texts)
        return texts[:, -1:].astype(mx.float32)

    best = best_of_n(model, prompt[0], 5, 7, score_fn=score, seed=0)
    flat = best_of_n(model, prompt, 5, 7, score_fn=lambda texts: texts[:, -1], seed=0)
    assert best.tolist() == flat.tolist() and best.shape == (1, 12)
    assert seen[0].shape == (5, 12) and (seen[0][:, :5] == prompt).all()
    assert best[0, -1] == seen[0][:, -1].max()
    with pytest.raises(ValueError, match="it must return .5,. or .5, 1."):
        best_of_n(model, prompt, 5, 7, score_fn=lambda texts: texts)
    with pytest.raises(ValueError, match="'log_prob', 'length_normalized' or a function"):
        best_of_n(model, prompt, score_fn="likelihood")
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n(model, prompt, 0)


def test_a_reward_model_is_asked_about_each_texts_own_last_token() -> None:
    model, prompt, stop = build(TARGETS["llama"]()), tokens(1, 5), list(range(0, 61, 9))
    reward = RewardModel(build(TARGETS["llama"]()))
    best = best_of_n(model, prompt, 8, 12, 1.0, reward, stop_tokens=stop, seed=1)
    samples = sample_rows(model, prompt, 8, 12, Sampler(), stop_tokens=stop, keys=Keys(1))
    texts = [mx.array([prompt[0].tolist() + sample.tokens]) for sample in samples]
    assert len({text.shape for text in texts}) > 1
    assert best.tolist() == max(texts, key=lambda text: reward(text).item()).tolist()


def test_votes_are_counted_by_answer() -> None:
    answers = [[1, 2], [3], [1, 9], [3], [4], [1, 0]]
    assert count_votes(answers) == [([3], 2), ([1, 2], 1), ([1, 9], 1), ([4], 1), ([1, 0], 1)]
    first = count_votes(answers, lambda tokens: tokens[0] if tokens[0] != 4 else None)
    assert first == [([1, 2], 3), ([3], 2)]  # the fourth has no answer


def test_a_majority_of_greedy_texts_is_unanimous_and_leaves_the_prompt_out() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 5)
    new = generate(model, prompt, 6, temperature=0.0)[0, 5:].tolist()
    assert majority_vote(model, prompt, 3, 6, temperature=0.0) == [(new, 3)]
    votes = majority_vote(model, prompt, 9, 3, temperature=1.5, seed=1)
    assert sum(count for _, count in votes) == 9
    counts = [count for _, count in majority_vote(model, prompt, 9, 3, extract=lambda new: new[0] % 2, seed=1)]
    assert counts == sorted(counts, reverse=True) and sum(counts) == 9

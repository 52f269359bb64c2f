"""Completions for training: as `generate` writes them, with the log-probabilities that the policy gives them."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from test_dpo import tiny

from lmxlab.errors import UserError
from lmxlab.models.generate import generate
from lmxlab.models.sampling import Keys
from lmxlab.training.logprobs import token_logprobs
from lmxlab.training.sampling import Completion, Prompt, mean_reward, rewards_of, sample, text_reward, token_reward

PROMPTS = [Prompt(mx.array(tokens), len(tokens)) for tokens in ([3, 4, 5], [7], [8, 9, 1, 2])]


class Letters:
    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(64 + token) for token in tokens)


def test_completions_are_those_of_generate_up_to_and_with_their_stop() -> None:
    model = tiny()
    written = sample(model, PROMPTS, 12, 1.0, stop_tokens=[5, 6], keys=Keys(3))
    expected = generate(model, [prompt.tokens for prompt in PROMPTS], 12, stop_tokens=[5, 6], seed=3)
    assert {completion.ended for completion in written} == {True, False}
    for completion, whole, prompt in zip(written, expected, PROMPTS, strict=True):
        n = len(prompt.tokens)
        tokens = completion.tokens.tolist()
        assert completion.about == n and mx.array_equal(completion.prompt, prompt.tokens)
        assert (tokens[:-1] if completion.ended else tokens) == whole[n:].tolist()
        assert completion.ended == (tokens[-1] in (5, 6)) and (completion.ended or len(tokens) == 12)
        assert completion.logprobs.shape == completion.tokens.shape


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_a_pass_over_the_whole(temperature: float) -> None:
    model = tiny()
    for completion in sample(model, PROMPTS, 10, temperature, stop_tokens=[5], keys=Keys(1)):
        whole = token_logprobs(model, completion.whole[None], temperature)[0, len(completion.prompt) - 1 :]
        np.testing.assert_allclose(completion.logprobs, whole, atol=1e-5)


def test_sampling_leaves_the_mode_and_the_random_state_alone() -> None:
    model = tiny()
    model.train()
    before = mx.array(mx.random.state[0])
    sample(model, PROMPTS, 4, keys=Keys(1))
    assert model.training and all(module.training for module in model.modules())
    assert mx.array_equal(mx.random.state[0], before)


def test_rewards_see_tokens_or_text() -> None:
    completion = Completion(mx.array([1, 2]), mx.array([3, 4, 5]), True, mx.zeros(3))
    seen: list[Any] = []

    def by_tokens(prompt: mx.array, whole: mx.array) -> float:
        seen.append((prompt.tolist(), whole.tolist()))
        return float(whole.size)

    def by_text(prompt: str, text: str) -> float:
        seen.append((prompt, text))
        return len(text)

    assert rewards_of(token_reward(by_tokens), [completion]).tolist() == [5]
    assert rewards_of(text_reward(by_text, Letters()), [completion, completion._replace(ended=False)]).tolist() == [
        2,
        3,
    ]
    assert seen == [([1, 2], [1, 2, 3, 4, 5]), ("AB", "CD"), ("AB", "CDE")]


def fails(prompt: mx.array, whole: mx.array) -> float:
    raise KeyError("answer")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (token_reward(fails), r"raised KeyError: 'answer', for the completion \[3, 4\]"),
        (lambda completions: 1 / 0, "raised ZeroDivisionError"),
        (token_reward(lambda prompt, whole: float("nan")), r"gave nan for the completion \[3, 4\]"),
        (token_reward(lambda prompt, whole: float("inf")), "gave inf"),
        (token_reward(lambda prompt, whole: mx.zeros(2)), "a number for each completion"),
        (token_reward(lambda prompt, whole: "good"), "a number for each completion"),
        (token_reward(lambda prompt, whole: None), "a number for each completion"),
        (lambda completions: [1.0], "1 rewards for 2 completions"),
        (lambda completions: 1.0, "a number for each completion"),
    ],
)
def test_a_reward_function_that_fails_or_gives_no_numbers_is_told(score: Any, message: str) -> None:
    completions = [Completion(mx.array([1]), mx.array([3, 4]), False, mx.zeros(2))] * 2
    with pytest.raises(UserError, match=message):
        rewards_of(score, completions)


def test_arrays_and_flags_are_rewards_too() -> None:
    completions = [Completion(mx.array([1]), mx.array([3]), False, mx.zeros(1))] * 2
    assert rewards_of(lambda _: mx.array([1.0, 2.0]), completions).tolist() == [1, 2]
    assert rewards_of(token_reward(lambda prompt, whole: mx.array([[0.5]])), completions).tolist() == [0.5, 0.5]
    assert rewards_of(lambda _: [True, False], completions).tolist() == [1, 0]
    assert rewards_of(lambda _: mx.array([0.5, 1.0], mx.bfloat16), completions).tolist() == [0.5, 1]


def test_the_mean_reward_is_of_greedy_completions_in_any_batches() -> None:
    model = tiny()
    score = token_reward(lambda prompt, whole: float(whole.sum()))
    expected = np.mean([generate(model, p.tokens[None], 5, temperature=0.0).sum().item() for p in PROMPTS])
    for batch_size in (1, 2, 32):
        assert mean_reward(model, PROMPTS, score, 5, batch_size=batch_size) == pytest.approx(expected)
    with pytest.raises(UserError, match="at least 1 token"):
        sample(model, PROMPTS, 0)

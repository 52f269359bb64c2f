"""Refinement keeps the best answer, tells the model what was wrong with it, and knows when to stop."""

import mlx.core as mx
import pytest
from tests.models.architectures import build, tokens

from lmxlab.inference.refine import Critique, model_critique, refine
from lmxlab.models.generate import generate

from .test_speculative import TARGETS


def scripted(scores: list[float], seen: list):
    def critique(prompt: list[int], answer: list[int]) -> Critique:
        seen.append((prompt, answer))
        return Critique(scores[len(seen) - 1], [len(seen), 7])

    return critique


@pytest.mark.parametrize(
    ("scores", "settings", "n_rounds", "best", "stopped"),
    [
        ([1.0, 3.0, 2.0, 5.0], {"rounds": 4}, 4, 3, "rounds"),
        ([1.0, 3.0, 2.0, 3.0, 9.0], {"rounds": 9}, 4, 1, "no improvement"),  # equal is no better
        ([1.0, 3.0, 2.0], {"rounds": 9, "patience": 1}, 3, 1, "no improvement"),
        ([1.0, 3.0, 2.0], {"rounds": 9, "good_enough": 2.5}, 2, 1, "good enough"),
    ],
)
def test_it_stops_by_its_rules_with_the_best_answer(scores, settings, n_rounds, best, stopped) -> None:
    model, prompt, seen = build(TARGETS["llama"]()), tokens(1, 5), []
    result = refine(model, prompt, scripted(scores, seen), max_tokens=4, seed=0, **settings)
    assert (len(result.rounds), result.stopped, result.score) == (n_rounds, stopped, scores[best])
    assert result.text[0].tolist() == prompt[0].tolist() + seen[best][1]
    assert all(asked == prompt[0].tolist() and len(answer) == 4 for asked, answer in seen)


def test_the_next_answer_follows_the_best_one_and_its_feedback() -> None:
    model, prompt, seen = build(TARGETS["llama"]()), tokens(1, 5), []
    refine(model, prompt, scripted([1.0, 2.0, 0.0, 0.0], seen), max_tokens=3, temperature=0.0)
    read = prompt
    for i, (_, answer) in enumerate(seen):
        assert generate(model, read, 3, temperature=0.0)[0, read.shape[1] :].tolist() == answer
        best = min(i, 1)
        read = mx.array([[*prompt[0].tolist(), *seen[best][1], best + 1, 7]])


def test_a_model_may_be_the_critic() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 5)
    critique = model_critique(model, [9, 9], score=lambda text: float(text[0]), max_tokens=3)
    result = refine(model, prompt, critique, rounds=3, max_tokens=4, seed=0)
    for done in result.rounds:
        read = mx.array([[*prompt[0].tolist(), *done.answer, 9, 9]])
        said = generate(model, read, 3, temperature=0.0)[0, read.shape[1] :].tolist()
        assert done.critique == Critique(float(said[0]), [9, 9, *said])


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        refine(build(TARGETS["llama"]()), tokens(1, 4), scripted([], []), rounds=0)

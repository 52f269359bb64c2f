"""`lmxlab compare`: which design learns better under the same compute."""

import dataclasses
import inspect
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.data import default
from lmxlab.cli.live import LiveView
from lmxlab.cli.options import DATASET, RUNS, Json, Runs, Tokenizer, option
from lmxlab.cli.render import count, duration, note, number, out, out_json, p_value, scaled, table
from lmxlab.data import DataConfig, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.compare import ComparisonResult, compare, result_of, run_folder
from lmxlab.experiments.comparison_plan import ComparisonPlan, find_designs, make_plan
from lmxlab.experiments.interrupt import Interrupted, stop_on_signals
from lmxlab.experiments.picture import save_curves
from lmxlab.experiments.spec import EVAL_TOKENS, LAB_OPTIM
from lmxlab.experiments.stored import read_result
from lmxlab.experiments.tracking import ExperimentLog

DEFAULT_FLOPS = 8e11
SAMPLE_CHARACTERS = 300


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="compare")(compare_)


def compare_(
    designs: Annotated[
        Positional[tuple[str, ...]],
        option("Two or more: names, presets or config files.", "DESIGN DESIGN ...", default=""),
    ],
    /,
    *,
    flops: Annotated[
        float | None,
        option("Training budget of each run in FLOPs, such as 2e12.", "N", f"{DEFAULT_FLOPS:.0e}, 1 to 2 minutes"),
    ] = None,
    minutes: Annotated[
        float | None,
        option(
            "Instead of --flops: about how long the training of all runs together may take. Speed is measured first, "
            "then every run gets the same FLOPs; compiling and scoring come on top.",
            "M",
            default="",
        ),
    ] = None,
    seeds: Annotated[
        tuple[int, ...],
        option("One number: how many seeds (0, 1, ...). Several numbers: these very seeds.", "N | SEED SEED ..."),
    ] = (3,),
    dataset: Annotated[str | None, option(DATASET, "NAME | PATH", "shakespeare")] = None,
    tokenizer: Tokenizer = "char",
    seq_len: Annotated[int, option("Context in tokens.")] = 64,
    batch_size: Annotated[int, option("Sequences per step.")] = LAB_OPTIM.batch_size,
    learning_rate: Annotated[
        float, option("Peak learning rate of AdamW, for designs whose file has no [optim] table.")
    ] = LAB_OPTIM.learning_rate,
    eval_tokens: Annotated[
        int, option("Validation tokens that the score is taken on, spread over the split; 0 for all of it.")
    ] = EVAL_TOKENS,
    match_all: Annotated[bool, option("Bring presets and config files to the common size, too.", default="")] = False,
    runs: Runs = RUNS,
    resume: Annotated[
        Path | None,
        option("Go on with the interrupted comparison in this folder, with its settings.", "FOLDER", default=""),
    ] = None,
    json: Json = False,
) -> int:
    """Train designs under the same FLOP budget with paired seeds, and say which learns better.

    A design is the name of an architecture (`lmxlab list`), brought to the size of the others within 5%; a preset, such
    as gpt_10m; or a config file (TOML) with a [model] table, taken as it is.

    Example calls:
      lmxlab compare gpt llama
      lmxlab compare gpt llama my.toml --minutes 10 --seeds 5 --dataset book.txt
      lmxlab compare --resume runs/compare/20260101-120000
    """
    start = time.monotonic()
    if resume is None:
        find_designs(designs)  # a mistake is told before data are prepared
        if minutes is not None and flops is not None:
            raise UserError("Give --flops or --minutes, not both.")
        chosen = _seeds(seeds)
        data = DataConfig(dataset=dataset or default(), tokenizer=tokenizer)
        note(f"preparing {data.dataset} ...")
        prepared = prepare(data)
        optim = dataclasses.replace(LAB_OPTIM, learning_rate=learning_rate, batch_size=batch_size)
        if minutes is None and flops is None:
            flops = DEFAULT_FLOPS
        if minutes is not None:
            note("measuring the speed of each design ...")
        plan = make_plan(designs, data, prepared, chosen, optim, seq_len, flops, minutes, match_all, eval_tokens)
        folder = _new_folder(runs / "compare")
    else:
        _refuse_settings(resume, designs, locals())
        folder, plan = resume.resolve(), ComparisonPlan.load(resume)
        runs = folder.parent.parent
        prepared = prepare(plan.specs[0].data)
    ledger = ExperimentLog(runs / "results.jsonl")
    for line in plan.notes:
        note(f"note: {line}")
    view = LiveView(plan.runs(), _title(plan))
    for spec in plan.runs():
        if (entry := read_result(run_folder(folder, spec))) is not None:
            view.skip(spec, entry.value("val_bpb"))
    with stop_on_signals() as stop:
        try:
            with view.shown():
                result = compare(plan, folder, prepared, ledger, view, stop)
        except Interrupted:
            kept = sum(e is not None for design in result_of(plan, folder).designs for e in design.entries)
            note(f"Stopped after {kept} of {len(plan.runs())} runs; nothing is lost. Go on with:")
            note(f"  lmxlab compare --resume {folder}")
            return 130
    picture = save_curves(result, folder / "curves.png")
    if json:
        out_json({**result.to_dict(), "picture": str(picture), "ledger": str(ledger.path)})
    else:
        _report(result, picture, ledger, time.monotonic() - start)
    return 0


def _refuse_settings(folder: Path, designs: Sequence[str], given: dict[str, Any]) -> None:
    """UserError for anything on the command line that a comparison under way has settled already."""
    defaults = {
        name: p.default for name, p in inspect.signature(compare_).parameters.items() if p.kind == p.KEYWORD_ONLY
    }
    changed = [n for n, default in defaults.items() if n not in ("resume", "json", "runs") and given[n] != default]
    settings = [*designs, *(f"--{name.replace('_', '-')}" for name in changed)]
    if settings:
        raise UserError(f"--resume goes on with the settings of {folder}: leave out {', '.join(settings)}.")


def _report(result: ComparisonResult, picture: Path, ledger: ExperimentLog, seconds: float) -> None:
    plan = result.plan
    table(
        ("design", "val_bpb", "95% interval", "parameters", "tokens", "FLOPs", "tokens/s", "training"),
        [
            (
                design.name,
                number(design.mean()),
                _interval(design.interval()),
                f"{design.parameters:,}",
                count(design.mean("tokens")),
                scaled(design.mean("total_flops")),
                count(design.mean("tokens_per_s")),
                duration(design.mean("train_s")),
            )
            for design in result.designs
        ],
        title=f"Validation bits per byte (lower is better), means over {_seeds_word(plan)}",
    )
    out()
    if len(plan.seeds) > 1:
        table(
            ("difference", "val_bpb", "interval", "effect size g", "p"),
            [
                (
                    f"{verdict.a} - {verdict.b}",
                    number(verdict.difference),
                    f"{_interval(verdict.interval)} ({verdict.confidence:.1%})",
                    number(verdict.effect_size, 2),
                    p_value(verdict.p_adjusted),
                )
                for verdict in result.verdicts
            ],
            title="Paired by seed"
            + (", p corrected for the number of pairs (Holm)" if len(result.verdicts) > 1 else ""),
        )
        out()
    for verdict in result.verdicts:
        sentence = verdict.sentence()
        out(sentence.replace("no difference", "No difference", 1) + ".")
    out()
    for design in result.designs:
        entry = next((e for e in design.entries if e is not None and e.status == "keep"), None)
        if entry is not None:
            out(f"{design.name} (seed {entry.seed}) writes:")
            for line in str(entry.metrics.get("sample", ""))[:SAMPLE_CHARACTERS].strip().splitlines():
                out(f"  {line}")
            out()
    out(f"curves   {picture}")
    out(f"runs     {result.folder}")
    out(f"ledger   {ledger.path}")
    out(f"took     {duration(seconds)}")


def _seeds(given: Sequence[int]) -> tuple[int, ...]:
    """One number counts the seeds, several are the seeds."""
    if len(given) != 1:
        return tuple(given)
    if given[0] < 1:
        raise UserError(f"--seeds must be at least 1, got {given[0]}.")
    return tuple(range(given[0]))


def _title(plan: ComparisonPlan) -> str:
    steps = sorted({spec.optim.max_steps for spec in plan.specs})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return f"{' against '.join(plan.names)}: {scaled(plan.flops, 'FLOP')} ({span} steps) each, {_seeds_word(plan)}"


def _seeds_word(plan: ComparisonPlan) -> str:
    return "1 seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _new_folder(root: Path) -> Path:
    """A folder named by the time that no other process has taken."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{root} has too many folders of this second.")

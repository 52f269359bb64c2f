"""`lmxlab compare`: which design learns better under the same compute."""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.data import default
from lmxlab.cli.live import LiveView
from lmxlab.cli.render import duration, note, number, out, out_json, p_value, scaled, table
from lmxlab.data import DataConfig, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.compare import ComparisonResult, Plan, compare, make_plan, result_of, run_folder
from lmxlab.experiments.interrupt import Interrupted, stop_on_signals
from lmxlab.experiments.picture import save_curves
from lmxlab.experiments.run import read_result
from lmxlab.experiments.tracking import ExperimentLog
from lmxlab.training.config import TrainConfig

DEFAULT_FLOPS = 1e12
SAMPLE_CHARACTERS = 300


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="compare")(compare_)


def compare_(
    designs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="DESIGN")],
    /,
    *,
    flops: Annotated[float | None, tyro.conf.arg(metavar="N")] = None,
    minutes: Annotated[float | None, tyro.conf.arg(metavar="M")] = None,
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N | SEED SEED ...")] = (3,),
    dataset: Annotated[str | None, tyro.conf.arg(metavar="NAME | PATH")] = None,
    tokenizer: Annotated[str, tyro.conf.arg(metavar="NAME")] = "char",
    seq_len: int = 64,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    eval_tokens: int = 65_536,
    match_all: bool = False,
    runs: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs"),
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: bool = False,
) -> int:
    """Train designs under the same FLOP budget with paired seeds, and say which learns better.

    A design is the name of an architecture (`lmxlab list`), brought to the same number of parameters as the others
    within 5%; a preset (gpt_10m); or a config file with a [model] table (TOML), taken as it is.

    Examples:
      lmxlab compare gpt llama
      lmxlab compare gpt llama my.toml --minutes 10 --seeds 5 --dataset book.txt
      lmxlab compare --resume runs/compare/20260101-120000

    Args:
        designs: Two or more: names, presets or config files.
        flops: Training budget of each run in FLOPs, such as 2e12 (default: 1e12, about 2 minutes in all on 2 cores).
        minutes: Instead of --flops: about how long the training of all runs together may take. Speed is measured first,
            then every run gets the same FLOPs; evaluation comes on top.
        seeds: One number: how many seeds (0, 1, ...). Several: these very seeds.
        dataset: What to train on: a dataset's name, or a text, JSONL or parquet file or a folder of them
            (default: shakespeare).
        tokenizer: char, bpe:SIZE, tiktoken:NAME, hf:REPO, or a tokenizer's JSON file.
        seq_len: Context in tokens.
        batch_size: Sequences per step.
        learning_rate: Peak learning rate of AdamW, for designs whose file does not set [optim].
        eval_tokens: Validation tokens that the final score is taken on, spread over the split; 0 for all of it.
        match_all: Bring presets and config files to the common size, too.
        runs: Where run folders and the ledger (results.jsonl) go.
        resume: Go on with an interrupted comparison; its settings are kept.
        json: Print the result as JSON.
    """
    start = time.monotonic()
    if resume is None:
        data = DataConfig(dataset=dataset or default(), tokenizer=tokenizer)
        note(f"preparing {data.dataset} ...")
        prepared = prepare(data)
        optim = TrainConfig(
            learning_rate=learning_rate, batch_size=batch_size, warmup_steps=100, min_lr_ratio=0.1, weight_decay=0.1
        )
        if minutes is None and flops is None:
            flops = DEFAULT_FLOPS
        elif minutes is not None and flops is not None:
            raise UserError("Give --flops or --minutes, not both.")
        if minutes is not None:
            note("measuring the speed of each design ...")
        plan = make_plan(designs, data, prepared, _seeds(seeds), optim, seq_len, flops, minutes, match_all, eval_tokens)
        folder = _new_folder(runs / "compare")
    else:
        if designs:
            raise UserError(f"--resume goes on with the designs of {resume}: leave out {', '.join(designs)}.")
        folder, plan = resume, Plan.load(resume)
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
                f"{design.mean('tokens') or 0:,.0f}",
                scaled(design.mean("total_flops")),
                f"{design.mean('tokens_per_s') or 0:,.0f}",
                duration(design.mean("train_s")),
            )
            for design in result.designs
        ],
        title=f"Validation bits per byte (lower is better), means per run over {len(plan.seeds)} seeds",
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


def _title(plan: Plan) -> str:
    tokens = " / ".join(f"{spec.optim.max_steps:,} steps" for spec in plan.specs)
    return f"{' against '.join(plan.names)}: {scaled(plan.flops, 'FLOP')} each ({tokens}), {len(plan.seeds)} seeds"


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

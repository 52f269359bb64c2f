"""`lmxlab log list | show | best | tail`: the ledger of finished runs."""

import dataclasses
import json as jsonlib
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import RUNS, Json, option
from lmxlab.cli.render import MISSING, count, duration, note, number, out, out_json, scaled, table
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.experiments.methods import METHODS, Method
from lmxlab.experiments.tracking import MEASUREMENTS, ExperimentLog, LogEntry

Ledger = Annotated[Path, option("The ledger to read.", "FILE")]
LEDGER = RUNS / "results.jsonl"


def register(app: SubcommandApp, arguments: list[str]) -> None:
    group = SubcommandApp()
    group.__doc__ = "The ledger of finished runs.\n\nExample: lmxlab log list"
    for name, command in (("list", list_), ("show", show), ("best", best), ("tail", tail)):
        group.command(name=name)(command)
    app.command(group, name="log")


def list_(*, ledger: Ledger = LEDGER, json: Json = False) -> None:
    """Every run, oldest first.

    Example: lmxlab log list
    """
    _print(_load(ledger), json)


def show(run: Positional[str], /, *, ledger: Ledger = LEDGER, json: Json = False) -> None:
    """One run: its results, settings and folder.

    Example: lmxlab log show gpt/20260101-120000

    Args:
        run: The run as `lmxlab log list` names it, or the end of that name.
    """
    entries = _load(ledger)
    found = [entry for entry in entries if run_name(entry) == run] or [
        entry for entry in entries if run_name(entry).endswith(run)
    ]
    if not found:
        raise UnknownNameError("run", run, {run_name(entry) for entry in entries})
    entry = found[-1]
    if json:
        out_json(dataclasses.asdict(entry))
        return
    out(f"run          {run_name(entry)}")
    out(f"folder       {ledger.parent / run_name(entry)}")
    out(f"status       {entry.status}" + (f": {entry.description}" if entry.description else ""))
    out(f"finished     {_when(entry)}")
    out(f"commit       {entry.commit}")
    out(f"seed         {entry.seed}")
    for name in ("val_bpb", "val_loss", "train_loss"):
        out(f"{name:<12} {number(entry.value(name))}")
    out(f"parameters   {count(entry.value('param_count'))}")
    out(f"FLOPs        {scaled(entry.value('total_flops'), 'FLOP')}")
    out(f"memory       {number(entry.value('peak_memory_mb'), 0)} MB at the peak")
    for name, value in entry.metrics.items():
        if name not in ("sample", "curve"):
            out(f"{name:<12} {round(value, 4) if isinstance(value, float) else value}")
    for flops, score in entry.metrics.get("curve", []):
        out(f"{'curve':<12} {_metric(entry)} {number(score)} at {scaled(flops, 'FLOP')}")
    if sample := str(entry.metrics.get("sample", "")).strip():
        out("sample")
        for line in sample.splitlines():
            out(f"  {line}")
    out("settings")
    for line in jsonlib.dumps(entry.config.get("spec", entry.config), indent=2).splitlines()[1:-1]:
        out(f"  {line}")


def best(
    *, metric: str = "val_bpb", highest: bool = False, top: int = 10, ledger: Ledger = LEDGER, json: Json = False
) -> None:
    """The best runs first; runs that crashed or lack the metric are left out.

    Runs on other data or another tokenizer are not comparable: look at their settings.

    Example: lmxlab log best --top 3

    Args:
        metric: What to rank by: a field of the ledger or one of a run's metrics.
        highest: Whether more is better.
        top: How many to show.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}.")
    kept = [(value, e) for e in _load(ledger) if e.status == "keep" and (value := e.value(metric)) is not None]
    if not kept:
        if not any(e.status == "keep" for e in _load(ledger)):
            raise UserError(f"No run in {str(ledger)!r} has ended well.")
        measured = {
            name
            for e in _load(ledger)
            for name in (*MEASUREMENTS, *e.metrics, *e.extra)
            if e.status == "keep" and e.value(name) is not None
        }
        raise UnknownNameError("metric", metric, measured)
    kept.sort(key=lambda pair: pair[0], reverse=highest)
    _print([entry for _, entry in kept[:top]], json)


def tail(
    *,
    n: Annotated[int, option("How many.", aliases=["-n"])] = 5,
    follow: bool = False,
    ledger: Ledger = LEDGER,
    json: Json = False,
) -> None:
    """The latest runs.

    Example: lmxlab log tail --follow

    Args:
        follow: Go on and print each run as it ends, until Ctrl-C.
    """
    if n < 1:
        raise UserError(f"-n must be at least 1, got {n}.")
    entries = _load(ledger) if ledger.exists() or not follow else []
    _print(entries[-n:], json)
    while follow:
        time.sleep(1)
        now = ExperimentLog(ledger).load()
        for entry in now[len(entries) :]:
            out("  ".join(_row(entry)))
        entries = now


def run_name(entry: LogEntry) -> str:
    """The run's folder relative to the ledger's; entries of other programs have only the experiment's name."""
    return str(entry.config.get("run", entry.experiment))


def _load(path: Path) -> list[LogEntry]:
    if not path.exists():
        raise UserError(f"There is no ledger {str(path)!r} yet: train something first, or give --ledger FILE.")
    return ExperimentLog(path).load()


def _print(entries: Sequence[LogEntry], json: bool) -> None:
    if json:
        out_json([dataclasses.asdict(entry) for entry in entries])
    elif not entries:
        note("The ledger has no entry.")
    else:
        table(HEADER, _rows(entries))


HEADER = ("run", "finished", "status", "dataset", "seed", "val_bpb", "parameters", "tokens", "training")


def _rows(entries: Iterable[LogEntry]) -> Iterable[list[str]]:
    return (_row(entry) for entry in entries)


def _row(entry: LogEntry) -> list[str]:
    return [
        run_name(entry),
        _when(entry),
        entry.status,
        _dataset(entry),
        str(entry.seed),
        number(entry.value("val_bpb")),
        count(entry.value("param_count")),
        count(entry.value("tokens")),
        duration(entry.value("train_s")),
    ]


def _metric(entry: LogEntry) -> str:
    """The score that the run is known by, which its curve shows."""
    spec = entry.config.get("spec", {})
    method = spec.get("method") if isinstance(spec, dict) else None
    name = method.get("name", "") if isinstance(method, dict) else ""
    return METHODS.get(str(name), Method).metric


def _dataset(entry: LogEntry) -> str:
    """Name of the data; of a path only its end. Entries of other programs have none."""
    spec = entry.config.get("spec", {})
    name = spec.get("data", {}).get("dataset") if isinstance(spec, dict) else None
    return Path(str(name)).name if name else MISSING


def _when(entry: LogEntry) -> str:
    try:
        return datetime.fromtimestamp(entry.timestamp).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, TypeError):
        return MISSING  # the line has no time

"""Which design learns better under the same compute: the plan, the paired runs, the result.

Every design trains with every seed. A seed decides both the order of the data, which is then the same for every design,
and the initial weights. Runs are interleaved, all designs of one seed before the next seed, so that an interrupted
comparison holds whole pairs.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmxlab.data import DataConfig, PreparedData, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.analysis import Verdict, decide
from lmxlab.experiments.budget import TOLERANCE, count_parameters, flops_per_step, match_size, steps_within, with_steps
from lmxlab.experiments.designs import find_design
from lmxlab.experiments.interrupt import Interrupted, Stop
from lmxlab.experiments.run import Diverged, Observer, execute, measure_step_s
from lmxlab.experiments.spec import EVAL_TOKENS, Budget, RunSpec, check_seed, from_table
from lmxlab.experiments.statistics import confidence_interval, measured
from lmxlab.experiments.stored import read_result
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
from lmxlab.files import atomic_write, to_json
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

PLAN = "compare.json"
RESULT = "comparison.json"
CURVE_POINTS = 8


@dataclass(frozen=True)
class Plan:
    """A comparison, settled: enough to start it, or to go on with it after an interruption.

    Attributes:
        specs: one run per design, in the order they were named; the seed in it is replaced by each of `seeds`.
        seeds: shared by all designs.
        flops: the budget of each run.
        notes: what was chosen or is worth knowing, one line each.
    """

    specs: tuple[RunSpec, ...]
    seeds: tuple[int, ...]
    flops: float
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def runs(self) -> list[RunSpec]:
        """Every run in the order they are made: seed by seed, and within a seed design by design."""
        return [dataclasses.replace(spec, seed=seed) for seed in self.seeds for spec in self.specs]

    def save(self, folder: Path) -> None:
        values = {
            "specs": [spec.to_dict() for spec in self.specs],
            "seeds": list(self.seeds),
            "flops": self.flops,
            "notes": list(self.notes),
        }
        atomic_write(folder / PLAN, to_json(values))

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads the plan of an earlier comparison; UserError when `folder` holds none."""
        try:
            values = json.loads((folder / PLAN).read_text())
            specs = tuple(RunSpec.from_dict(spec) for spec in values["specs"])
            return cls(specs, tuple(values["seeds"]), float(values["flops"]), tuple(values["notes"]))
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{str(folder)!r} is no folder of a comparison ({PLAN}: {error}).") from None


@dataclass(frozen=True)
class DesignResult:
    """What one design did: `entries[i]` is its run with `seeds[i]`, None when that run has not been made."""

    name: str
    parameters: int
    entries: tuple[LogEntry | None, ...]

    def values(self, metric: str = "val_bpb") -> list[float | None]:
        """The metric per seed; None for a run that is missing, crashed or did not measure it."""
        return [e.value(metric) if e is not None and e.status != "crash" else None for e in self.entries]

    def mean(self, metric: str = "val_bpb") -> float | None:
        values = measured(self.values(metric))
        return float(values.mean()) if values.size else None

    def interval(self) -> tuple[float, float] | None:
        """95% Student-t interval of the mean val_bpb; None below two seeds, which say nothing of the noise."""
        return confidence_interval(self.values()) if measured(self.values()).size > 1 else None


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison's outcome, as far as its runs have been made."""

    folder: Path
    plan: Plan
    designs: tuple[DesignResult, ...]
    verdicts: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for comparison.json and `--json`."""
        return {
            "folder": str(self.folder),
            "flops_per_run": self.plan.flops,
            "seeds": list(self.plan.seeds),
            "notes": list(self.plan.notes),
            "designs": [
                {
                    "name": design.name,
                    "parameters": design.parameters,
                    "val_bpb": design.values(),
                    "val_bpb_mean": design.mean(),
                    "val_bpb_interval_95": design.interval(),
                    "tokens": design.mean("tokens"),
                    "flops": design.mean("total_flops"),
                    "train_s": design.mean("train_s"),
                    "runs": [None if e is None else e.config.get("run") for e in design.entries],
                }
                for design in self.designs
            ],
            "verdicts": [
                {
                    "a": verdict.a,
                    "b": verdict.b,
                    "difference": verdict.difference,
                    "interval": list(verdict.interval),
                    "confidence": verdict.confidence,
                    "effect_size": verdict.effect_size,
                    "p": verdict.p,
                    "p_adjusted": verdict.p_adjusted,
                    "better": verdict.better,
                    "seeds_needed": verdict.seeds_needed,
                    "sentence": verdict.sentence(),
                }
                for verdict in self.verdicts
            ],
        }


def make_plan(
    sources: Sequence[str],
    data: DataConfig,
    prepared: PreparedData,
    seeds: Sequence[int],
    optim: TrainConfig,
    seq_len: int = 64,
    flops: float | None = None,
    minutes: float | None = None,
    match_all: bool = False,
    eval_tokens: int = EVAL_TOKENS,
) -> Plan:
    """Settles everything before the first step: sizes, steps, seeds.

    Args:
        sources: names or config files of the designs. From a file come the model and [optim]; data, budget, context,
            batch size and seeds are the comparison's.
        flops: budget of each run; or
        minutes: what the training of all runs together should take here: each design's speed is measured, and all get
            the same FLOPs.
        match_all: also bring designs from files and presets to the common size.

    Raises:
        UserError: fewer than two designs or seeds that repeat, sizes that cannot be matched, a budget below one step.
    """
    check_sources(sources)
    for seed in seeds:
        check_seed(seed)
    for name, value in (("flops", flops), ("minutes", minutes)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be above 0 and finite, got {value:g}.")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise UserError(f"Seeds must be given and differ, got {list(seeds)}.")
    designs = [find_design(source) for source in sources]
    names = _distinct([design.name for design in designs])
    models = [design.model(prepared.vocab_size, seq_len) for design in designs]
    free = [design.resizable or match_all for design in designs]
    # The size to meet is that of a design which may not change; else of the first one.
    anchor = free.index(False) if False in free else 0
    target = count_parameters(models[anchor])
    specs, notes = [], []
    for index, design in enumerate(designs):
        model, size = models[index], count_parameters(models[index])
        if free[index] and index != anchor:
            sized = match_size(model, target)
            model, size = sized.model, sized.parameters
            if sized.change:
                notes.append(f"{names[index]}: {sized.change} to match the {target:,} parameters of {names[anchor]}")
        elif abs(size - target) > TOLERANCE * target:
            notes.append(
                f"{names[index]} has {size:,} parameters, {names[anchor]} {target:,}: sizes differ by "
                f"{abs(size - target) / target:.0%}; --match-all brings it to the same size"
            )
        ignored = sorted({"data", "budget", "seq_len", "seed", "eval_tokens"} & set(design.settings))
        if ignored:
            notes.append(f"{names[index]}: {', '.join(ignored)} in the file is not used: a comparison sets it for all")
        own = {**dataclasses.asdict(optim), **design.settings.get("optim", {}), "batch_size": optim.batch_size}
        specs.append(
            RunSpec(
                name=names[index],
                model=model,
                data=data,
                optim=from_table(TrainConfig, own, "optim"),
                seq_len=seq_len,
                eval_tokens=eval_tokens,
            )
        )
    if minutes is not None:
        flops = _flops_in(minutes, specs, len(seeds), prepared)
        notes.append(f"{minutes:g} min of training for all runs together: {flops:.3g} FLOPs each, as measured here")
    if flops is None:
        raise UserError("A comparison needs a budget: flops or minutes.")
    budgeted = (dataclasses.replace(spec, budget=Budget(flops=flops)) for spec in specs)
    return Plan(tuple(map(_paced, budgeted)), tuple(seeds), flops, tuple(notes))


def check_sources(sources: Sequence[str]) -> None:
    """UserError for fewer designs than make a comparison, or for one that is unknown."""
    if len(sources) < 2:
        raise UserError(f"A comparison takes two designs or more, got {list(sources)}: try `lmxlab compare gpt llama`.")
    for source in sources:
        find_design(source)


def compare(
    plan: Plan,
    folder: Path,
    prepared: PreparedData | None = None,
    ledger: ExperimentLog | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
) -> ComparisonResult:
    """Makes every run of the plan that `folder` does not hold yet, and judges them.

    A run that was interrupted goes on from its last checkpoint. A run that diverges is recorded as a crash, which is a
    missing value for its design, and the others go on.

    Raises:
        Interrupted: when `stop` was requested; calling again with the same folder goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN).exists():
        plan.save(folder)
    prepared = prepared or prepare(plan.specs[0].data)
    stop = stop or Stop()
    for spec in plan.runs():
        if stop.requested:
            raise Interrupted
        try:
            # A run that has its result gives it again, and one that was interrupted goes on.
            execute(spec, run_folder(folder, spec), prepared, ledger, observer, stop, resume=True)
        except Diverged as error:
            logger.warning("%s", error)
    result = result_of(plan, folder)
    atomic_write(folder / RESULT, to_json(result.to_dict()))
    return result


def result_of(plan: Plan, folder: Path) -> ComparisonResult:
    """Judges the runs that `folder` holds now."""
    designs = []
    for spec in plan.specs:
        runs = [run_folder(folder, dataclasses.replace(spec, seed=seed)) for seed in plan.seeds]
        designs.append(DesignResult(spec.name, count_parameters(spec.model), tuple(read_result(run) for run in runs)))
    values = {design.name: [math.nan if v is None else v for v in design.values()] for design in designs}
    return ComparisonResult(folder, plan, tuple(designs), tuple(decide(values)))


def run_folder(folder: Path, spec: RunSpec) -> RunFolder:
    """Where a comparison keeps the run of one design and seed."""
    return RunFolder(folder / spec.name / f"seed-{spec.seed}")


def _flops_in(minutes: float, specs: Sequence[RunSpec], n_seeds: int, prepared: PreparedData) -> float:
    """FLOPs per run such that the training of all runs takes `minutes` at the speed measured now."""
    if not minutes > 0:
        raise UserError(f"minutes must be above 0, got {minutes:g}.")
    seconds_per_flop = n_seeds * sum(measure_step_s(spec, prepared) / flops_per_step(spec) for spec in specs)
    return minutes * 60 / seconds_per_flop


def _paced(spec: RunSpec) -> RunSpec:
    """`spec` with the steps that its budget buys, and evaluations and checkpoints evenly spaced over them."""
    steps = steps_within(spec)
    every = math.ceil(steps / CURVE_POINTS)
    optim = dataclasses.replace(spec.optim, eval_interval=every, checkpoint_interval=2 * every)
    return with_steps(dataclasses.replace(spec, optim=optim), steps)


def _distinct(names: list[str]) -> list[str]:
    """The names, a repeated one numbered: `compare a/x.toml b/x.toml` has two folders."""
    counts = dict.fromkeys(names, 0)
    distinct = []
    for name in names:
        counts[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return distinct

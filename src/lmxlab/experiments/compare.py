"""Which design learns better under the same compute: the plan, the paired runs, the result.

Every design trains with every seed. A seed decides both the order of the data, which is then the same for every design,
and the initial weights. Runs are interleaved, all designs of one seed before the next seed, so that an interrupted
comparison holds whole pairs.
"""

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmxlab.data import PreparedData, prepare
from lmxlab.experiments.analysis import Verdict, decide
from lmxlab.experiments.budget import count_parameters
from lmxlab.experiments.comparison_plan import PLAN, ComparisonPlan
from lmxlab.experiments.interrupt import Interrupted, Stop
from lmxlab.experiments.recorder import Observer
from lmxlab.experiments.run import Diverged, execute
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.statistics import confidence_interval, measured
from lmxlab.experiments.stored import read_result
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
from lmxlab.files import atomic_write, to_json
from lmxlab.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

RESULT = "comparison.json"


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
    plan: ComparisonPlan
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


def compare(
    plan: ComparisonPlan,
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


def result_of(plan: ComparisonPlan, folder: Path) -> ComparisonResult:
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

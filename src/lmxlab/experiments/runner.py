"""One experiment under a time budget: seeds, the clock, and the line in the ledger at its end."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmxlab.errors import UserError
from lmxlab.experiments.provenance import git_commit
from lmxlab.experiments.tracking import MEASUREMENTS, ExperimentLog, LogEntry


@dataclass
class ExperimentConfig:
    """What to call an experiment, what it may cost and where it writes.

    Attributes:
        time_budget_s: wall-clock seconds from `ExperimentRunner.start`.
        flop_budget: training FLOPs, or None; a record for the trainer's FLOP counter, the runner watches the clock.
    """

    name: str = "experiment"
    description: str = ""
    time_budget_s: float = 300.0
    flop_budget: float | None = None
    seed: int = 42
    output_dir: str = "experiments"


class ExperimentRunner:
    """Wraps training code that the caller writes: `start()`, train until `is_time_up()`, `finish(metrics)`.

    The ledger is `output_dir`/results.jsonl unless another is given.

    Raises:
        UserError: `output_dir` cannot be made.
    """

    def __init__(self, config: ExperimentConfig, log: ExperimentLog | None = None):
        self.config = config
        folder = Path(config.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot make the output folder {folder}: {error.strerror}; choose another output_dir"
            ) from error
        self.log = log if log is not None else ExperimentLog(folder / "results.jsonl")
        self._started_at: float | None = None

    def start(self) -> None:
        """Seeds `mx.random` with the experiment's seed and starts the clock."""
        import mlx.core as mx

        mx.random.seed(self.config.seed)
        self._started_at = time.monotonic()

    def time_remaining(self) -> float:
        """Seconds left, not below 0; the whole budget before `start`."""
        return max(0.0, self.config.time_budget_s - self._elapsed_s())

    def is_time_up(self) -> bool:
        return self.time_remaining() <= 0

    def finish(
        self,
        metrics: dict[str, Any],
        param_count: int = 0,
        config_dict: dict[str, Any] | None = None,
        status: str = "keep",
    ) -> LogEntry:
        """Writes the result to the ledger and returns it.

        Args:
            metrics: everything measured; those named like a measurement of `LogEntry` (val_bpb, total_flops, ...) also
                become its fields. What is not there stays missing.
            status: "keep", "discard" or "crash".
        """
        measured: dict[str, Any] = {"wall_time_s": self._elapsed_s(), "param_count": param_count}
        measured |= {name: metrics[name] for name in MEASUREMENTS if metrics.get(name) is not None}
        entry = LogEntry(
            experiment=self.config.name,
            commit=git_commit(),
            status=status,
            description=self.config.description,
            config=config_dict or {},
            metrics=metrics,
            seed=self.config.seed,
            **measured,
        )
        self.log.log(entry)
        return entry

    def _elapsed_s(self) -> float:
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

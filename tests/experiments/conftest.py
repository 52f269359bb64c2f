"""Shared by the tests of experiments: a ledger and a run to look at."""

from pathlib import Path

import pytest

from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
from lmxlab.models.gpt import gpt_tiny
from lmxlab.training.config import TrainConfig

KEPT = LogEntry(experiment="gpt", commit="0123abcd", val_bpb=1.5, param_count=10, config={"d": 4}, metrics={"acc": 0.0})


@pytest.fixture
def log(tmp_path: Path) -> ExperimentLog:
    return ExperimentLog(tmp_path / "results.jsonl")


def spec(**changes: object) -> RunSpec:
    values = {"optim": TrainConfig(batch_size=4), "seq_len": 32, **changes}
    return RunSpec(name="gpt", model=gpt_tiny(), **values)  # type: ignore[arg-type]

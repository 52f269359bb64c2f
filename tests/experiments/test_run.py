"""A run from its settings to its result: the same for the same seed, and all of it in its folder."""

from pathlib import Path

import pytest

from lmxlab.data import DataConfig, eval_batches, prepare
from lmxlab.eval.score import Scorer
from lmxlab.experiments.loaded import build_model
from lmxlab.experiments.make_task import make_task
from lmxlab.experiments.run import execute, measure_step_s
from lmxlab.experiments.spec import Budget, RunSpec
from lmxlab.experiments.stored import load_model, read_spec
from lmxlab.models.gpt import gpt_tiny
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

SPEC = RunSpec(
    "tiny",
    gpt_tiny(),
    DataConfig("pydocs"),
    TrainConfig(batch_size=2, compile_step=False, log_interval=1),
    seq_len=16,
    budget=Budget(steps=3),
    eval_tokens=300,
    sample_tokens=5,
)


def test_a_run_is_the_same_for_the_same_seed_and_its_folder_says_all(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in ("a", "b")]
    first, second = (execute(SPEC, folder) for folder in folders)
    assert first.val_bpb == second.val_bpb and first.metrics["curve"] == second.metrics["curve"]
    stored = read_spec(folders[0])
    assert stored.optim.max_steps == 3 and stored.budget == Budget(steps=3)
    spec, model = load_model(folders[0])
    score = Scorer(model, prepare(spec.data).token_bytes)(eval_batches(prepare(spec.data).val, 32, 16, 300))
    assert score.val_bpb == pytest.approx(first.val_bpb, rel=1e-6)
    assert first.param_count == build_model(SPEC).count_parameters()
    parts = [first.metrics[f"{name}_s"] for name in ("data", "compile", "train", "eval", "checkpoint", "sample")]
    assert first.wall_time_s == pytest.approx(sum(parts), abs=0.01)


def test_a_step_is_measured_without_touching_the_run() -> None:
    assert 0 < measure_step_s(SPEC, make_task(SPEC)) < 10

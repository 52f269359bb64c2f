"""An experiment keeps its budget, its seed and its result."""

import re
import subprocess
import time

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.experiments.provenance import git_commit
from lmxlab.experiments.runner import ExperimentConfig, ExperimentRunner
from lmxlab.experiments.tracking import ExperimentLog


@pytest.fixture
def config(tmp_path):
    return ExperimentConfig(
        name="e", description="d", time_budget_s=60.0, seed=7, output_dir=str(tmp_path / "a" / "out")
    )


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_the_defaults_are_the_public_ones_and_the_config_can_be_changed():
    config = ExperimentConfig()
    config.name = "other"
    assert config == ExperimentConfig("other", "", 300.0, None, 42, "experiments")


def test_the_constructor_makes_the_output_folder_and_starts_nothing(config, tmp_path):
    runner = ExperimentRunner(config)
    assert (tmp_path / "a" / "out").is_dir()
    assert runner.time_remaining() == 60.0 and not runner.is_time_up()
    assert runner.log.load() == []


def test_the_budget_runs_from_start_and_never_below_zero(config, clock):
    runner = ExperimentRunner(config)
    clock.now += 1000
    assert runner.time_remaining() == 60.0
    runner.start()
    clock.now += 59
    assert runner.time_remaining() == pytest.approx(1.0) and not runner.is_time_up()
    clock.now += 1
    assert runner.is_time_up()
    clock.now += 100
    assert runner.time_remaining() == 0.0


def test_start_seeds_the_random_numbers_of_mlx(config):
    ExperimentRunner(config).start()
    drawn = mx.random.uniform(shape=(4,))
    mx.random.seed(7)
    assert mx.array_equal(drawn, mx.random.uniform(shape=(4,)))


def test_finish_writes_the_entry_that_it_returns(config, clock):
    runner = ExperimentRunner(config)
    runner.start()
    clock.now += 2.5
    metrics = {"val_bpb": 1.5, "train_loss": 2.0, "total_flops": 3.0, "peak_memory_mb": None, "acc": 0.25}
    entry = runner.finish(metrics, param_count=10, config_dict={"d": 1}, status="discard")
    assert (entry.experiment, entry.description, entry.status, entry.seed) == ("e", "d", "discard", 7)
    assert (entry.val_bpb, entry.train_loss, entry.total_flops, entry.param_count) == (1.5, 2.0, 3.0, 10)
    assert (entry.wall_time_s, entry.config, entry.metrics) == (2.5, {"d": 1}, metrics)
    assert ExperimentLog(f"{config.output_dir}/results.jsonl").load() == [entry]
    assert entry.value("val_loss") is None and entry.value("peak_memory_mb") is None
    assert entry.value("acc") == 0.25


def test_finish_uses_the_log_that_was_given_even_when_it_is_empty(config, tmp_path):
    log = ExperimentLog(tmp_path / "mine.jsonl")
    entry = ExperimentRunner(config, log).finish({})
    assert log.load() == [entry] and entry.status == "keep" and entry.config == {}


def test_the_commit_is_eight_characters_of_the_one_checked_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() == "unknown"

    def git(*command):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(["git", *identity, *command], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_commit() == "unknown", "no commit yet"
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert git_commit() == git("rev-parse", "HEAD")[:8] and re.fullmatch("[0-9a-f]{8}", git_commit())
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "unknown", "no git installed"


def test_an_output_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^Cannot make the output folder .*file/out: Not a directory; choose another"):
        ExperimentRunner(ExperimentConfig(output_dir=str(tmp_path / "file" / "out")))

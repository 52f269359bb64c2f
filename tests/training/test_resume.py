"""A run that stops and goes on ends where an uninterrupted one does, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.training import EarlyStopping, FLOPCounter, RunFolder, ThroughputMonitor, TimeBudget, Trainer, ValTracker
from lmxlab.training.checkpoints import CheckpointError, read_metadata
from lmxlab.training.config import OPTIMIZERS

SCRIPT = Path(__file__).parent / "killable_run.py"


def everything(trainer: Trainer) -> dict[str, mx.array]:
    return dict(tree_flatten([trainer.model.parameters(), trainer.optimizer.state, list(mx.random.state)]))


def assert_identical(one: dict[str, mx.array], other: dict[str, mx.array]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and mx.array_equal(value, other[name]), name


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bit_exact(tmp_path: Path, optimizer: str, compiled: bool) -> None:
    """Dropout makes the random state count; the schedule's end makes its step count."""
    config = tiny_config(optimizer=optimizer, compile_step=compiled, max_steps=9, grad_accumulation_steps=2)

    def fresh(seed: int) -> Trainer:
        return Trainer(tiny_model(dropout=0.3, seed=seed), config, callbacks=[StopAfter(4)])

    straight = fresh(0)
    straight.callbacks = []
    expected = straight.train(Cursor())
    final = everything(straight)

    first = fresh(0)
    history = first.train(Cursor())
    first.save(tmp_path / "c")
    second = fresh(5)
    second.callbacks = []
    mx.random.seed(77)
    assert second.restore(tmp_path / "c")["step"] == second.step == 4
    history += second.train(Cursor())
    assert history == expected
    assert_identical(everything(second), final)


class StopAfter:
    def __init__(self, step: int):
        self.step = step
        self.should_stop = False

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.should_stop = step >= self.step


def test_restoring_into_a_trainer_that_already_compiled_its_step(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), tiny_config(compile_step=True))
    trainer.train_step(batch(0))
    trainer.save(tmp_path / "c")
    once = trainer.train_step(batch(1))
    trainer.train_step(batch(2))
    trainer.restore(tmp_path / "c")
    assert trainer.train_step(batch(1)) == once


def test_callbacks_go_on_with_their_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def callbacks(model: Any) -> list[Any]:
        return [
            ThroughputMonitor(100, tokens_per_step=48),
            FLOPCounter(10.0, flop_budget=75.0, log_interval=100),
            EarlyStopping(patience=100),
            ValTracker(model, [batch(99)], eval_interval=100),
            TimeBudget(1000.0),
        ]

    config = tiny_config(max_steps=20, eval_interval=2)
    models = tiny_model(), tiny_model(seed=1)
    first = Trainer(models[0], config, callbacks=[*callbacks(models[0]), StopAfter(5)])
    first.train(Cursor(), [batch(99)])
    first.save(tmp_path / "c")
    second = Trainer(models[1], config, callbacks=callbacks(models[1]))
    second.restore(tmp_path / "c")
    history = second.train(Cursor(), [batch(99)])
    assert second.step == 8  # 8 steps of 10 FLOPs reach 75
    assert history[0]["tokens_processed"] == 6 * 48
    assert history[0]["init_val_loss"] == first.callbacks[3].init_val_loss
    assert second.callbacks[2].best_loss <= first.callbacks[2].best_loss
    saved = read_metadata(tmp_path / "c")["callbacks"]
    assert second.callbacks[4].elapsed > saved["TimeBudget"]["elapsed"] > 0
    assert capsys.readouterr().out.count("init_val_loss=") == 1


def test_another_training_config_is_refused_naming_the_fields(tmp_path: Path) -> None:
    Trainer(tiny_model(), tiny_config()).save(tmp_path / "c")
    other = Trainer(tiny_model(), tiny_config(learning_rate=1e-2, max_steps=9, eval_interval=3))
    expected = (
        "another training config: learning_rate was 0.003, now 0.01; max_steps was 8, now 9. Resume with the same"
    )
    with pytest.raises(CheckpointError, match=expected):
        other.restore(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"config: max_steps was 8, now 9\."):
        other.restore(tmp_path / "c", ignore=["learning_rate"])
    assert other.restore(tmp_path / "c", ignore=["learning_rate", "max_steps"])["step"] == 0


def test_a_field_that_is_newer_than_the_checkpoint_had_its_default(tmp_path: Path) -> None:
    Trainer(tiny_model(), tiny_config()).save(tmp_path / "c")
    file = tmp_path / "c" / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["config"]["cautious_decay"]
    file.write_text(json.dumps(metadata))
    assert Trainer(tiny_model(), tiny_config()).restore(tmp_path / "c")["step"] == 0
    with pytest.raises(CheckpointError, match="cautious_decay was False, now True"):
        Trainer(tiny_model(), tiny_config(cautious_decay=True)).restore(tmp_path / "c")


def test_another_model_config_is_refused(tmp_path: Path) -> None:
    from lmxlab.models.base import LanguageModel
    from lmxlab.models.families import FAMILIES

    models = [LanguageModel(FAMILIES[name].tiny()) for name in ("gpt", "llama")]
    Trainer(models[0], tiny_config()).save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="another model config: block was"):
        Trainer(models[1], tiny_config()).restore(tmp_path / "c")
    assert Trainer(LanguageModel(models[0].config), tiny_config()).restore(tmp_path / "c")["step"] == 0


def test_weights_alone_are_no_training_state(tmp_path: Path) -> None:
    from lmxlab.training import save_checkpoint

    save_checkpoint(tmp_path / "c", tiny_model())
    with pytest.raises(CheckpointError, match="holds weights but no training state"):
        Trainer(tiny_model(), tiny_config()).restore(tmp_path / "c")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, str(SCRIPT), str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(folder: Path, *arguments: str) -> int:
    process = start(folder, *arguments)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return process.returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder) == 0
    return folder


def assert_same_end(folder: Path, uninterrupted: Path) -> None:
    ours, theirs = (mx.load(str(path / "final.safetensors")) for path in (folder, uninterrupted))
    assert_identical(ours, theirs)
    assert RunFolder(folder).read_metrics() == RunFolder(uninterrupted).read_metrics()


def signal_at_step(folder: Path, step: int, number: int) -> int:
    """Runs slowly, sends the signal once `step` is reported, returns the exit status."""
    process = start(folder, "", "0.05")
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == step:
            process.send_signal(number)
            break
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize("step", [1, 5, 6])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, uninterrupted: Path, step: int) -> None:
    assert signal_at_step(tmp_path, step, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "final.safetensors").exists()
    assert run(tmp_path) == 0
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize("point", ["arrays", "metadata", "rename"])
def test_a_run_killed_in_the_middle_of_a_save_goes_on_from_the_last_whole_one(
    tmp_path: Path, uninterrupted: Path, point: str
) -> None:
    assert run(tmp_path, point) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "checkpoints").glob(".tmp-*")]  # it was killed within the save
    latest = RunFolder(tmp_path).latest_checkpoint()
    assert latest is not None and latest.name == "step-000000004"
    assert run(tmp_path) == 0
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_and_saves_it(tmp_path: Path, uninterrupted: Path, number: int) -> None:
    assert signal_at_step(tmp_path, 5, number) == 0
    latest = RunFolder(tmp_path).latest_checkpoint()
    assert latest is not None and latest.name in ("step-000000005", "step-000000006")
    assert run(tmp_path) == 0
    assert_same_end(tmp_path, uninterrupted)

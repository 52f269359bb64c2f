"""Run folders: names, metrics that survive crashes, retention, the latest and the best."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.errors import UserError
from lmxlab.files import atomic_write, to_json
from lmxlab.training import RunFolder, Trainer
from lmxlab.training.checkpoints import read_metadata


def steps(folder: RunFolder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.checkpoints.glob("step-*"))


def test_every_run_gets_its_own_folder(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path, "gpt") for _ in range(20)]
    assert len({folder.path for folder in folders}) == 20
    assert {folder.path.parent for folder in folders} == {tmp_path / "gpt"}
    assert folders[0].checkpoints.is_dir() and folders[0].samples.is_dir()


def test_reading_a_folder_makes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "no-run")
    assert folder.read_metrics() == [] and folder.latest_checkpoint() is None and folder.best_checkpoint() is None
    assert not folder.path.exists()


def test_a_folder_goes_only_while_nothing_is_in_it(tmp_path: Path) -> None:
    unused, used = RunFolder.create(tmp_path, "gpt"), RunFolder.create(tmp_path, "gpt")
    used.append_metrics(1, {"loss": 1.0})
    unused.remove_unused()
    used.remove_unused()
    assert not unused.path.exists() and used.read_metrics()


def test_only_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).make()
    with folder.in_use():
        other = "import sys; from lmxlab.training import RunFolder\nwith RunFolder(sys.argv[1]).in_use(): pass"
        done = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert "Another process is training in" in done.stderr
    with RunFolder(tmp_path).in_use():
        pass


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\\b"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="usable as a folder name"):
        RunFolder.create(tmp_path, name)


def test_a_place_that_cannot_hold_folders_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot make a run folder in .*file"):
        RunFolder.create(tmp_path / "file", "gpt")


def test_metrics_are_lines_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    for step in (1, 2, 3):
        folder.append_metrics(step, {"loss": 1 / step})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert folder.read_metrics() == [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]


def test_a_line_after_a_torn_one_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics(1, {"loss": 1.0})
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    folder.append_metrics(2, {"loss": 0.5})
    assert [row["step"] for row in folder.read_metrics()] == [1, 2]


def test_rewinding_drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.append_metrics(step, {"loss": 1.0})
    folder.rewind_metrics(2)
    folder.append_metrics(3, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in folder.read_metrics()] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trainer = Trainer(tiny_model(), tiny_config(max_steps=100))
    for loss in (3.0, 1.0, 2.0, 2.0, 2.0):
        trainer.train_step(batch(trainer.step))
        folder.save_checkpoint(trainer, {"eval_loss": loss}, keep=2)
    assert steps(folder) == [2, 4, 5]
    assert folder.best_checkpoint() == folder.checkpoints / "step-000000002"
    assert folder.latest_checkpoint() == folder.checkpoints / "step-000000005"


def test_a_torn_checkpoint_is_neither_latest_nor_best_and_goes_at_the_next_save(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trainer = Trainer(tiny_model(), tiny_config())
    for loss in (2.0, 1.0):
        trainer.train_step(batch())
        folder.save_checkpoint(trainer, {"eval_loss": loss})
    weights = folder.checkpoints / "step-000000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert folder.latest_checkpoint() == folder.best_checkpoint() == folder.checkpoints / "step-000000001"
    (folder.checkpoints / "step-000000009").mkdir()  # no metadata: nothing was completed here
    (folder.checkpoints / ".tmp-step-000000003-x").mkdir()  # a save that was killed
    assert folder.latest_checkpoint() == folder.checkpoints / "step-000000001"
    trainer.train_step(batch())
    folder.save_checkpoint(trainer)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000000001", "step-000000003"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).latest_checkpoint() is None
    assert RunFolder(tmp_path).best_checkpoint() is None


def test_the_loop_saves_at_its_interval_and_at_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = tiny_config(max_steps=7, checkpoint_interval=3, eval_interval=3)
    Trainer(tiny_model(), config, checkpointer=folder.checkpointer(keep=10)).train(Cursor(), [batch(99)])
    assert steps(folder) == [3, 6, 7]
    assert read_metadata(folder.checkpoints / "step-000000003")["eval_loss"] > 0


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", "gpt")
    folder.save_checkpoint(Trainer(tiny_model(), tiny_config()))
    atomic_write(folder.config, to_json({"seed": 1}))
    folder.path.rename(tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved")
    latest = moved.latest_checkpoint()
    assert latest is not None
    assert Trainer(tiny_model(), tiny_config()).restore(latest)["step"] == 0
    assert json.loads(moved.config.read_text()) == {"seed": 1}

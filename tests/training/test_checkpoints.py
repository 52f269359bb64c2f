"""Checkpoints: round trips, torn ones, ones that do not fit, disks that are full."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.errors import UserError
from lmxlab.training import Trainer, checkpoints, create_optimizer, load_checkpoint, save_checkpoint
from lmxlab.training.checkpoints import CheckpointError, read_metadata


def test_weights_optimizer_and_metadata_come_back(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), tiny_config(optimizer="muon"))
    trainer.train(Cursor())
    path = tmp_path / "run" / "checkpoint"
    save_checkpoint(path, trainer.model, trainer.optimizer, step=8, metadata={"note": "x", "loss": 1.5})
    assert sorted(file.name for file in path.iterdir()) == [
        "metadata.json",
        "model.safetensors",
        "optimizer.safetensors",
    ]
    model, optimizer = tiny_model(seed=1), create_optimizer(trainer.config)
    assert load_checkpoint(path, model, optimizer) == {"step": 8, "note": "x", "loss": 1.5}
    for ours, theirs in ((model.parameters(), trainer.model.parameters()), (optimizer.state, trainer.optimizer.state)):
        saved = dict(tree_flatten(theirs))
        for name, value in tree_flatten(ours):
            assert mx.array_equal(value, saved[name]) and value.dtype == saved[name].dtype, name


def test_an_optimizer_that_a_compiled_step_holds_is_filled_in_place(tmp_path: Path) -> None:
    config = tiny_config(compile_step=True)
    trainer, other = Trainer(tiny_model(), config), Trainer(tiny_model(seed=1), config)
    for each in (trainer, other):
        each.train_step(batch())
    save_checkpoint(tmp_path / "c", trainer.model, trainer.optimizer)
    load_checkpoint(tmp_path / "c", other.model, other.optimizer)
    assert trainer.train_step(batch(1)) == other.train_step(batch(1))
    assert trainer.train_step(batch(2)) == other.train_step(batch(2))


def test_a_model_alone_needs_no_optimizer_nor_metadata(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tiny_model())
    assert load_checkpoint(tmp_path / "c", tiny_model(seed=1)) == {"step": 0}
    (tmp_path / "c" / "metadata.json").unlink()
    assert load_checkpoint(tmp_path / "c", tiny_model(seed=1)) == {}
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        load_checkpoint(tmp_path / "c", tiny_model(), create_optimizer(tiny_config()))


def test_bfloat16_and_counters_keep_their_types(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_dtype(mx.bfloat16)
    trainer = Trainer(model, tiny_config())
    trainer.train_step(batch())
    save_checkpoint(tmp_path / "c", model, trainer.optimizer)
    load_checkpoint(tmp_path / "c", model, trainer.optimizer)
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}
    assert trainer.optimizer.step.dtype == mx.uint64


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint in"):
        load_checkpoint(tmp_path / "none", tiny_model())


def test_another_model_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model)
    deeper, wider = tiny_model(seed=1), tiny_model(seed=1)
    deeper.blocks.append(tiny_model().blocks[0])
    before = mx.array(deeper.embed.weight)
    with pytest.raises(CheckpointError, match=r"blocks.2.down.bias, .* and 3 more missing from the file"):
        load_checkpoint(tmp_path / "c", deeper)
    assert mx.array_equal(deeper.embed.weight, before)
    wider.head.weight = mx.zeros((20, 16))
    with pytest.raises(CheckpointError, match=r"head.weight is \(20, 16\) float32, the file has \(17, 16\) float32"):
        load_checkpoint(tmp_path / "c", wider)
    half = tiny_model()
    half.set_dtype(mx.float16)
    with pytest.raises(CheckpointError, match="float16, the file has"):
        load_checkpoint(tmp_path / "c", half)


def test_another_optimizer_is_named(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), tiny_config(optimizer="lion"))
    save_checkpoint(tmp_path / "c", trainer.model, trainer.optimizer)
    other = Trainer(tiny_model(seed=1), tiny_config(optimizer="adamw"))
    before = mx.array(other.model.embed.weight)
    with pytest.raises(CheckpointError, match="the optimizer and .* do not fit: .*v.* missing"):
        load_checkpoint(tmp_path / "c", other.model, other.optimizer)
    assert mx.array_equal(other.model.embed.weight, before)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "metadata.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_torn_checkpoints_are_refused(tmp_path: Path, name: str, damage: object) -> None:
    trainer = Trainer(tiny_model(), tiny_config())
    trainer.save(tmp_path / "c")
    damage(tmp_path / "c" / name)  # type: ignore[operator]
    if damage is flip and name == "metadata.json":
        (tmp_path / "c" / name).write_text("[]")
    with pytest.raises(UserError, match=r"torn|no checkpoint|no training state"):
        trainer.restore(tmp_path / "c")


def test_saving_over_a_checkpoint_replaces_it(tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), tiny_config())
    trainer.save(tmp_path / "c")
    trainer.train_step(batch())
    trainer.save(tmp_path / "c")
    assert read_metadata(tmp_path / "c")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("failing", ["write_arrays", "_fingerprint"])
def test_an_error_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_model(), tiny_config())
    trainer.save(tmp_path / "c")
    trainer.train_step(batch())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, failing, full)
    with pytest.raises(CheckpointError, match="Cannot write the checkpoint .*: No space left on device. Earlier"):
        trainer.save(tmp_path / "c")
    monkeypatch.undo()
    assert read_metadata(tmp_path / "c")["step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


FULL_DISK = """
import resource, signal, sys
import lmxlab
import mlx.core as mx
from lmxlab.training import save_checkpoint
from lmxlab.training.checkpoints import CheckpointError
from tiny_lm import tiny_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes past the limit then fail as on a full disk
model = tiny_model()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    save_checkpoint(sys.argv[1], model)
except CheckpointError as error:
    print("CheckpointError:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("limit", [0, 100, 4096, 9000])
def test_a_write_that_stops_short_is_noticed(tmp_path: Path, limit: int) -> None:
    save_checkpoint(tmp_path / "c", tiny_model(), step=7)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "c"), str(limit)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert "CheckpointError: Cannot write the checkpoint" in done.stdout, done.stderr
    assert read_metadata(tmp_path / "c")["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert signal.SIGXFSZ


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save_checkpoint(tmp_path / "c", tiny_model())
    finally:
        tmp_path.chmod(0o700)


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    Trainer(tiny_model(), tiny_config()).save(tmp_path / "c")
    record = json.loads((tmp_path / "c" / "metadata.json").read_text())
    assert record["step"] == 0
    assert set(record["files"]) == {"model.safetensors", "optimizer.safetensors"}

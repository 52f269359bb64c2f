"""A run to be killed, as a process: python killable_run.py FOLDER [KILL_IN_SAVE] [PAUSE_S].

Goes on from the folder's latest checkpoint, prints a line per step, and writes `final.safetensors` at the end.
KILL_IN_SAVE (arrays, metadata, rename) kills the process at that point of the save of step 6.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tiny_lm import Cursor, batch, tiny_config, tiny_model

import lmxlab.files
from lmxlab.experiments.interrupt import Stop, stop_on_signals
from lmxlab.training import Callback, EarlyStopping, RunFolder, Trainer, checkpoints


class Log(Callback):
    def __init__(self, folder: RunFolder, pause_s: float):
        self.folder = folder
        self.pause_s = pause_s

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.folder.append_metrics(step, {"loss": metrics["loss"]})
        print(step, flush=True)
        time.sleep(self.pause_s)


class StopWhenAsked(Callback):
    def __init__(self, stop: Stop):
        self.stop = stop

    @property
    def should_stop(self) -> bool:
        return self.stop.requested


def kill_at(point: str, trainer: Trainer) -> None:
    """Arms a SIGKILL at a point of the save of step 6."""

    def wrap(module: Any, name: str) -> None:
        original = getattr(module, name)

        def killing(*args: Any) -> Any:
            if trainer.step == 6:
                if name != "rename":
                    original(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(module, name, killing)

    targets = {"arrays": (checkpoints, "write_arrays"), "metadata": (checkpoints, "_fingerprint")}
    wrap(*targets.get(point, (lmxlab.files.os, "rename")))


def main(path: str, kill: str = "", pause_s: str = "0") -> None:
    folder = RunFolder(Path(path))
    config = tiny_config(max_steps=12, checkpoint_interval=2, eval_interval=2, compile_step=True)
    with stop_on_signals() as stop:
        trainer = Trainer(
            tiny_model(dropout=0.3),
            config,
            callbacks=[EarlyStopping(patience=50), Log(folder, float(pause_s)), StopWhenAsked(stop)],
            checkpointer=folder.checkpointer(keep=2),
        )
        latest = folder.latest_checkpoint()
        if latest is not None:
            trainer.restore(latest)
        folder.rewind_metrics(trainer.step)
        if kill:
            kill_at(kill, trainer)
        trainer.train(Cursor(), [batch(99)])
    if trainer.step == config.max_steps:
        arrays = tree_flatten([trainer.model.parameters(), trainer.optimizer.state, list(mx.random.state)])
        mx.save_safetensors(str(folder.path / "final.safetensors"), dict(arrays))


if __name__ == "__main__":
    main(*sys.argv[1:])

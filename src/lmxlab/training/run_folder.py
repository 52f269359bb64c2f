"""A run's folder: config, tokenizer, metrics, checkpoints/, samples/, result.json, run.log. It can be moved."""

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmxlab.errors import UserError
from lmxlab.files import atomic_write, to_json
from lmxlab.training.checkpoints import CheckpointError, read_metadata

if TYPE_CHECKING:
    from lmxlab.training.trainer import Trainer

BEST_METRIC = "eval_loss"


class RunFolder:
    """The folder `path` and the names in it. Reading makes nothing; `make` and everything that writes do."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.result = self.path / "result.json"
        self.log = self.path / "run.log"

    def make(self) -> "RunFolder":
        """Makes the folder and those in it, where they are absent; UserError when that is not possible."""
        try:
            for folder in (self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot make the run folder {str(self.path)!r}: {error.strerror}. Choose another place."
            ) from error
        return self

    def remove_unused(self) -> None:
        """Removes the folder if no run was started in it, nor anything else put there."""
        for folder in (self.checkpoints, self.samples, self.path):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps other processes from training in this folder inside the block; UserError when one already does."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Another process is training in {str(self.path)!r}: wait for its end, or stop it first."
            ) from None
        except NotImplementedError:  # a file system without locks
            yield
            return
        try:
            yield
        finally:
            lock.release()

    @classmethod
    def create(cls, root: str | Path, name: str) -> "RunFolder":
        """A new folder `root/name/<id>`; ids sort by time and two processes never get the same one."""
        if not name or "/" in name or "\\" in name or name in (".", ".."):
            raise UserError(f"A run's name must be usable as a folder name, got {name!r}.")
        while True:
            path = Path(root) / name / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"Cannot make a run folder in {str(root)!r}: {error.strerror}.") from error
            return cls(path).make()

    def append_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds one line {"step": step, **metrics} to metrics.jsonl."""
        line = to_json({"step": step, **metrics}, indent=None) + "\n"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a crash cut the last line short; it must not spoil this one
                        line = "\n" + line
                file.write(line.encode())
        except OSError as error:
            raise UserError(f"Cannot write {self.metrics}: {error.strerror}; free some space, then resume.") from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in order; one that a crash cut short is skipped."""
        if not self.metrics.exists():
            return []
        rows = (_parse(line) for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines())
        return [row for row in rows if row is not None]

    def rewind_metrics(self, step: int, last: int | None = None) -> None:
        """Drops the lines that a run resumed at `step` will write again, and any torn one.

        Those are the lines after `step` and the evaluation at `last`, the run's last step, made after its checkpoint.
        """
        kept = [row for row in self.read_metrics() if row["step"] <= step]
        kept = [row for row in kept if row["step"] != last or "loss" in row]
        atomic_write(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def save_checkpoint(self, trainer: "Trainer", metrics: dict[str, Any] | None = None, keep: int = 3) -> Path:
        """Saves the trainer under checkpoints/step-<step>; keeps the last `keep` and the one of lowest eval_loss."""
        path = self.checkpoints / f"step-{trainer.step:09d}"
        score = (metrics or {}).get(BEST_METRIC)
        trainer.save(path, {} if score is None else {BEST_METRIC: score})
        self._prune(keep)
        return path

    def checkpointer(self, keep: int = 3) -> Callable[["Trainer", dict[str, Any]], None]:
        """For Trainer(checkpointer=...)."""

        def save(trainer: "Trainer", metrics: dict[str, Any]) -> None:
            self.save_checkpoint(trainer, metrics, keep)

        return save

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step whose files are all whole; torn ones are passed over."""
        return next((path for path in reversed(self._folders()) if _whole(path) is not None), None)

    def best_checkpoint(self, hashes: bool = True) -> Path | None:
        """The whole checkpoint of lowest eval_loss, None when none has one; without `hashes` only sizes are checked."""
        scores = {path: (_whole(path, hashes) or {}).get(BEST_METRIC) for path in self._folders()}
        scored = {path: score for path, score in scores.items() if score is not None}
        return min(scored, key=scored.__getitem__) if scored else None

    def _folders(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))

    def _prune(self, keep: int) -> None:
        """Removes all but the last `keep` checkpoints and the best, torn ones, and what a killed save left."""
        for left in self.checkpoints.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        whole = [path for path in self._folders() if _whole(path, hashes=False) is not None]
        kept = {*whole[-max(keep, 1) :], self.best_checkpoint(hashes=False)}
        for path in self._folders():
            if path not in kept:
                # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under its name.
                gone = path.with_name(f".tmp-old-{path.name}")
                os.rename(path, gone)
                shutil.rmtree(gone, ignore_errors=True)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _whole(path: Path, hashes: bool = True) -> dict[str, Any] | None:
    """The metadata of a checkpoint whose files are as written, else None."""
    try:
        return read_metadata(path, hashes) or None
    except CheckpointError:
        return None

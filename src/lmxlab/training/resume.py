"""Saving and restoring a Trainer so that the run goes on bit for bit."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lmxlab.training.checkpoints import CheckpointError, load_checkpoint, read_metadata, save_checkpoint
from lmxlab.training.config import TrainConfig

if TYPE_CHECKING:
    from lmxlab.training.trainer import Trainer

# Settings that decide when things are reported or saved, not what is computed.
FREE_FIELDS = ("eval_interval", "log_interval", "checkpoint_interval")


def save(trainer: "Trainer", path: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Writes a checkpoint with, beside the arrays, the config, random state, data cursor and callbacks' states."""
    record: dict[str, Any] = {
        **(metadata or {}),
        "config": trainer.config.to_dict(),
        "model_config": _plain_config(trainer.model),
        "random_state": [key.tolist() for key in _random_state()],
        "callbacks": {
            name: callback.state_dict()
            for name, callback in _named(trainer.callbacks)
            if hasattr(callback, "state_dict")
        },
    }
    if hasattr(trainer._data, "state_dict"):
        record["data"] = trainer._data.state_dict()
    elif "data" in trainer._resumed:
        record["data"] = trainer._resumed["data"]  # restored and saved again without a step between
    save_checkpoint(path, trainer.model, trainer.optimizer, trainer.step, record)


def restore(trainer: "Trainer", path: str | Path, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Fills the trainer from `path`; see Trainer.restore."""
    metadata = read_metadata(path)
    if "config" not in metadata:
        raise CheckpointError(f"{str(path)!r} holds weights but no training state: read it with load_checkpoint.")
    _same("model config", metadata["model_config"], _plain_config(trainer.model))
    saved = TrainConfig().to_dict() | metadata["config"]  # a field newer than the checkpoint had its default
    _same("training config", saved, trainer.config.to_dict(), {*FREE_FIELDS, *ignore})
    load_checkpoint(path, trainer.model, trainer.optimizer)
    # The state cannot be assigned to, but a seed is a key: its upper and lower 32 bits.
    ((high, low),) = metadata["random_state"]
    mx.random.seed(high << 32 | low)
    trainer.step = metadata["step"]
    trainer._resumed = metadata
    load_callbacks(trainer.callbacks, metadata["callbacks"])
    return metadata


def load_callbacks(callbacks: list[Any], states: dict[str, Any]) -> None:
    """Hands each callback its saved state; one that was not there when the run was saved starts fresh."""
    for name, callback in _named(callbacks):
        if name in states and hasattr(callback, "load_state_dict"):
            callback.load_state_dict(states[name])


def _random_state() -> Any:
    return mx.random.state


def _named(callbacks: list[Any]) -> list[tuple[str, Any]]:
    """Callbacks by class name, the second of a class as Name.1, so that adding another kind moves none."""
    seen: dict[str, int] = {}
    named = []
    for callback in callbacks:
        kind = type(callback).__name__
        count = seen[kind] = seen.get(kind, -1) + 1
        named.append((f"{kind}.{count}" if count else kind, callback))
    return named


def _plain_config(model: Any) -> Any:
    """The model's config as JSON gives it back, or None for a module without one."""
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return None
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _same(what: str, saved: Any, current: Any, free: Iterable[str] = ()) -> None:
    saved, current = saved or {}, current or {}
    differing = [key for key in sorted({*saved, *current} - set(free)) if saved.get(key) != current.get(key)]
    if differing:
        fields = "; ".join(f"{key} was {saved.get(key)!r}, now {current.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"The checkpoint was made with another {what}: {fields}. Resume with the same, or start a new run."
        )

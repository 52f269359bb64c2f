"""Checkpoints: a folder of model.safetensors, optimizer.safetensors and metadata.json, written whole or not at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from lmxlab.core.array_file import write_arrays
from lmxlab.errors import UserError
from lmxlab.files import atomic_directory

MODEL, OPTIMIZER, METADATA = "model.safetensors", "optimizer.safetensors", "metadata.json"
MANIFEST = "files"  # key of metadata.json: {file name: {"bytes", "sha256"}}


class CheckpointError(UserError):
    """A checkpoint that cannot be written, is torn, or does not fit what it is loaded into."""


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: optim.Optimizer | None = None,
    step: int = 0,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes the folder `path`: all parameters, the optimizer's state if given, and {"step": step, **metadata}.

    The folder appears complete or stays as it was. `metadata` holds JSON values. A full disk or a read-only
    folder raises CheckpointError.
    """
    try:
        with atomic_directory(path) as folder:
            write_arrays(folder / MODEL, dict(tree_flatten(model.parameters())))
            if optimizer is not None:
                write_arrays(folder / OPTIMIZER, dict(tree_flatten(optimizer.state)))
            manifest = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
            record = {"step": step, **(metadata or {}), MANIFEST: manifest}
            (folder / METADATA).write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"Cannot write the checkpoint {str(path)!r}: {error.strerror or error}. Earlier checkpoints are untouched; "
            "free some space or choose another folder, then continue from the last one."
        ) from error


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: optim.Optimizer | None = None) -> dict[str, Any]:
    """Fills the model, and the optimizer if given, from the folder `path`; returns its metadata ({} if it has none).

    Arrays are replaced inside the existing containers, so compiled steps that hold them see the new values. Raises
    CheckpointError when the folder is torn or when names, shapes or dtypes differ, before anything is changed.
    """
    path = Path(path)
    if not (path / MODEL).is_file():
        raise CheckpointError(f"There is no checkpoint in {str(path)!r}: it has no {MODEL}.")
    metadata = read_metadata(path)
    parameters = _load_arrays(path / MODEL)
    _compare(f"the model and {path / MODEL}", dict(tree_flatten(model.parameters())), parameters)
    state = None
    if optimizer is not None:
        if not (path / OPTIMIZER).is_file():
            raise CheckpointError(
                f"The checkpoint {str(path)!r} holds no optimizer state ({OPTIMIZER}); load it without one."
            )
        if not _initialised(optimizer):
            optimizer.init(model.trainable_parameters())
        state = _load_arrays(path / OPTIMIZER)
        _compare(f"the optimizer and {path / OPTIMIZER}", dict(tree_flatten(optimizer.state)), state)
    model.load_weights(list(parameters.items()))
    if state is not None and optimizer is not None:
        for name, value in state.items():
            _assign(optimizer.state, name, value)
        mx.eval(optimizer.state)
    mx.eval(model.parameters())  # the files may be deleted before the arrays are used
    return metadata


def read_metadata(path: str | Path, hashes: bool = True) -> dict[str, Any]:
    """The metadata of a checkpoint whose files are all there and whole; {} when it has no metadata.json.

    Raises CheckpointError naming the file that is missing, cut short or, with `hashes`, altered.
    """
    path = Path(path)
    if not (path / METADATA).exists():
        return {}
    try:
        metadata = json.loads((path / METADATA).read_text(encoding="utf-8"))
        manifest = metadata.pop(MANIFEST, {})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {str(path)!r} is torn: {METADATA} cannot be read ({error}).") from None
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"The checkpoint {str(path)!r} is torn: {name} is missing.")
        if file.stat().st_size != expected["bytes"] or (hashes and _fingerprint(file) != expected):
            raise CheckpointError(f"The checkpoint {str(path)!r} is torn: {name} is not what was written.")
    return dict(metadata)


def _load_arrays(file: Path) -> dict[str, mx.array]:
    try:
        return dict(mx.load(str(file)))  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"Cannot read {str(file)!r}, it is torn or no safetensors file: {error}") from None


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _compare(what: str, have: dict[str, mx.array], saved: dict[str, mx.array]) -> None:
    for kind, names in (("missing from the file", have.keys() - saved.keys()), ("unknown", saved.keys() - have.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(
                f"{what} do not fit: {shown} {kind}. Build the model and optimizer as they were saved."
            )
    for name, array in have.items():
        ours, theirs = (array.shape, array.dtype), (saved[name].shape, saved[name].dtype)
        if ours != theirs:
            raise CheckpointError(f"{what} do not fit: {name} is {_show(*ours)}, the file has {_show(*theirs)}.")


def _show(shape: tuple[int, ...], dtype: mx.Dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('mlx.core.')}"


def _initialised(optimizer: optim.Optimizer) -> bool:
    parts = optimizer.optimizers if isinstance(optimizer, optim.MultiOptimizer) else [optimizer]
    return all(part._initialized for part in parts)


def _assign(tree: Any, path: str, value: mx.array) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[int(key)] if isinstance(tree, list | tuple) else tree[key]
    tree[int(last) if isinstance(tree, list) else last] = value

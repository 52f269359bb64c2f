"""A teacher's distributions on disk: the k largest logits of each position, computed once for all students."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from lmxlab.core import kernels
from lmxlab.errors import UserError
from lmxlab.files import atomic_write, to_json
from lmxlab.models.base import LanguageModel, check_tokens, evaluating

TAILS = ("rest", "renormalise")
DTYPES = ("float16", "float32")
INDEX = "targets.json"
ARRAYS = ("x", "y", "indices", "values", "rest")

TargetBatch = tuple[mx.array, ...]


def write_targets(
    folder: str | Path,
    teacher: LanguageModel,
    batches: Iterable[tuple[mx.array, ...]],
    top_k: int,
    temperature: float = 4.0,
    dtype: str = "float16",
) -> int:
    """Writes what the teacher says of each batch, one compressed file per batch; returns how many there are.

    Each file appears whole or not at all. Called again with the same arguments, it goes on where it was stopped; a
    folder made with others, or with other text, is refused.

    Args:
        batches: a finite number of (x, y), each (B, T): the very batches that the student will be trained on.
        top_k: logits kept per position, up to the whole vocabulary.
        temperature: at which the probability of all other tokens together is kept.
        dtype: of the logits, which are kept relative to the largest: float16 is off by at most 1/2048 of that.

    Raises:
        UserError: the folder holds other targets, k or the temperature cannot work, or tokens that the teacher lacks.
    """
    vocab_size = teacher.config.vocab_size
    if not 1 <= top_k <= vocab_size:
        raise UserError(f"top_k is {top_k}; it must lie between 1 and the teacher's {vocab_size} tokens")
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature is {temperature}: it must be above 0")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; it must be one of {DTYPES}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"vocab_size": vocab_size, "top_k": top_k, "temperature": float(temperature), "dtype": dtype}
    settings["teacher"] = _fingerprint(teacher)
    if (folder / INDEX).exists():
        found = _read_index(folder)
        differ = [
            f"{key} was {found.get(key)!r}, now {value!r}" for key, value in settings.items() if found[key] != value
        ]
        if differ:
            raise UserError(f"{folder} holds other targets ({'; '.join(differ)}): choose another folder")
    else:
        atomic_write(folder / INDEX, to_json({**settings, "files": None}))
    n_files = 0
    with evaluating(teacher):
        for n_files, (x, y, *more) in enumerate(batches, start=1):
            if more:
                raise UserError(f"Targets are of batches (x, y), got {2 + len(more)} arrays: segments cannot be kept")
            check_tokens(x, vocab_size)
            path = _file(folder, n_files - 1)
            if path.exists():
                kept = _read(path)
                if not all(np.array_equal(kept[name], np.array(a)) for name, a in (("x", x), ("y", y))):
                    raise UserError(f"{path} holds the targets of another text: choose another folder")
                continue
            atomic_write(
                path,
                _compressed(x, y, *largest(teacher.logits(teacher.hidden_states(x)[0]), top_k, temperature), dtype),
            )
    if not n_files:
        raise UserError("There is no batch to write targets of: give at least one")
    atomic_write(folder / INDEX, to_json({**settings, "files": n_files}))
    return n_files


class TeacherTargets:
    """Endless batches (x, y, indices, values, rest) of what `write_targets` left, for a `Distillation` of it.

    Batches are those that were written; each epoch has them in an order drawn anew. The position can be saved and
    restored.

    Args:
        folder: what `write_targets` wrote, all of it.
        seed: decides the order.

    Raises:
        UserError: no such folder, one that is not finished, or a file that is gone.
    """

    def __init__(self, folder: str | Path, seed: int = 0):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise UserError(f"{self.folder} holds no targets of a teacher: make them with write_targets")
        index = _read_index(self.folder)
        if index["files"] is None:
            raise UserError(f"The targets in {self.folder} are not finished: call write_targets again, it will go on")
        self.vocab_size, self.top_k = int(index["vocab_size"]), int(index["top_k"])
        self.temperature, self.n_batches = float(index["temperature"]), int(index["files"])
        self.seed = seed
        self._hash = hashlib.sha256(to_json(index).encode()).hexdigest()
        gone = [_file(self.folder, n).name for n in range(self.n_batches) if not _file(self.folder, n).is_file()]
        if gone:
            raise UserError(
                f"{self.folder}: {gone[0]} and {len(gone) - 1} more files are gone: call write_targets again"
            )
        self._begin(epoch=0)

    def _begin(self, epoch: int, position: int = 0) -> None:
        self.epoch, self._position = epoch, position
        self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n_batches)

    def __iter__(self) -> "TeacherTargets":
        return self

    def __next__(self) -> TargetBatch:
        if self._position == self.n_batches:
            self._begin(self.epoch + 1)
        arrays = _read(_file(self.folder, int(self._order[self._position])))
        self._position += 1
        kinds = dict.fromkeys(("x", "y", "indices"), np.int32)
        return tuple(mx.array(arrays[name].astype(kinds.get(name, np.float32))) for name in ARRAYS)

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON values."""
        return {"epoch": self.epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; UserError when that was with other targets or another seed."""
        differ = [key for key, value in self._identity().items() if state.get(key) != value]
        if differ:
            raise UserError(
                f"The saved position is of other batches ({', '.join(differ)}): resume with the same targets"
            )
        self._begin(int(state["epoch"]), int(state["position"]))

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "targets": self._hash}


def largest(logits: mx.array, top_k: int, temperature: float) -> tuple[mx.array, mx.array, mx.array]:
    """The k largest of (..., V): indices and values (..., k), and the log of what all others add up to, (...).

    Values are relative to the largest logit m; the last is log sum exp((z - m) / T) over the tokens left out, and -inf
    where there are none.
    """
    logits = logits.astype(mx.float32)
    logits = logits - logits.max(axis=-1, keepdims=True)
    indices = mx.argpartition(-logits, top_k - 1, axis=-1)
    named, others = indices[..., :top_k], indices[..., top_k:]
    values = mx.take_along_axis(logits, named, axis=-1)
    if not others.shape[-1]:
        return named, values, mx.full(logits.shape[:-1], -mx.inf)
    return named, values, mx.logsumexp(mx.take_along_axis(logits, others, axis=-1) / temperature, axis=-1)


def coarse(
    student: mx.array, indices: mx.array, values: mx.array, rest: mx.array, temperature: float, tail: str
) -> tuple[mx.array, mx.array]:
    """Log-probabilities of student and teacher over the tokens that the targets name, and one outcome for all others.

    With tail "rest" the teacher's probability of that outcome is the true one. By the data processing inequality no
    divergence between the coarse distributions is larger than that between the whole ones, and it is 0 where those are
    equal. With "renormalise" the teacher's is 0: what is usually done, a target that is too sure of itself, which a
    student equal to the teacher does not meet. Where all tokens are named there is no other outcome.

    Args:
        student: logits (N, V).
        indices, values, rest: (N, k), (N, k), (N,), as `largest` makes them.

    Returns:
        Two of (N, k + 1), or (N, V).
    """
    teacher = values / temperature
    if indices.shape[-1] < student.shape[-1]:
        left = rest[:, None] if tail == "rest" else mx.full((len(rest), 1), -mx.inf)
        teacher = mx.concatenate([teacher, left], axis=-1)
    ours = kernels.coarse_log_softmax(student / temperature, indices)
    return ours, teacher - mx.logsumexp(teacher, axis=-1, keepdims=True)


def _compressed(x: mx.array, y: mx.array, indices: mx.array, values: mx.array, rest: mx.array, dtype: str) -> bytes:
    whole = np.array(indices)
    narrow = np.uint16 if whole.max(initial=0) < 2**16 else np.uint32
    file = io.BytesIO()
    logits = np.array(values).astype(dtype)
    np.savez_compressed(
        file, x=np.array(x), y=np.array(y), indices=whole.astype(narrow), values=logits, rest=np.array(rest)
    )
    return file.getvalue()


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it and call write_targets again") from None


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {key: index[key] for key in ("vocab_size", "top_k", "temperature", "dtype", "teacher", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is damaged ({error}): write the targets into another folder") from None


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _fingerprint(model: LanguageModel) -> str:
    """A hash of the model's weights."""
    digest = hashlib.sha256()
    leaves: Any = tree_flatten(model.parameters())
    for name, array in leaves:
        digest.update(name.encode())
        digest.update(np.array(array.astype(mx.float32)).tobytes())
    return digest.hexdigest()

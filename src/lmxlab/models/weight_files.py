"""The safetensors files of a Hugging Face folder, opened lazily: an array's bytes are read when it is computed with."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx

from lmxlab.errors import UserError, some

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """All weights of a folder: of model.safetensors, else of the shards that the index names, else of every file.

    Every file's length is checked against its header first: MLX itself finds out only in the middle of a computation.

    Raises:
        UserError: no safetensors file, pickles in their place, a shard that is missing, a file that is torn or is none,
            a name that is in two files, an index that is none.
    """

    def __init__(self, folder: Path):
        self._arrays: dict[str, mx.array] = {}
        for file in _files(folder):
            check_whole(file)
            try:
                arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]  # of a safetensors file
            except (RuntimeError, OSError) as error:
                raise UserError(f"{file} cannot be read as safetensors: {error}") from None
            if twice := arrays.keys() & self._arrays.keys():
                raise UserError(
                    f"{folder} holds {some(twice)} in {file.name} and in another file: leave those of one model there"
                )
            self._arrays |= arrays

    @property
    def names(self) -> set[str]:
        """Names of the arrays that have not been dropped."""
        return set(self._arrays)

    def read(self, name: str) -> mx.array:
        """The array of this name, lazy."""
        return self._arrays[name]

    def drop(self, name: str) -> None:
        """Forgets an array, so that its memory is free once it has been used."""
        self._arrays.pop(name, None)

    def remove_prefix(self, prefix: str) -> None:
        """Takes `prefix` away from the names that have it."""
        if prefix:
            self._arrays = {name.removeprefix(prefix): array for name, array in self._arrays.items()}


def check_whole(file: Path) -> None:
    """Raises UserError unless the file is as long as its safetensors header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > size:
                raise ValueError(length)
            header: dict[str, Any] = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} cannot be read as safetensors: its header is damaged; download it again") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    needed = 8 + length + max(ends, default=0)
    if size < needed:
        raise UserError(f"{file} is truncated: {size:,} of {needed:,} bytes are there; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file of the folder.

    Raises:
        UserError: it is not there, is no JSON, or holds something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"No {path.name} in {path.parent}; give a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} must hold a table of fields, not a {type(table).__name__}")
    return table


def _files(folder: Path) -> list[Path]:
    if (folder / WHOLE).is_file():  # transformers, too, takes it before an index
        return [folder / WHOLE]
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{folder / INDEX} is damaged: its weight_map must say in which file each weight is")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(f"{folder} lacks {some(missing)}, which its {INDEX} names: download the folder again")
    else:
        files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not files and pickles:
        raise UserError(
            f"{folder} has its weights in {some(pickles)}, which are pickles: reading one may run any code. Convert "
            "them to safetensors first, as transformers does with save_pretrained"
        )
    if not files:
        raise UserError(f"No .safetensors file in {folder}; save the model with safe serialization")
    return files

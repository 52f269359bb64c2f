"""Arrays written as safetensors, with the error that a failed write has everywhere else."""

from pathlib import Path
from typing import IO, cast

import mlx.core as mx


def write_arrays(file: Path | IO[bytes], arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Writes the arrays to the path or the open file.

    Raises:
        OSError: a full disk or another failed write, for which MLX has a RuntimeError.
    """
    target = str(file) if isinstance(file, Path) else file
    try:
        mx.save_safetensors(cast("str", target), arrays, metadata or {})
    except RuntimeError as error:
        where = file if isinstance(file, Path) else "the arrays"
        raise OSError(f"Cannot write {where}: {error}") from error

"""Files that survive a crash: written whole under another name, synced, then renamed."""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def fsync_directory(path: Path) -> None:
    """Makes a rename or a new name in `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_file(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[IO[bytes]]:
    """Yields an open file that becomes `path` when the block ends without an error, synced; the folder must exist.

    `check` gets the name of the finished file before the rename; if it raises, nothing is replaced.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(Path(name))
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    fsync_directory(path.parent)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Replaces the file `path` by `content`: a reader sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` (replacing it) when the block ends without an error.

    Every file is synced before the rename. A killed process leaves only a `.tmp-*` sibling, which nothing reads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".tmp-{path.name}-"))
    try:
        yield work
        for file in work.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        os.chmod(work, 0o755)
        if path.exists():
            # A folder cannot be replaced in one step: the old one steps aside under a name that readers ignore.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".tmp-old-{path.name}-"))
            os.rename(path, aside / path.name)
            os.rename(work, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    fsync_directory(path.parent)


def plain(value: Any) -> Any:
    """`value` in the types of strict JSON: NaN and infinities become None, arrays lists, anything unknown its text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and MLX arrays and scalars
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)


def to_json(value: Any, indent: int | None = 2) -> str:
    """`plain(value)` as strict JSON, which has no NaN."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)

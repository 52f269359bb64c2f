"""The ledger: one JSON line per finished run, appended so that nothing is lost when processes write at once or die."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmxlab.errors import UserError
from lmxlab.files import fsync_directory, to_json

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 60.0  # an append takes milliseconds: a lock held this long belongs to a process that hangs


@dataclass
class LogEntry:
    """The result of one run.

    A measurement (the fields from `val_bpb` to `wall_time_s`) at its default 0 or at NaN was not taken: it is left out
    of the ledger or written as null, and `value` says None for it.

    Attributes:
        experiment: name of the experiment or design.
        commit: version of the code, 8 characters.
        status: "keep", "discard" or "crash"; only "keep" can be best.
        val_bpb, val_loss, train_loss: bits per byte, nats per token, nats per token.
        total_flops: FLOPs spent in training; peak_memory_mb in 10^6 bytes; wall_time_s in seconds.
        config: everything needed to repeat the run; metrics: whatever else was measured.
        timestamp: seconds since 1970.
        extra: fields of a ledger line that this version does not know, written back unchanged.
    """

    experiment: str = ""
    commit: str = ""
    status: str = "keep"
    val_bpb: float = 0.0
    val_loss: float = 0.0
    train_loss: float = 0.0
    param_count: int = 0
    total_flops: float = 0.0
    peak_memory_mb: float = 0.0
    wall_time_s: float = 0.0
    description: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    timestamp: float = field(default_factory=time.time)
    seed: int = 42
    extra: dict[str, Any] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The number measured under that name in a field, `metrics` or `extra`; None when it is missing or not finite.

        >>> entry = LogEntry(val_bpb=1.5, metrics={"acc": 0})
        >>> entry.value("val_bpb"), entry.value("val_loss"), entry.value("acc")
        (1.5, None, 0.0)
        """
        own = getattr(self, metric) if metric in _FIELDS else None
        if metric in MEASUREMENTS and own == 0:
            own = None
        for found in (own, self.metrics.get(metric), self.extra.get(metric)):
            if isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found):
                return float(found)
        return None


_FIELDS = tuple(f.name for f in dataclasses.fields(LogEntry) if f.name != "extra")
_FLOAT_FIELDS = frozenset(f.name for f in dataclasses.fields(LogEntry) if f.type is float)
MEASUREMENTS = tuple(f.name for f in dataclasses.fields(LogEntry) if f.type in (int, float) and f.default == 0)


class ExperimentLog:
    """An append-only file of JSON lines, safe for several processes.

    `problems` lists, after each `load`, the lines that could not be read and were skipped.
    """

    def __init__(self, path: str | Path = "results.jsonl"):
        self.path = Path(path)
        self.problems: list[str] = []

    def log(self, entry: LogEntry) -> None:
        """Appends `entry`, durably: when this returns, the line is on the disk.

        Raises:
            UserError: the line could not be written (full disk, no permission, a lock that is never freed);
                the ledger then ends where it ended before.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            ledger = self.path.resolve()  # one lock per file, whatever link leads to it
            with FileLock(f"{ledger}.lock", timeout=LOCK_TIMEOUT_S):
                _append(ledger, _to_line(entry))
        except Timeout:
            raise UserError(
                f"The ledger {self.path} is locked by another process for {LOCK_TIMEOUT_S:.0f} s now: end that process"
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, FileExistsError):  # from mkdir, whose own words would mislead
                reason = "its folder is a file"
            raise UserError(
                f"Cannot write the ledger {self.path}: {reason}; free some space or choose a path that can be written"
            ) from error

    def load(self) -> list[LogEntry]:
        """All readable entries in the order they were written; [] when there is no file yet."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise UserError(f"Cannot read the ledger {self.path}: {error.strerror}") from error
        entries: list[LogEntry] = []
        problems: list[str] = []
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                entries.append(_from_line(line))
            except (ValueError, RecursionError):
                problems.append(f"{self.path} line {number} is torn or no entry ({len(line)} bytes): skipped")
        for problem in problems:
            if problem not in self.problems:  # a ledger that is polled warns once
                logger.warning(problem)
        self.problems = problems
        return entries

    def best(self, metric: str = "val_bpb", lower_is_better: bool = True) -> LogEntry | None:
        """The kept entry with the lowest (or highest) measured `metric`; the earlier of equals, or None."""
        measured = [(value, e) for e in self.load() if e.status == "keep" and (value := e.value(metric)) is not None]
        if not measured:
            return None
        choose = min if lower_is_better else max
        return choose(measured, key=lambda pair: pair[0])[1]

    def summary(self) -> dict[str, Any]:
        """`total`, `kept`, `discarded`, `crashed` and `best_val_bpb` (or None); {"total": 0} when empty."""
        entries = self.load()
        if not entries:
            return {"total": 0}
        statuses = [entry.status for entry in entries]
        kept = (entry.value("val_bpb") for entry in entries if entry.status == "keep")
        return {
            "total": len(entries),
            "kept": statuses.count("keep"),
            "discarded": statuses.count("discard"),
            "crashed": statuses.count("crash"),
            "best_val_bpb": min((value for value in kept if value is not None), default=None),
        }


def _append(path: Path, line: bytes) -> None:
    """Adds `line` to the file and syncs it; on any error the file is cut back. The caller holds the lock."""
    is_new = not path.exists()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # the last writer died in its line: it must not swallow this one
        try:
            written = 0
            while written < len(line):  # a disk that fills up takes a part first and fails on the rest
                written += os.write(fd, line[written:])
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
    if is_new:
        fsync_directory(path.parent)


def _to_line(entry: LogEntry) -> bytes:
    row = {name: getattr(entry, name) for name in _FIELDS}
    for name in MEASUREMENTS:
        if row[name] == 0:
            del row[name]
    # ASCII and no NaN literal: every JSON reader takes the line.
    return to_json({**entry.extra, **row}, indent=None).encode() + b"\n"


def _from_line(line: bytes) -> LogEntry:
    """Raises ValueError for anything that is not the line of an entry."""
    row = json.loads(line)
    if not isinstance(row, dict) or not all(isinstance(row.get(name) or {}, dict) for name in ("config", "metrics")):
        raise ValueError("not an entry")
    known: dict[str, Any] = {"timestamp": math.nan}  # a line without a time was not written now
    for name in _FIELDS:
        if name in row:
            value = row.pop(name)
            if value is not None:
                known[name] = value
            elif name in _FLOAT_FIELDS:  # written as null because it was not finite
                known[name] = math.nan
    return LogEntry(**known, extra=row)

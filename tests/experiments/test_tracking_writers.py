"""The ledger loses nothing to a second writer, a full disk, a kill, or a folder that cannot be written."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lmxlab.errors import UserError
from lmxlab.experiments.tracking import ExperimentLog

from .conftest import KEPT


def run_python(code: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, check=False)


WRITER = """
import sys
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
log = ExperimentLog(sys.argv[1])
for i in range(40):
    log.log(LogEntry(experiment=sys.argv[2], seed=i, description="x" * 9000))
"""


def test_processes_that_write_at_once_lose_nothing(log):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(log.path), name]) for name in "abcd"]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    entries = log.load()
    assert log.problems == []
    for name in "abcd":
        assert [e.seed for e in entries if e.experiment == name] == [*range(40)]


KILLED = """
import os, signal, sys
from lmxlab.experiments import tracking
real = os.write
def half_then_die(fd, data):
    real(fd, bytes(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = half_then_die
tracking.ExperimentLog(sys.argv[1]).log(tracking.LogEntry(experiment="killed"))
"""


def test_a_kill_in_the_middle_of_an_append_costs_that_line_only(log):
    log.log(KEPT)
    assert run_python(KILLED, str(log.path)).returncode == -9
    assert log.load() == [KEPT]
    assert len(log.problems) == 1
    log.log(KEPT)  # the lock of the dead is free
    assert log.load() == [KEPT, KEPT]


FULL_DISK = """
import resource, sys
from lmxlab.errors import UserError
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
log = ExperimentLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    log.log(LogEntry(experiment="too long", description="x" * 5000))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("tail", [b"", b'{"torn'])
def test_a_disk_that_fills_up_leaves_the_ledger_as_it_was(log, tail):
    log.log(KEPT)
    with log.path.open("ab") as file:
        file.write(tail)
    before = log.path.read_bytes()
    result = run_python(FULL_DISK, str(log.path), str(len(before) + 2000))  # the first write is a partial one
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Cannot write the ledger {log.path}: File too large")
    assert log.path.read_bytes() == before


def test_an_interrupt_in_the_middle_of_an_append_leaves_the_ledger_as_it_was(log, monkeypatch):
    log.log(KEPT)
    before = log.path.read_bytes()

    def interrupted(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log.log(KEPT)
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.log(KEPT)  # the lock is free again
    assert log.load() == [KEPT, KEPT]


def test_every_append_is_synced_before_it_returns(log, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append((os.fstat(fd).st_ino, os.fstat(fd).st_size))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    log.log(KEPT)
    stat = log.path.stat()
    assert (stat.st_ino, stat.st_size) in synced
    assert any(inode == log.path.parent.stat().st_ino for inode, _ in synced), "the new name is durable too"


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^Cannot write the ledger .*results\.jsonl: its folder is a file; .+$"):
        ExperimentLog(tmp_path / "file" / "results.jsonl").log(KEPT)
    with pytest.raises(UserError, match=r"^Cannot write the ledger .*: Is a directory; .+$"):
        ExperimentLog(tmp_path).log(KEPT)
    with pytest.raises(UserError, match=r"^Cannot read the ledger .*: Is a directory$"):
        ExperimentLog(tmp_path).load()


def test_a_read_only_folder_is_one_clear_line_and_can_still_be_read():
    with tempfile.TemporaryDirectory() as folder:
        log = ExperimentLog(Path(folder) / "results.jsonl")
        log.log(KEPT)
        log.path.with_name("results.jsonl.lock").unlink(missing_ok=True)
        os.chmod(folder, 0o555)
        is_root = os.geteuid() == 0
        try:
            if is_root:  # nothing is read-only to root
                os.seteuid(65534)
            with pytest.raises(UserError, match="Permission denied"):
                log.log(KEPT)
            assert log.load() == [KEPT]
        finally:
            if is_root:
                os.seteuid(0)
            os.chmod(folder, 0o755)


def test_a_lock_that_is_never_freed_is_one_clear_line(log, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("lmxlab.experiments.tracking.LOCK_TIMEOUT_S", 0.05)
    with FileLock(f"{log.path.resolve()}.lock"), pytest.raises(UserError, match="is locked by another process for"):
        log.log(KEPT)
    log.log(KEPT)
    assert log.load() == [KEPT]


def test_a_link_to_the_ledger_takes_the_same_lock(log, tmp_path):
    from filelock import FileLock

    log.log(KEPT)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.jsonl"
    link.symlink_to(log.path)
    ExperimentLog(link).log(KEPT)
    assert log.load() == [KEPT, KEPT]
    assert not list((tmp_path / "elsewhere").glob("*.lock"))
    with FileLock(f"{log.path.resolve()}.lock"):
        pass

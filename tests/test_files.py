"""Files that survive a crash."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from lmxlab import files
from lmxlab.files import atomic_directory, atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "config.json"
    atomic_write(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["config.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    atomic_write(path, "old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "checkpoint"
    with atomic_directory(path) as work:
        (work / "weights").mkdir()
        (work / "weights" / "a").write_text("1")
        assert not path.exists()
    with atomic_directory(path) as work:
        (work / "b").write_text("2")
        assert names(path) == ["weights"]
    assert names(path) == ["b"]
    assert names(tmp_path) == ["checkpoint"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_an_error_while_writing_leaves_the_old_folder_and_no_other(tmp_path):
    path = tmp_path / "checkpoint"
    with atomic_directory(path) as work:
        (work / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_directory(path) as work:
        (work / "a").write_text("2")
        raise KeyboardInterrupt
    assert (path / "a").read_text() == "1"
    assert names(tmp_path) == ["checkpoint"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_killed_at_any_moment_a_reader_finds_the_old_or_the_new_folder_whole(tmp_path):
    code = """
import sys
from pathlib import Path
from lmxlab.files import atomic_directory
path = Path(sys.argv[1])
for i in range(10**9):
    with atomic_directory(path) as work:
        (work / "a").write_text(str(i))
        (work / "b").write_text(str(i))
    if i == 0:
        print("begun", flush=True)
"""
    for round_ in range(5):
        path = tmp_path / str(round_) / "checkpoint"
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.01 + 0.007 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        # Between the two renames of a replacement only the one that stepped aside is whole.
        whole = [path] if path.exists() else list(path.parent.glob(".tmp-old-*/checkpoint"))
        assert len(whole) == 1
        assert (whole[0] / "a").read_text() == (whole[0] / "b").read_text() != ""


def test_every_file_of_a_folder_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(fd):
        assert not (tmp_path / "whole" / "a").exists() or os.path.isdir(f"/proc/self/fd/{fd}")
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with files.atomic_directory(tmp_path / "whole") as work:
        (work / "a").write_text("a")
        (work / "b").mkdir()
        (work / "b" / "c").write_text("c")
        inodes = {path.stat().st_ino for path in (work / "a", work / "b" / "c")}
    assert inodes <= set(synced)

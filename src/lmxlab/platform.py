"""The machine beneath MLX: whether `mx.compile` works, cores, device, memory, speed. (The BLAS is in `lmxlab.blas`.)

mlx is imported inside the functions: importing this module must not, or it would come before the fast BLAS.
"""

import contextlib
import functools
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def physical_cores() -> int:
    """Cores that this process may use: hyper-threads count once, affinity and a container's quota are respected."""
    if sys.platform != "linux":
        import psutil

        return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return max(1, min(len(cores), _cpu_quota()))


def _cpu_quota(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that the control group grants (2 for docker's --cpus=1.5), or a number larger than any machine's."""
    unlimited = 1 << 20
    try:
        if (groups / "cpu.max").exists():  # version 2
            quota, period = (groups / "cpu.max").read_text().split()
        else:
            quota, period = ((groups / f"cpu/cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else unlimited
    except (OSError, ValueError):  # no control group; "max"
        return unlimited


def keep_freed_memory() -> None:
    """Has the C library keep what MLX frees for the next allocation, instead of giving it back to the system.

    MLX allocates every result anew, and glibc returns large blocks at once: then each operation begins with a page
    fault per 4 KiB of its result, a tenth of a training step. The peak stays as it is.
    """
    if sys.platform != "linux" or os.environ.get("MALLOC_MMAP_MAX_"):
        return
    import ctypes

    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max, arena_max = -1, -4, -8
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(arena_max, 1)


def compile(fn: F, **options: Any) -> F:
    """`mx.compile(fn, **options)` that runs `fn` as it is where compiling does not work (see `can_compile`)."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import mlx.core as mx

        can_compile()
        return mx.compile(fn, **options)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call  # type: ignore[return-value]  # wraps() keeps the signature


@functools.cache
def can_compile() -> bool:
    """Whether `mx.compile` fuses on the default device; if not, it is switched off for the process, with one warning.

    On a CPU it needs g++ and a temporary folder to write its kernels to: `$TMPDIR/mlx` (or `/tmp/mlx`). Without g++ MLX
    runs the plain operations, but where the folder is missing, full or another user's it raises in the middle of
    a step. So this is called before the first step, which `compile` of this module does; everything works uncompiled.
    """
    import mlx.core as mx

    if os.environ.get("MLX_DISABLE_COMPILE"):
        return False
    if mx.default_device() == mx.gpu:
        return True
    problem = compile_problem()
    if problem:
        logger.warning("Running uncompiled, which is slower: %s", problem)
        mx.disable_compile()
    return problem is None


def compile_problem() -> str | None:
    """Why `mx.compile` cannot work on the CPU and what to do, found by compiling something small; None if it works."""
    import mlx.core as mx

    if shutil.which("g++") is None:
        install = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
        return f"no g++ found: {install}"
    try:
        with mx.stream(mx.cpu):
            x = mx.array([1.0, 2.0])
            mx.eval(mx.compile(lambda x: mx.sqrt(x) * 2 + 1)(x))
    except RuntimeError as error:
        reason = str(error).split("\n")[0][:100]
        return f"MLX cannot keep compiled kernels in the temporary folder ({reason}): set TMPDIR to one with space"
    return None


def device_name() -> str:
    """The processor or GPU that MLX computes on by default."""
    import mlx.core as mx

    if mx.default_device() == mx.gpu:
        return str(mx.device_info(mx.gpu)["device_name"])
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpu.read_text(), re.M) if cpu.exists() else None
    return model[1] if model else os.uname().machine


def memory_bytes() -> tuple[int, int]:
    """Main memory in bytes: all of it, and what is available now."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def peak_memory_bytes() -> int:
    """The most main memory in bytes that this process has held at once."""
    if sys.platform == "linux":
        # Not getrusage: its maximum survives exec, so a child would report its parent's.
        status = Path("/proc/self/status").read_text()
        held = re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)
        if held:
            return int(held[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_flops_per_s(n: int = 1024, seconds: float = 0.3) -> float:
    """Floating-point operations per second of (n, n) float32 matrix products on the default device, best of many."""
    import mlx.core as mx

    a = mx.random.normal((n, n), key=mx.random.key(0))
    mx.eval(a @ a)  # warms up
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        mx.eval(a @ a)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

"""A fast BLAS under MLX on a Linux CPU.

The mlx-cpu wheel for Linux links the reference BLAS, tens of times slower than a good one. Importing lmxlab calls
`load_blas` before anything imports `mlx.core`, which is when MLX binds its matrix product for good: so nothing here may
import mlx while this module is being imported.
"""

import ctypes
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmxlab.platform import physical_cores

logger = logging.getLogger(__name__)

# Installed with lmxlab: ngsolve-openblas on x86-64, cmeel-openblas on aarch64. Paths under a folder of sys.path.
WHEEL_BLAS = ("ngsolve_openblas/libopenblas*.so*", "cmeel.prefix/lib/libopenblas.so.0")
# Else what the dynamic loader finds. Fedora's libopenblas.so.0 is the one without threads: libopenblasp comes first.
SYSTEM_BLAS = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.3", "libmkl_rt.so.2")
INSTALL_BLAS = {"x86_64": "pip install ngsolve-openblas", "aarch64": "pip install cmeel-openblas"}


@dataclass(frozen=True)
class Blas:
    """The library that computes MLX's matrix products on the CPU.

    Attributes:
        name: as it calls itself.
        path: of the library; None for the one that is part of MLX or of the system.
        threads: that it uses; None where it is not ours to say.
        problem: what went wrong and what to do; None when this is as fast as it gets, or as the user asked.
    """

    name: str
    path: str | None = None
    threads: int | None = None
    problem: str | None = None


@functools.cache
def load_blas() -> Blas:
    """Makes a fast BLAS the one that `mlx.core` will bind, once per process; a warning of one line says when it cannot.

    A library loaded with RTLD_GLOBAL before `mlx.core` comes first in the search order of MLX's symbols.

    Environment: LMXLAB_BLAS=off leaves everything alone, LMXLAB_BLAS=PATH loads that library; OPENBLAS_NUM_THREADS,
    MKL_NUM_THREADS or OMP_NUM_THREADS set the threads, which otherwise are the physical cores.
    """
    if sys.platform != "linux":
        return Blas("Accelerate" if sys.platform == "darwin" else "MLX's own")
    choice = os.environ.get("LMXLAB_BLAS", "")
    if choice == "off":
        return Blas("MLX's own (LMXLAB_BLAS=off)")
    already = library_of("cblas_sgemm")
    if "mlx.core" in sys.modules:
        # Too late for us, but MLX may have been built on a fast one, or have found one that was preloaded.
        blas = already or library_of("cblas_sgemm", _libmlx())
        if blas and not Path(blas).name.startswith("libblas"):
            return Blas(_name(ctypes.CDLL(blas), blas), blas)
        advice = "mlx.core was imported before lmxlab, too late to give it a fast BLAS: import lmxlab first"
        return _without(advice, silent=_on_gpu())
    if already and not choice:
        return Blas(_name(ctypes.CDLL(already), already), already)
    for path in (choice,) if choice else _candidates():
        library = _open(path)
        if library is not None:
            return Blas(_name(library, path), library_of("cblas_sgemm"), _set_threads(library))
    if choice:
        return _without(f"LMXLAB_BLAS={choice} could not be loaded as a BLAS: give the path of one, or 'off'")
    install = INSTALL_BLAS.get(os.uname().machine, "apt-get install libopenblas0")
    return _without(f"no fast BLAS found: {install}", silent=_has_cuda())


def _without(problem: str, silent: bool = False) -> Blas:
    if not silent:
        logger.warning("Matrix products will be tens of times slower than they could be: %s", problem)
    return Blas("the reference BLAS of the mlx-cpu wheel", problem=problem)


def _candidates() -> Iterator[str]:
    for folder in map(Path, sys.path):
        for pattern in WHEEL_BLAS:
            yield from map(str, sorted(folder.glob(pattern)))
    yield from SYSTEM_BLAS


def _open(path: str) -> ctypes.CDLL | None:
    """Loads the library for all to see; None when it cannot be loaded or is no BLAS."""
    try:
        if os.path.sep in path:
            _provide_libgfortran()
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        logger.debug("%s", error)
        return None
    return library if hasattr(library, "cblas_sgemm") else None


def _provide_libgfortran() -> None:
    """Lets a library that needs libgfortran.so.5 load where the system has none, as on most fresh machines.

    OpenBLAS takes two functions of it. MLX's wheel carries it, but under a name of its own (auditwheel's), and the
    loader goes by the name inside the file (SONAME): so a copy in memory, with the name put right, is loaded first.
    """
    try:
        ctypes.CDLL("libgfortran.so.5")
        return
    except OSError:
        pass
    for folder in map(Path, sys.path):
        for path in sorted(folder.glob("*.libs/libgfortran-*.so.5*")):
            ctypes.CDLL(str(path))  # brings what it needs itself, found beside it
            name = path.name.encode() + b"\0"
            content = path.read_bytes().replace(name, b"libgfortran.so.5".ljust(len(name), b"\0"))
            with os.fdopen(os.memfd_create("libgfortran.so.5"), "wb") as file:
                file.write(content)
                file.flush()
                ctypes.CDLL(f"/proc/self/fd/{file.fileno()}")
            return


def _threads_setter(library: ctypes.CDLL) -> Callable[[int], None] | None:
    for function in ("openblas_set_num_threads", "MKL_Set_Num_Threads"):
        if hasattr(library, function):
            setter: Callable[[int], None] = getattr(library, function)
            return setter
    return None


def _set_threads(library: ctypes.CDLL) -> int | None:
    """One thread per physical core, unless the user said how many: two hyper-threads share one multiplier."""
    set_threads = _threads_setter(library)
    if set_threads is None:
        return None
    threads = physical_cores()
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdigit():
            threads = int(os.environ[variable])
            break
    set_threads(threads)
    return threads


def _name(library: ctypes.CDLL, path: str) -> str:
    if not hasattr(library, "openblas_get_config"):
        return Path(path).name
    config, core = library.openblas_get_config, library.openblas_get_corename
    config.restype = core.restype = ctypes.c_char_p
    version = re.match(r"OpenBLAS \S+", config().decode())
    return f"{version[0] if version else 'OpenBLAS'} ({core().decode()})"


class _DlInfo(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def library_of(symbol: str, library: str | None = None) -> str | None:
    """Path of the library where the whole process (or `library` alone) finds `symbol`; None if nowhere."""
    everything = ctypes.CDLL(None)
    try:
        function = getattr(ctypes.CDLL(library), symbol)
    except (AttributeError, OSError):
        return None
    info = _DlInfo()
    everything.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    return os.path.realpath(info.file.decode()) if info.file else None


def _libmlx() -> str:
    return str(Path(sys.modules["mlx.core"].__file__ or "").with_name("lib") / "libmlx.so")


def _has_cuda() -> bool:
    import importlib.metadata  # slow to import, and seldom needed

    names = ("mlx-cuda-12", "mlx-cuda-13")
    return any(list(importlib.metadata.distributions(name=name)) for name in names)


def _on_gpu() -> bool:
    import mlx.core as mx

    return bool(mx.default_device() == mx.gpu)

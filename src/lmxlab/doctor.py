"""What this machine is, what lmxlab found on it, and what would make it faster: values for `lmxlab doctor` to show."""

import importlib.metadata
import os
import platform as host  # the standard library's
import shutil
import tempfile
from dataclasses import dataclass

from packaging.requirements import Requirement

from lmxlab import platform
from lmxlab.blas import Blas, load_blas

PACKAGES = ("lmxlab", "mlx", "numpy", "scipy", "tokenizers", "matplotlib", "tyro", "rich")
SLOW_GFLOPS_PER_CORE = 15  # the reference BLAS does 3 to 6, OpenBLAS on any core of the last ten years 30 or more
LOW_MEMORY_BYTES = 2 * 2**30
LOW_DISK_BYTES = 2**30


@dataclass(frozen=True)
class Extra:
    """An optional part of lmxlab: `pip install 'lmxlab[name]'` brings what is `missing`."""

    name: str
    missing: tuple[str, ...]

    @property
    def present(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Attributes:
        system: operating system and architecture.
        device: what MLX computes on by default, "cpu" or "gpu".
        device_name: the processor's or GPU's own name.
        cores: physical cores that this process may use.
        memory_total_bytes, memory_available_bytes: main memory.
        blas: what computes matrix products on the CPU.
        gflops: measured 10^9 floating-point operations per second of a float32 matrix product on `device`.
        compiler: path of g++, which `mx.compile` calls on a CPU; None without one.
        compile_problem: why `mx.compile` does not work and what to do; None when it works.
        temporary_folder: where compiled kernels are kept.
        versions: of Python and of the packages that matter, by name.
        extras: every extra of lmxlab and what it lacks here.
        advice: what would make this machine faster, most rewarding first; empty when nothing is known to.
    """

    system: str
    device: str
    device_name: str
    cores: int
    memory_total_bytes: int
    memory_available_bytes: int
    blas: Blas
    gflops: float
    compiler: str | None
    compile_problem: str | None
    temporary_folder: str
    versions: dict[str, str]
    extras: tuple[Extra, ...]
    advice: tuple[str, ...]


def examine() -> Report:
    """Looks at the machine and measures its matrix product: about a second."""
    import mlx.core as mx

    on_gpu = bool(mx.default_device() == mx.gpu)
    cores, (total, available) = platform.physical_cores(), platform.memory_bytes()
    gflops = platform.measure_flops_per_s() / 1e9
    problem = None if on_gpu else platform.compile_problem()
    return Report(
        system=f"{host.system()} {host.release()} ({host.machine()})",
        device="gpu" if on_gpu else "cpu",
        device_name=platform.device_name(),
        cores=cores,
        memory_total_bytes=total,
        memory_available_bytes=available,
        blas=load_blas(),
        gflops=gflops,
        compiler=shutil.which("g++"),
        compile_problem=problem,
        temporary_folder=_temporary_folder(),
        versions={"python": host.python_version(), **{p: v for p in PACKAGES if (v := _version(p))}},
        extras=extras(),
        advice=() if on_gpu else tuple(_advice(load_blas(), gflops, cores, problem, available)),
    )


def extras() -> tuple[Extra, ...]:
    """Every extra that lmxlab's own metadata declares, with the packages it lacks on this machine."""
    names = importlib.metadata.metadata("lmxlab").get_all("Provides-Extra") or []
    needs = [Requirement(line) for line in importlib.metadata.requires("lmxlab") or []]
    found = []
    for name in sorted(names):
        missing = [
            str(need).partition(";")[0].strip()
            for need in needs
            # With a base requirement that has no extra the marker holds anyway: those are not this extra's.
            if need.marker and need.marker.evaluate({"extra": name}) and not need.marker.evaluate({"extra": ""})
            if not _installed(need)
        ]
        found.append(Extra(name, tuple(missing)))
    return tuple(found)


def _installed(need: Requirement) -> bool:
    """Whether a fitting version is here, and for mlx[cuda12] the wheel behind it.

    >>> [_installed(Requirement(text)) for text in ("numpy>=2", "numpy>=99", "no-such-package", "mlx[cuda99]")]
    [True, False, False, False]
    """
    version = _version(need.name)
    wheels = [f"mlx-{extra.replace('cuda', 'cuda-')}" for extra in need.extras if need.name == "mlx"]
    return version is not None and need.specifier.contains(version) and all(map(_version, wheels))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:  # none is usable
        return str(error)


def _advice(blas: Blas, gflops: float, cores: int, compile_problem: str | None, available: int) -> list[str]:
    """One line each, for a CPU."""
    advice = []
    if blas.problem:
        advice.append(f"Matrix products run on {blas.name}, tens of times slower: {blas.problem}.")
    elif gflops < SLOW_GFLOPS_PER_CORE * cores:
        advice.append(
            f"{gflops:.0f} GFLOP/s is little for {cores} cores with {blas.name}: are other programs at work, "
            "or does an environment variable (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, LMXLAB_BLAS) hold it back?"
        )
    if blas.threads is not None and blas.threads < cores:
        advice.append(f"{blas.name} uses {blas.threads} of {cores} cores: unset OPENBLAS_NUM_THREADS.")
    kernels = os.environ.get("OPENBLAS_CORETYPE")
    if kernels and kernels.lower() in blas.name.lower():
        advice.append(
            f"OPENBLAS_CORETYPE={kernels} in the environment chooses OpenBLAS's kernels: unset it, and OpenBLAS "
            "takes the fastest for this processor."
        )
    if compile_problem:
        advice.append(f"mx.compile does not work, so steps run unfused: {compile_problem}.")
    elif shutil.disk_usage(_temporary_folder()).free < LOW_DISK_BYTES:
        advice.append(f"Little space in {_temporary_folder()}, where MLX compiles: set TMPDIR to a folder with more.")
    if available < LOW_MEMORY_BYTES:
        advice.append(f"Only {available / 2**30:.1f} GiB of memory is free: close programs, or train smaller batches.")
    if host.system() == "Linux" and shutil.which("nvidia-smi"):
        advice.append("There is an NVIDIA GPU that MLX does not use: pip install 'lmxlab[cuda13]' (or cuda12).")
    return advice

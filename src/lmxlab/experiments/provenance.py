"""What a run folder keeps so that the run can be repeated: code, packages, machine."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from lmxlab.blas import load_blas
from lmxlab.platform import device_name, memory_bytes, physical_cores

PACKAGES = ("lmxlab", "mlx", "mlx-cpu", "numpy", "tokenizers", "ngsolve-openblas", "cmeel-openblas")
MAX_DIFF_BYTES = 1_000_000


def environment() -> dict[str, Any]:
    """Versions, hardware and the state of the code, as plain values."""
    return {
        "code": git_state(Path.cwd()),
        "lmxlab": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": {
            "machine": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "device": device_name(),
            "blas": load_blas().name,
            "cores": physical_cores(),
            "memory_gb": round(memory_bytes()[0] / 2**30, 1),
        },
        "command": sys.argv,
    }


def git_commit() -> str:
    """The first 8 characters of the commit checked out in the working directory; "unknown" outside git."""
    commit = _git(Path.cwd(), "rev-parse", "HEAD")
    return commit.strip()[:8] if commit else "unknown"


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the repository around `folder` and what differs from it; {"commit": "unknown"} outside git.

    Untracked files are named, not kept: they may be data.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": "unknown"}
    diff = _git(folder, "diff", "HEAD") or ""
    untracked = (_git(folder, "ls-files", "--others", "--exclude-standard") or "").split("\n")
    state: dict[str, Any] = {"commit": commit.strip(), "dirty": bool(diff), "diff": diff[:MAX_DIFF_BYTES]}
    if len(diff) > MAX_DIFF_BYTES:
        state["diff_cut_at"] = MAX_DIFF_BYTES
    state["untracked"] = [name for name in untracked if name][:100]
    return state


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here: the run is still worth making
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

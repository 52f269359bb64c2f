"""The second tier: this Python itself, for programs that need numpy, confined by the kernel."""

import contextlib
import importlib
import os
from typing import Any

from lmxlab.eval.confined import guest
from lmxlab.eval.confined.server import COMMON, Server, confine


def serve(server: Server, settings: dict[str, Any]) -> None:
    """One process per program, with numpy there already."""
    for name in [*COMMON, "numpy"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Addresses are reserved generously by numpy's BLAS; data is what is counted.
    confine(settings["memory_mb"] + 128, 1 << 10, settings["readable"], settings["landlock"])
    frames, output = server.wait()
    os.dup2(frames, 0)
    os.dup2(frames, 1)
    os.dup2(output, 2)
    os.close(frames)
    os.close(output)
    guest.main()
    os._exit(0)

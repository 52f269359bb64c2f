"""The second tier: this machine's own Python with numpy, where the kernel can confine it."""

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from lmxlab.errors import UserError
from lmxlab.eval.compiled import SOURCES
from lmxlab.eval.confined import kernel
from lmxlab.eval.interpreter import InterpreterServer, Limits


def native_server(limits: Limits, unsafe: bool = False) -> InterpreterServer:
    """A server of interpreters with numpy, confined by seccomp and by Landlock or bubblewrap.

    Raises UserError where that cannot be had and `unsafe` is False.
    """
    libraries = [folder for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if Path(folder).is_dir()]
    readable = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.base_prefix + "/lib", *libraries]
    numpy = importlib.util.find_spec("numpy")
    if numpy and numpy.origin:
        readable.append(str(Path(numpy.origin).parents[1]))
    settings: dict[str, Any] = {"readable": sorted(set(readable)), "landlock": True}
    if kernel.seccomp_available():
        if kernel.landlock_version():
            return InterpreterServer("native", limits, settings)
        bwrap = shutil.which("bwrap")
        if bwrap:
            needed = {*settings["readable"], sys.prefix, sys.base_prefix, str(SOURCES)}
            return InterpreterServer("native", limits, settings | {"landlock": False}, _around(bwrap, sorted(needed)))
    if unsafe:
        return InterpreterServer("native", limits, settings)
    raise UserError(
        "The native tier refuses to run programs unconfined: it needs Linux with seccomp, and Landlock (5.13 or newer) "
        "or bubblewrap. Use tier 'wasi', install bubblewrap, or say unsafe=True (--unsafe)."
    )


def _around(bwrap: str, readable: list[str]) -> list[str]:
    """The beginning of a command that sees nothing but the folders `readable`, and no network."""
    # Not --die-with-parent: its parent is the thread that started it, and that one may end any time.
    command = [bwrap, "--unshare-all", "--cap-drop", "ALL", "--dev", "/dev"]
    for folder in readable:
        command += ["--ro-bind", folder, folder]
    return [*command, "--remount-ro", "/", "--"]

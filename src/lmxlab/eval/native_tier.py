"""The second tier: this machine's own Python with numpy, where the kernel can confine it."""

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

from lmxlab.errors import UserError
from lmxlab.eval.confined import kernel
from lmxlab.eval.interpreter import InterpreterServer, Limits


def native_server(limits: Limits, unsafe: bool = False) -> InterpreterServer:
    """A server of interpreters with numpy, confined by Landlock and seccomp, else by bubblewrap, else refused.

    Raises UserError where nothing confines it and `unsafe` is False.
    """
    readable = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.base_prefix + "/lib"]
    readable += [folder for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if Path(folder).is_dir()]
    found = importlib.util.find_spec("numpy")
    if found and found.origin:
        readable.append(str(Path(found.origin).parents[1]))
    readable = sorted(set(readable))
    settings = {"readable": readable, "kernel": True}
    if kernel.available():
        return InterpreterServer("native", limits, settings)
    bwrap = shutil.which("bwrap")
    if bwrap:
        prefix = [bwrap, "--unshare-all", "--die-with-parent", "--dev", "/dev"]
        for folder in readable:
            prefix += ["--ro-bind", folder, folder]
        return InterpreterServer("native", limits, settings | {"kernel": False}, prefix)
    if unsafe:
        return InterpreterServer("native", limits, settings | {"kernel": False})
    raise UserError(
        "The native tier refuses to run programs unconfined: this machine has neither Landlock and seccomp (Linux 5.13 "
        "or newer) nor bwrap. Use tier 'wasi', install bubblewrap, or say unsafe=True (--unsafe)."
    )

"""The command line: one file per group of commands; nothing else in lmxlab prints.

The names below load their module on first use, so that `lmxlab --help` imports neither MLX nor a model.
"""

import importlib
from typing import Any

from lmxlab.cli.app import main

_MODEL_COMMANDS = ("ARCHITECTURES", "cmd_bench", "cmd_count", "cmd_info", "cmd_list")

__all__ = [*_MODEL_COMMANDS, "main"]


def __getattr__(name: str) -> Any:
    if name in _MODEL_COMMANDS:
        return getattr(importlib.import_module("lmxlab.cli.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

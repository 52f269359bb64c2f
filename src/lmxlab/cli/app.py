"""The `lmxlab` command: finds the group, hands the arguments to tyro, turns errors into one line and an exit status.

Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted with the state saved.
"""

import importlib
import logging
import os
import sys
from typing import Any

from lmxlab.errors import UserError

# name -> (module in lmxlab.cli, what it does). Only the module of the command in use is imported: `lmxlab --help` takes
# none of them. A module has `register(app, arguments)`, which adds its command or group under that name.
COMMANDS = {
    "compare": ("compare", "Which of several designs learns better under the same compute?"),
    "train": ("train", "Train one model, or go on with an interrupted run."),
    "generate": ("generate", "Continue a text with a trained model."),
    "export": ("export", "Write a trained model as a folder that transformers and mlx-lm load."),
    "eval": ("eval", "Score a trained model on its validation split, or on tasks of lm-eval."),
    "judge": ("judge", "Run programs that a model wrote in a sandbox, and tell how many pass their tests."),
    "data": ("data", "Prepare a dataset, or look at one."),
    "log": ("log", "The ledger of finished runs: list, show, best, tail."),
    "list": ("models", "The architectures, their parts and presets."),
    "info": ("models", "Settings of an architecture or a preset."),
    "count": ("models", "Parameters of an architecture or a preset, without building its weights."),
    "bench": ("models", "Speed and memory of an architecture on this machine."),
    "mup-check": ("mup_check", "Does an architecture keep the size of its activations when it gets wider?"),
    "doctor": ("doctor", "What this machine can do, and what would make it faster."),
}

DESCRIPTION = """Train language models on this machine and compare designs under equal budgets.

Start with:  lmxlab compare gpt llama

lmxlab --version prints the version."""


def main() -> None:
    """Runs the command in sys.argv; returns on success, raises SystemExit with the status otherwise."""
    _show_warnings()
    arguments = sys.argv[1:]
    try:
        status = _version() if arguments == ["--version"] else _run(arguments or ["--help"])
        sys.stdout.flush()
    except UserError as error:
        print(f"lmxlab: {error}", file=sys.stderr)
        # A disk that is full or a folder that cannot be written is no mistake in what was typed.
        status = 1 if isinstance(error.__cause__, OSError) else 2
    except KeyboardInterrupt:
        print("lmxlab: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of our output went away (`lmxlab log list | head`): the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        print(f"lmxlab: cannot use{place}: {error.strerror or error}", file=sys.stderr)
        status = 1
    except SystemExit as stop:
        if stop.code in (0, None):
            return  # --help
        raise
    if status:
        raise SystemExit(status)


def _version() -> int:
    import lmxlab

    print(f"lmxlab {lmxlab.__version__}")
    return 0


def _run(arguments: list[str]) -> int:
    import tyro
    from tyro.extras import SubcommandApp

    app = SubcommandApp()
    for name, (module, summary) in COMMANDS.items():
        if arguments[0] == name:
            importlib.import_module(f"lmxlab.cli.{module}").register(app, arguments)
        else:
            app.command(name=name, help=summary)(_placeholder)
    status: Any = app.cli(
        prog="lmxlab", description=DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    return int(status or 0)


def _show_warnings() -> None:
    """Sends warnings to stderr, one line each; what is less goes only to the run.log of a run."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger().handlers = [handler]


def _placeholder() -> int:
    """Stands in the list of commands for one that was not asked for."""
    return 0

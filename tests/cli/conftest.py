"""Running the command: in this process where that is enough, in one of its own where signals or exit matter."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmxlab.cli import main

# A run of a second or so: a model of one layer on the documentation of Python.
TINY = """\
seq_len = 16
eval_tokens = 1000
sample_tokens = 20
[model]
design = "{design}"
d_model = 32
n_layers = 1
d_ff = {d_ff}
[data]
dataset = "pydocs"
[optim]
batch_size = 4
compile_step = false
checkpoint_interval = 20
eval_interval = 20
max_steps = 40
"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two tiny designs in it."""
    (tmp_path / "tiny.toml").write_text(TINY.format(design="gpt", d_ff=64))
    (tmp_path / "other.toml").write_text(TINY.format(design="llama", d_ff=48))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Calls main() with arguments; gives the exit status and what it printed."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lmxlab", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return call


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    """Starts the command in a process of its own."""
    command = [sys.executable, "-m", "lmxlab", *map(str, arguments)]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy(), **options
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)


def only_run(folder: Path) -> Path:
    """The folder of the one run of tiny.toml."""
    (run,) = (folder / "runs" / "tiny").iterdir()
    return run

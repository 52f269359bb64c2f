"""Signals are requests to stop, the second one an order."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from lmxlab.experiments.interrupt import stop_on_signals


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def test_the_first_signal_asks_and_the_second_one_ends(request: pytest.FixtureRequest) -> None:
    # A shell starts background jobs with SIGINT ignored, and the tests may be one.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the signal comes in it
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_children_are_shielded_while_signals_ask_and_no_longer() -> None:
    child = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('lives')"]
    with stop_on_signals() as stop:
        assert subprocess.run(child, capture_output=True, text=True, check=False).stdout == "lives\n"
        assert not stop.requested
    assert subprocess.run(child, capture_output=True, check=False).returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not any(thread.name == "lmxlab-signals" for thread in threading.enumerate())

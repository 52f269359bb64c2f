"""Signals are requests to stop, the second one an order."""

import os
import signal
from functools import partial

import pytest

from lmxlab.experiments.interrupt import stop_on_signals


def test_the_first_signal_asks_and_the_second_one_ends(request: pytest.FixtureRequest) -> None:
    # A shell starts background jobs with SIGINT ignored, and the tests may be one.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

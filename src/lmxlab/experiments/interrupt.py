"""Ctrl-C and SIGTERM as a request: the step in progress ends, the state is saved, then the run stops."""

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A run stopped because the user asked; its state is saved and it can go on."""


class Stop:
    """Whether a stop was asked for; a run looks after every step."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yields a Stop that the first SIGINT or SIGTERM requests; the second one ends the process as usual.

    A terminal's Ctrl-C goes to every process of its group, also to the compiler that MLX may be running, whose death
    would end the run. So this thread blocks the signals, which its children inherit, and another one waits for them.

    Outside the main thread no handler can be set, and the Stop is then only what callers request.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended, woken = threading.Event(), threading.Event()

    def release() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.request()
        release()

    def wait() -> None:
        number = signal.sigwait(before)
        woken.set()
        if not ended.is_set():
            stop.request()
            _thread.interrupt_main(signal.Signals(number))

    for number in before:
        signal.signal(number, handle)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
    waiter = threading.Thread(target=wait, name="lmxlab-signals", daemon=True)
    waiter.start()
    try:
        yield stop
    finally:
        ended.set()
        if not woken.is_set():
            signal.pthread_kill(waiter.ident or 0, signal.SIGTERM)
        waiter.join()
        release()

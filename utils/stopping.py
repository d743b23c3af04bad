"""Stopping in order: SIGTERM and Ctrl-C wait until what is trained can be saved."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def say(text: str) -> None:
    """A line on stderr, unbuffered, also from a signal handler; a reader that is gone must not keep us from saving."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came, and all is in order to save and leave."""


class _StopRequest:
    """The signal that asks this process to stop; within `saved_when_stopped` it waits for `check_stop`."""

    signal: int | None = None
    received = 0.0  # seconds
    waits = False

    def receive(self, number: int, frame) -> None:
        first, now = self.signal is None, time.monotonic()
        if not first and now - self.received < 1 and self.waits:
            return  # one request: `timeout` and terminals signal a process and its group
        self.signal, self.received = number, now
        if not (first and self.waits):
            raise KeyboardInterrupt
        say("stopping after this step; once more to stop at once")


_request = _StopRequest()


def stop_signal() -> int:
    """The number of the signal that came."""
    return _request.signal or signal.SIGINT


def check_stop() -> None:
    """Raise `Stopped` if a signal has come: called where everything that trains is between two steps."""
    if _request.waits and _request.signal is not None:
        raise Stopped


@contextmanager
def saved_when_stopped(save: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait for the next `check_stop`, and `save()` is called before the process ends."""
    _request.waits = True
    try:
        yield
    except Stopped:
        save()
        say("saved; the same command goes on from here")
        raise
    finally:
        _request.waits = False


@contextmanager
def signals_received() -> Iterator[None]:
    """Let `_request` have SIGTERM and Ctrl-C, which only the main thread can arrange."""
    _request.signal = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int = 0) -> None:
    """For processes that read images: their parent, which gets the same signals, ends them when it is ready."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

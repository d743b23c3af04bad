"""Saving in time: SIGTERM and Ctrl-C wait until what is trained can be saved, and so does the
clock.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from utils import distributed


def say(text: str) -> None:
    """A line on stderr, unbuffered, also from a signal handler; a reader that is gone must not keep
    us from saving.
    """
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came, and all is in order to save and leave."""


class _StopRequest:
    """What asks this process to stop or to save: within `saved_when_stopped` it waits for a moment
    between steps.
    """

    signal: int | None = None
    received = 0.0  # seconds
    waits = False
    save: Callable[[], None] = staticmethod(lambda: None)
    every = float("inf")  # seconds between two savings
    saved = 0.0

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
    """Raise `Stopped` if a signal has come: called where everything that trains is between two
    steps.

    Several processes must stop together, at a step: there it does nothing.
    """
    if distributed.size() == 1:
        handle_requests(pending_requests()[0], False)


def check_stop_together() -> None:
    """As `check_stop`, for all processes: they stop if a signal has come to any of them."""
    stop, _ = distributed.totals(*pending_requests())
    handle_requests(bool(stop), False)


def pending_requests() -> tuple[bool, bool]:
    """Whether this process is asked to stop, and whether it is time to save."""
    stop = _request.waits and _request.signal is not None
    return stop, _request.waits and time.monotonic() - _request.saved > _request.every


def handle_requests(stop: bool, save: bool) -> None:
    """What all processes have agreed on, between two steps."""
    if stop:
        raise Stopped
    if save:
        _request.save()
        _request.saved = time.monotonic()


@contextmanager
def saved_when_stopped(save: Callable[[], None], minutes: float = float("inf")) -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait for a moment between two steps, and `save()` is called before
    the process ends.

    It is called every so many `minutes`, too, between two steps.
    """
    _request.waits, _request.save, _request.every, _request.saved = (
        True,
        save,
        60 * minutes,
        time.monotonic(),
    )
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
    before = {
        number: signal.signal(number, _request.receive)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int = 0) -> None:
    """For processes that read images: their parent, which gets the same signals, ends them when it
    is ready.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

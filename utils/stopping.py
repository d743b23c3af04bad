"""Saving in time: SIGTERM, Ctrl-C and the clock wait for a moment when training can be saved."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from utils import distributed


def say(text: str) -> None:
    """Write a line to stderr, unbuffered, also from a signal handler, and even if nobody reads."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came, and this is a moment at which to save and leave."""


class _Requests:
    """The requests to stop and to save; within `saved_when_stopped` they wait for a step to end."""

    signal: int | None = None
    received = 0.0  # seconds
    waits = False
    save: Callable[[], None] = staticmethod(lambda: None)
    every = float("inf")  # seconds between two checkpoints
    saved = 0.0

    def receive(self, number: int, frame) -> None:
        first, now = self.signal is None, time.monotonic()
        if not first and now - self.received < 1 and self.waits:
            return  # one request: `timeout` and terminals signal a process and its group
        self.signal, self.received = number, now
        if not (first and self.waits):
            raise KeyboardInterrupt
        say("stopping after this step; once more to stop at once")


_requests = _Requests()


def stop_signal() -> int:
    """The number of the signal that came."""
    return _requests.signal or signal.SIGINT


def check_stop() -> None:
    """Raise `Stopped` if a signal has come; called between two steps of all that takes long.

    Several processes must stop together, at a step: with them it does nothing.
    """
    if distributed.size() == 1:
        handle_requests(pending_requests()[0], False)


def check_stop_together() -> None:
    """Raise `Stopped` in all processes if a signal has come to any of them; all call it."""
    stop, _ = distributed.totals(*pending_requests())
    handle_requests(bool(stop), False)


def pending_requests() -> tuple[bool, bool]:
    """Whether this process is asked to stop, and whether it is time to save."""
    stop = _requests.waits and _requests.signal is not None
    return stop, _requests.waits and time.monotonic() - _requests.saved > _requests.every


def handle_requests(stop: bool, save: bool) -> None:
    """Stop or save, between two steps, as all processes have agreed."""
    if stop:
        raise Stopped
    if save:
        _requests.save()
        _requests.saved = time.monotonic()


@contextmanager
def saved_when_stopped(save: Callable[[], None], minutes: float = float("inf")) -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait for a step to end; then `save()` is called before leaving.

    `save()` is also called every so many `minutes`, between two steps.
    """
    _requests.waits, _requests.save = True, save
    _requests.every, _requests.saved = 60 * minutes, time.monotonic()
    try:
        yield
    except Stopped:
        save()
        say("saved; the same command resumes from here")
        raise
    finally:
        _requests.waits = False


@contextmanager
def signals_received() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C become requests; only the main thread can arrange that."""
    _requests.signal = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _requests.receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int = 0) -> None:
    """For processes that read images: their parent gets the same signals, and ends them in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""A process of several ends when its launcher is gone, or when another one has fallen silent.

Nobody else would ever end it: it would wait for the others, for hours. A host that is switched off
without a word, or a process that is stopped, closes no connection.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Self

from torch import distributed as dist

LEAVING = 30  # seconds to save in, once the launcher is gone
BEAT, SILENT = 5.0, 60.0  # seconds between signs of life, and without one until a process is lost
DONE = -(1 << 40)  # added to the beats of a process that has left as it should


def end_with_launcher() -> None:
    """End this process when `torchrun` is gone.

    It is asked to stop first, as by SIGTERM, so that it can save; where that does not help within
    `LEAVING` seconds, as it waits for a process that is gone already, it just ends.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LEAVING)
        _end("the launcher of this process is gone, and so is this process")

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


class Heartbeat:
    """Within it, this process gives signs of life, and ends when another gives none.

    Args:
        store: a connection that nobody else uses: some calls hold it for as long as they wait.
        rank: of this process.
        size: the number of processes.
    """

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.store, self.rank = store, rank
        self.others = [other for other in range(size) if other != rank]
        self._left = threading.Event()
        # For how many rounds of this process each of them, and the store, was not heard of: a
        # clock would also count the time in which all processes were stopped together.
        self._silence = dict.fromkeys([*self.others, "the store"], 0)

    def __enter__(self) -> Self:
        for work in (self._beat, self._watch) if self.others else ():
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._left.set()
        if kind in (None, SystemExit, KeyboardInterrupt):  # else the others wait in vain
            with suppress(RuntimeError):  # when the first process and its store have gone
                self.store.add(self._key(self.rank), DONE)

    def _beat(self) -> None:
        beats = dict.fromkeys(self.others)
        while not self._left.wait(BEAT):
            try:
                self.store.add(self._key(self.rank), 1)
                for other in list(beats):
                    count = self.store.add(self._key(other), 0)
                    if count != beats[other]:
                        beats[other], self._silence[other] = count, 0
                    if count < 0:  # it is done
                        del beats[other], self._silence[other]
                self._silence["the store"] = 0
            except RuntimeError:  # its connection is closed: so are those of whoever waits for it
                self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(BEAT):
            for name, rounds in list(self._silence.items()):
                if rounds * BEAT >= SILENT:
                    who = name if isinstance(name, str) else f"process {name} of this run"
                    reason = f"{who} has given no sign of life for {SILENT:.0f} seconds"
                    _end(f"{reason}: this process ends; the same command resumes")
                if name in self._silence:
                    self._silence[name] = rounds + 1

    @staticmethod
    def _key(rank: int) -> str:
        return f"beats {rank}"


def _end(reason: str) -> None:
    os.write(2, f"{reason}\n".encode())
    os._exit(128 + signal.SIGTERM)

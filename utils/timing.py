"""How long things take: callables that are timed in turns, on CPUs and accelerators."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from utils.runtime import synchronise
from utils.stopping import check_stop

CPU = torch.device("cpu")


def seconds_of(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one run, until `device` has finished it."""
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Timer:
    """Times callables that take turns, so that what disturbs the machine disturbs them all.

    Args:
        runs: how often each callable is timed.
        warm_up: runs before those of each turn that are not timed: caches are cold then, and
            threads of the callable before are still awake for a while.
        in_a_row: how many of the runs follow each other in one turn.
        device: where the callables compute.
        title: of a progress bar over the turns; None: without a bar.
    """

    runs: int
    warm_up: int = 0
    in_a_row: int = 1
    device: torch.device = CPU
    title: str | None = None

    def seconds(self, callables: Sequence[Callable[[], object]]) -> NDArray:
        """Seconds `[callables, runs]`, in the order of the runs."""
        times = np.empty((len(callables), self.runs))
        turns = range(0, self.runs, self.in_a_row)
        for first in tqdm(turns, self.title, leave=False, disable=None if self.title else True):
            check_stop()
            for run, row in zip(callables, times, strict=True):
                for _ in range(self.warm_up):
                    seconds_of(run, self.device)
                for index in range(first, min(first + self.in_a_row, self.runs)):
                    row[index] = seconds_of(run, self.device)
        return times

    def median_ms(self, callables: Sequence[Callable[[], object]]) -> list[float]:
        """The median of each callable, in milliseconds."""
        return (1000 * np.median(self.seconds(callables), axis=1)).tolist()

"""Several processes as one run: what `torchrun` started works together, and a process of its own is
a run of one.

All processes hold the same weights, and every function here that says so must be called by all of
them, in the same order. Only the first process, of rank 0, writes files and prints.
"""

import datetime
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import rendezvous

from utils.errors import UserError

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=2)  # for a process that is still busy where the others wait
CONNECTING, TRIES = datetime.timedelta(seconds=20), 5


def launched() -> bool:
    """Whether a launcher has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


_alone = ContextVar("alone", default=False)  # whether this process works for itself


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone.get() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() and not _alone.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process does a work of its own: whatever is called there, it waits for no other
    one.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def joined() -> Iterator[None]:
    """Within, this process is one of those that its launcher has started.

    Numbers on the CPU go by gloo, those on GPUs by NCCL.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    _connect()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _connect() -> None:
    """Meet the other processes. RuntimeError when that fails again and again.

    Connections of gloo are lost now and then where workers begin anew after one was killed, and
    would be waited for without end: so all try it together, and once more if any of them failed.
    """
    store, process, processes = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    said = None
    for attempt in range(TRIES):
        _meet(store, f"begin {attempt}", processes)
        try:
            place = {
                "store": dist.PrefixStore(f"attempt {attempt}", store),
                "rank": process,
                "world_size": processes,
            }
            dist.init_process_group(backend, timeout=CONNECTING, **place)
        except RuntimeError as error:
            store.add(f"failed {attempt}", 1)
            said = error
        _meet(store, f"end {attempt}", processes)
        if store.add(f"failed {attempt}", 0) == 0:
            return _set_timeout(PATIENCE)
        if dist.is_initialized():
            dist.destroy_process_group()
    raise RuntimeError(f"{processes} processes cannot be connected") from said


def _set_timeout(timeout: datetime.timedelta) -> None:
    """Of all that processes wait for from here; before torch 2.14 it had another name."""
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(timeout)


def _meet(store: dist.Store, name: str, processes: int) -> None:
    """Until all processes are here."""
    store.add(name, 1)
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while store.add(name, 0) < processes:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {store.add(name, 0)} of {processes} processes have come")
        time.sleep(0.05)


# -- numbers ---------------------------------------------------------------------------------------


def average(tensors: Iterable[Tensor]) -> None:
    """Give `tensors` the mean of their values over all processes, in one message; all call it."""
    tensors = list(tensors)
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= size()
    for tensor, mean in zip(
        tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.detach().copy_(mean.view(tensor.shape))


def totals(*numbers: float) -> list[float]:
    """The sums of `numbers` over all processes; all call it."""
    if size() == 1:
        return list(map(float, numbers))
    summed = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def wait() -> None:
    """Until all processes are here."""
    totals(0)


@contextmanager
def first_alone() -> Iterator[None]:
    """What the first process does before the others do the same; all call it."""
    if rank():
        wait()
    yield
    if rank() == 0:
        wait()


def is_first_to_say(text: str) -> bool:
    """Whether no other process has said the same before: what goes wrong in all of them is said
    once.
    """
    try:
        return size() == 1 or dist.distributed_c10d._get_default_store().add(f"said {text}", 1) == 1
    except RuntimeError:  # the others have gone
        return True


def of_first(value: T) -> T:
    """What `value` is in the first process; all call it."""
    held = [value]
    if size() > 1:
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    return held[0]


# -- parts of a work -------------------------------------------------------------------------------


def share(batch_size: int) -> slice:
    """Which of the `batch_size` images of a batch are for this process; it must be a multiple of
    their number.
    """
    part = batch_size // size()
    return slice(rank() * part, (rank() + 1) * part)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of a piece of work: its result, or the error that it ended in; and in which
    process.
    """

    result: T | None
    error: BaseException | None
    process: int


_works = itertools.count()


def divided(count: int, work: Callable[[int], T]) -> list[Outcome[T]]:
    """`work(0)` to `work(count - 1)`, each done by a process that is idle; all call it, and all get
    the outcomes.

    Work that fails is done once more by another process, where there is one. Within a work, this
    process is alone. Where one is interrupted, all are, when they have ended what they were at.
    """
    number = next(_works)
    taken = range(count) if size() == 1 else _taken(number, count)
    outcomes = _gathered(_until_interrupted(work, taken))
    for outcome in outcomes.values():
        if isinstance(outcome.error, KeyboardInterrupt):
            raise outcome.error
    failed = [index for index in range(count) if outcomes[index].error is not None]
    if size() > 1 and failed:
        elsewhere = [index for index in failed if (outcomes[index].process + 1) % size() == rank()]
        outcomes |= _gathered({index: _outcome(work, index) for index in elsewhere})
    return [outcomes[index] for index in range(count)]


def results(outcomes: list[Outcome[T]]) -> list[T]:
    """The results, where all work must have one; the first error is raised."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.result for outcome in outcomes]


def _taken(work: int, count: int) -> Iterator[int]:
    """The numbers below `count` that no other process has taken before."""
    store = dist.distributed_c10d._get_default_store()
    while (index := store.add(f"work {work}", 1) - 1) < count:
        yield index


def _until_interrupted(work: Callable[[int], T], taken: Iterable[int]) -> dict[int, Outcome[T]]:
    """The outcomes of the works that are taken; none is taken after one that was interrupted."""
    outcomes = {}
    for index in taken:
        outcomes[index] = _outcome(work, index)
        if isinstance(outcomes[index].error, KeyboardInterrupt):
            break
    return outcomes


def _outcome(work: Callable[[int], T], index: int) -> Outcome[T]:
    process = rank()
    try:
        with alone():
            return Outcome(work(index), None, process)
    # whatever it is, it must neither end the others' work nor become a result
    except Exception as error:
        return Outcome(None, error, process)
    except KeyboardInterrupt as interrupt:
        if size() == 1:
            raise
        return Outcome(None, interrupt, process)


def _gathered(own: dict[int, Outcome]) -> dict[int, Outcome]:
    if size() == 1:
        return own
    for index, outcome in own.items():
        if outcome.error is not None and not isinstance(
            outcome.error, (UserError, KeyboardInterrupt)
        ):
            # not every error can be sent
            said = f"{type(outcome.error).__name__}: {outcome.error}"
            own[index] = replace(outcome, error=RuntimeError(f"in process {rank()}, {said}"))
    parts: list[dict] = [{}] * size()
    dist.all_gather_object(parts, own)
    return {index: outcome for part in parts for index, outcome in part.items()}

"""Several processes as one run: those that `torchrun` starts; any other process runs alone.

All processes hold the same weights. Each function that says so must be called by all of them, in
the same order. Only the first process, of rank 0, writes files and prints.
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
from utils.signs_of_life import Heartbeat, end_with_launcher

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=2)  # for a process that is still busy where the others wait
ARRIVING = datetime.timedelta(minutes=5)  # for a process that still starts
CONNECTING, TRIES = datetime.timedelta(seconds=20), 5

_alone = ContextVar("alone", default=False)  # whether this process works for itself


def launched() -> bool:
    """Whether a launcher has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone.get() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _alone.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process is a run of one: whatever it calls waits for no other process."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def joined() -> Iterator[None]:
    """Within, this process works together with those that its launcher has started.

    Tensors on the CPU are sent by gloo, those on GPUs by NCCL.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # by hand, the parent may be a shell that ends
        end_with_launcher()
    _connect()
    heartbeat = Heartbeat(_rendezvous()[0], rank(), size())
    try:
        with heartbeat:
            yield
    finally:
        dist.destroy_process_group()


def _connect() -> None:
    """Connect to the other processes; RuntimeError when that fails `TRIES` times.

    Connections of gloo are lost now and then where workers restart after one was killed, and gloo
    would wait for them forever: so all try together, and again if any of them failed.
    """
    store, process, processes = _rendezvous()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    failure = None
    for attempt in range(TRIES):
        _meet(store, f"begin {attempt}", processes)
        try:
            group = dist.PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group(
                backend, timeout=CONNECTING, store=group, rank=process, world_size=processes
            )
        except RuntimeError as error:
            store.add(f"failed {attempt}", 1)
            failure = error
        _meet(store, f"end {attempt}", processes)
        if store.add(f"failed {attempt}", 0) == 0:
            # its name since torch 2.14, and before
            set_timeout = (
                getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
            )
            return set_timeout(PATIENCE)
        if dist.is_initialized():
            dist.destroy_process_group()
    raise RuntimeError(f"{processes} processes cannot be connected") from failure


def _rendezvous() -> tuple[dist.Store, int, int]:
    """A new connection to the store of this run, the rank of this process, and their number.

    The store outlives the workers, so that each start of them has keys of its own.
    """
    store, process, processes = next(rendezvous("env://"))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    return dist.PrefixStore(f"start {start}", store), process, processes


def _meet(store: dist.Store, name: str, processes: int) -> None:
    """Wait for all processes, before they are connected."""
    store.add(name, 1)
    deadline = time.monotonic() + ARRIVING.total_seconds()
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
    means = (flat / size()).split([tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.detach().copy_(mean.view(tensor.shape))


def gathered(tensor: Tensor) -> list[Tensor]:
    """The `tensor` of each process; all call it."""
    found = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(found, tensor.contiguous())
    return found


def totals(*numbers: float) -> list[float]:
    """The sums of `numbers` over all processes; all call it."""
    if size() == 1:
        return list(map(float, numbers))
    summed = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def wait() -> None:
    """Wait for all processes; all call it."""
    totals(0)


@contextmanager
def first_alone() -> Iterator[None]:
    """Within, the first process goes ahead, and the others wait until it is done; all call it."""
    if rank():
        wait()
    yield
    if rank() == 0:
        wait()


def said_of_loss(error: Exception) -> str | None:
    """What an error of the connection between processes means; None for other errors."""
    lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    if not lost or not launched():
        return None
    return "another process of this run has ended or cannot be reached; the same command resumes"


def is_first_to_say(text: str) -> bool:
    """Whether no other process has asked for the same text: an error of all is printed once."""
    try:
        return size() == 1 or _store().add(f"said {text}", 1) == 1
    except RuntimeError:  # the others have gone
        return True


def of_first(value: T) -> T:
    """The first process's `value`; all call it."""
    held = [value]
    if size() > 1:
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    return held[0]


def share(batch_size: int) -> slice:
    """This process's share of a batch; `batch_size` must be a multiple of their number."""
    part = batch_size // size()
    return slice(rank() * part, (rank() + 1) * part)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


# -- jobs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a job returned, or the error it raised, and the process that ran it."""

    result: T | None
    error: BaseException | None
    process: int


_calls = itertools.count()


def divided(count: int, job: Callable[[int], T]) -> list[Outcome[T]]:
    """Run `job(0)` to `job(count - 1)`, each in a process that is idle; all call it.

    All get all outcomes. A job that fails is run once more by another process, where there is one.
    Within a job, its process is alone. When one is interrupted, all are, after their jobs.
    """
    name = f"work {next(_calls)}"
    outcomes = _gathered(_run(job, range(count) if size() == 1 else _taken(name, count)))
    for outcome in outcomes.values():
        if isinstance(outcome.error, KeyboardInterrupt):
            raise outcome.error
    failed = [index for index in range(count) if outcomes[index].error is not None]
    if size() > 1 and failed:
        retried = [index for index in failed if (outcomes[index].process + 1) % size() == rank()]
        outcomes |= _gathered({index: _outcome(job, index) for index in retried})
    return [outcomes[index] for index in range(count)]


def results(outcomes: list[Outcome[T]]) -> list[T]:
    """The results, where all jobs must have one; the first error is raised."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.result for outcome in outcomes]


def _taken(name: str, count: int) -> Iterator[int]:
    """The numbers below `count` that no other process has taken before."""
    while (index := _store().add(name, 1) - 1) < count:
        yield index


def _run(job: Callable[[int], T], indices: Iterable[int]) -> dict[int, Outcome[T]]:
    """The outcomes of jobs, up to one that was interrupted."""
    outcomes = {}
    for index in indices:
        outcomes[index] = _outcome(job, index)
        if isinstance(outcomes[index].error, KeyboardInterrupt):
            break
    return outcomes


def _outcome(job: Callable[[int], T], index: int) -> Outcome[T]:
    process = rank()
    try:
        with alone():
            return Outcome(job(index), None, process)
    # whatever it is, it must neither end the others' jobs nor become a result
    except Exception as error:
        return Outcome(None, error, process)
    except KeyboardInterrupt as interrupt:
        if size() == 1:
            raise
        return Outcome(None, interrupt, process)


def _gathered(own: dict[int, Outcome]) -> dict[int, Outcome]:
    """The outcomes of all processes."""
    if size() == 1:
        return own
    for index, outcome in own.items():
        error = outcome.error
        if error is not None and not isinstance(error, UserError | KeyboardInterrupt):
            # not every error can be sent
            text = f"in process {rank()}, {type(error).__name__}: {error}"
            own[index] = replace(outcome, error=RuntimeError(text))
    parts: list[dict] = [{}] * size()
    dist.all_gather_object(parts, own)
    return {index: outcome for part in parts for index, outcome in part.items()}

"""Processes of their own: stages as users start them, and a few that work together.

Each is forked from a server that has imported the project once, so that none waits for imports.
"""

import multiprocessing
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as torch_processes
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.conftest import TESTS
from utils import distributed

ROOT = TESTS.parent
STAGES = ["search", "train_cifar", "train_imagenet", "msunas", "validate", "tools.rank"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([*STAGES, "tests.worlds"])


def _serve() -> None:
    """Start the server, which imports the project from wherever it is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


# -- one process ---------------------------------------------------------------------------------


class Child:
    """A command in a process of its own; its output is in out.txt and err.txt of its folder.

    Args:
        folder: where it runs.
        job: such as `script` or `launcher`, and its arguments.
    """

    def __init__(self, folder: Path, job: Callable, *arguments):
        _serve()
        self.folder = folder
        for name in ("out.txt", "err.txt"):
            (folder / name).write_text("")
        self.process = FORKS.Process(target=_become, args=(job, arguments, str(folder)))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """The exit status, minus the number of the signal that ended it; None while it runs."""
        return self.process.exitcode

    def wait(self, seconds: float = 300) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it still runs after {seconds} seconds"
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    @property
    def workers(self) -> list[int]:
        """The processes that it has started, oldest first."""
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True)
        return [int(process) for process in found.stdout.split()]

    @property
    def said(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "err.txt").read_text()


def _become(job: Callable, arguments: tuple, folder: str) -> None:
    """Do a job in this process, which writes into files of `folder`."""
    os.chdir(folder)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job(*arguments)


def script(line: str) -> None:
    """Run a script of the top level, given with its words, as Python would."""
    name, *words = shlex.split(line)
    sys.argv = [name, *words]
    runpy.run_path(str(ROOT / name), run_name="__main__")


def launcher(processes: int, restarts: int, line: str) -> None:
    """What `torchrun` does with a script; its workers are forked, too."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="fork",
    )
    elastic_launch(config, script)(line)


# -- processes that work together ----------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_world(size: int, work: Callable, folder: Path, *arguments) -> list:
    """What `work(*arguments)`, a function of a module, returns in each of `size` processes."""
    _serve()
    given = (size, free_port(), work, folder, arguments)
    torch_processes.start_processes(_member, given, nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"result{rank}.pth", weights_only=False) for rank in range(size)]


def _member(
    rank: int, size: int, port: int, work: Callable, folder: Path, arguments: tuple
) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)  # processes of several threads would wait for each other on few cores
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.joined():
        result = work(*arguments)
    torch.save(result, folder / f"result{rank}.pth")

"""A few processes that work together, as a launcher would start them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import multiprocessing

from utils import distributed


def in_world(size: int, work: Callable, folder: Path, *arguments) -> list:
    """What `work(*arguments)`, a function of a module, returns in each of `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_member, (size, port, work, folder, arguments), nprocs=size)
    return [torch.load(folder / f"result{rank}.pth", weights_only=False) for rank in range(size)]


def _member(
    rank: int, size: int, port: int, work: Callable, folder: Path, arguments: tuple
) -> None:
    torch.set_num_threads(1)  # processes of several threads would wait for each other on few cores
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.joined():
        result = work(*arguments)
    torch.save(result, folder / f"result{rank}.pth")

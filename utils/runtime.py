"""Where and how a stage runs: device, random streams, environment, progress."""

import ctypes
import hashlib
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import distributed
from utils.errors import UserError

# Numbers of the parameters of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def pick_device(accelerator: bool = True) -> torch.device:
    """CUDA, a GPU for each process of a machine, else MPS, if wanted; otherwise the CPU.

    On the CPU the C library keeps freed memory from then on.
    """
    if accelerator and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= (gpus := torch.cuda.device_count()):
            raise UserError(f"{gpus} GPUs are too few for the processes of this machine")
        torch.cuda.set_device(device)
        return device
    if accelerator and torch.backends.mps.is_available():
        return torch.device("mps")
    keep_freed_memory()
    return torch.device("cpu")


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, as the allocators of GPUs do; only glibc can.

    Else it returns large blocks to the system and gets them back zeroed page by page at every
    step, which takes about a tenth of a training step.
    """
    if platform.libc_ver()[0] == "glibc":
        c = ctypes.CDLL(None)
        c.mallopt(M_MMAP_MAX, 0)
        c.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU random stream for each purpose, epoch and step: resuming needs no generator states."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def seed_global(rng: torch.Generator) -> None:
    """Seed by `rng` the global streams, which dropout, drop path and augmentation draw from."""
    torch.manual_seed(rng.initial_seed())
    random.seed(rng.initial_seed())
    np.random.seed(rng.initial_seed() % 2**32)  # noqa: NPY002


def describe_environment(device: torch.device) -> dict:
    """Versions, commit and hardware, for the record."""
    cpu = platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "processes": distributed.size(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this code; None where it is no checkout, or git is missing."""
    command, folder = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except OSError:
        return None
    return done.stdout.strip() or None


class Progress:
    """A bar with the time left on a terminal; in a log, a plain line every `print_freq` steps."""

    def __init__(self, title: str, total: int, print_freq: int = 100, done: int = 0):
        self.title, self.total, self.print_freq = title, total, print_freq
        self.step, self.first, self.started, self.images = done, done, time.monotonic(), 0
        self.bar = None
        if sys.stderr.isatty() and distributed.rank() == 0:
            self.bar = tqdm(total=total, initial=done, desc=title, leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def update(self, images: int = 0, /, **numbers: float) -> None:
        """Count a step, in which so many `images` were seen, and show its `numbers`."""
        self.step += 1
        self.images += images
        seconds = time.monotonic() - self.started
        if images:
            numbers["images/s"] = self.images / seconds
        shown = {name: f"{number:.4g}" for name, number in numbers.items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()
        elif self.step % self.print_freq == 0 and self.step < self.total:
            left = seconds / (self.step - self.first) * (self.total - self.step)
            words = [f"{self.title} step {self.step}/{self.total}"]
            words += [f"{name} {number}" for name, number in shown.items()]
            print(*words, "left", tqdm.format_interval(left), flush=True)

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()

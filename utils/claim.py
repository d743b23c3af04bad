"""A folder is written by one run at a time: a claim that ends with the process that holds it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing is locked
    fcntl = None

LOCK_FILE = ".lock"

# Descriptors of the lock files that this process holds, by device and inode. Closing any
# descriptor of such a file would give its lock up, so that none is opened twice.
_held: dict[tuple[int, int], int] = {}


@dataclass(frozen=True)
class Claim:
    """A folder, and which one it was when it was claimed."""

    path: Path
    identity: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> "Claim":
        """Remember a folder that another process of this run has locked."""
        return cls(path, _identity(path))

    @classmethod
    def lock(cls, path: Path) -> "Claim":
        """Lock a folder until this process ends, or `claims_released` does.

        A kill leaves no lock, and processes that were forked hold none. UserError when another
        process has locked it.
        """
        if fcntl is not None:
            _lock(path / LOCK_FILE, path)
        return cls.of(path)

    def check(self, path: Path | None = None) -> None:
        """UserError when the folder, or what is at its new `path`, is another one, or is gone."""
        path = path or self.path
        with suppress(OSError):
            if _identity(path) == self.identity:
                return
        raise UserError(f"{path}: this folder was deleted or moved while a run was writing there")


@contextmanager
def claims_released() -> Iterator[None]:
    """At the end, unlock the folders that were locked within."""
    before = set(_held)
    try:
        yield
    finally:
        for identity in _held.keys() - before:
            os.close(_held.pop(identity))


def _identity(path: str | Path | int) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _lock(file: Path, folder: Path) -> None:
    with suppress(FileNotFoundError):
        if _identity(file) in _held:
            return
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(handle, 100).decode(errors="replace").strip()
        os.close(handle)
        raise UserError(
            f"{folder}: another run is writing there ({holder or 'just started'})"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    _held[_identity(handle)] = handle
    os.ftruncate(handle, 0)
    with suppress(OSError):  # on a full disk the lock holds without its name
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

"""Latency tables: milliseconds of the parts that networks are made of.

A network's latency is the sum over its parts. The published format is a YAML file of
`key: {mean: milliseconds, ...}`; `tools/profile_latency.py` writes it. Which parts a network has,
and their keys, is said by its kind of space.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from utils.errors import UserError
from utils.json_file import as_type
from utils.yaml_file import read_yaml


@dataclass(frozen=True)
class Part:
    """A part of a network, built when asked for; its input has the shape `[C, H, W]` or `[C]`."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Entry:
    """What is read of a line of a table."""

    mean: float


@dataclass(frozen=True)
class Latencies:
    """`latencies(key) -> milliseconds` of a part; UserError naming what the table `where` lacks."""

    entries: dict[str, float]
    where: str
    text: str = field(default="", repr=False)  # of the file

    @property
    def digest(self) -> str:
        """Of the file, so that another device's table is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest() if self.text else ""

    @classmethod
    def read(cls, path: str | Path) -> "Latencies":
        """From a file; UserError when it is no table."""
        where = f"latency table {path}"
        what = "a table of KEY: {mean: milliseconds}"
        entries = as_type(read_yaml(path, where), dict[str, _Entry], where, what)
        text = Path(path).read_text(encoding="utf-8")
        return cls({key: entry.mean for key, entry in entries.items()}, where, text)

    def __call__(self, key: str) -> float:
        if key not in self.entries:
            raise UserError(f"{self.where}: it lacks {key}")
        if not 0 <= self.entries[key] < float("inf"):
            raise UserError(f"{self.where}: {key}: {self.entries[key]} is no time")
        return self.entries[key]

"""Latency tables: milliseconds of the parts that networks are made of.

A network's latency is the sum over its parts. The published format is a YAML file of
`key: {mean: milliseconds, ...}`; `tools/profile_latency.py` writes it. Which parts a network has,
and their keys, is said by its kind of space.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from torch import nn

from utils.errors import UserError
from utils.json_file import one_line


@dataclass(frozen=True)
class Part:
    """A part of a network, built when asked for; `shape` of its input is `[C, H, W]` or `[C]`."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


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
        try:
            text = Path(path).read_text(encoding="utf-8")
            entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            found = {key: float(entry["mean"]) for key, entry in entries.items()}
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(
                f"{where}: no table of KEY: {{mean: milliseconds}} ({one_line(error)})"
            ) from None
        return cls(found, where, text)

    def __call__(self, key: str) -> float:
        if key not in self.entries:
            raise UserError(f"{self.where}: it lacks {key}")
        if not 0 <= self.entries[key] < float("inf"):
            raise UserError(f"{self.where}: {key}: {self.entries[key]} is no time")
        return self.entries[key]

"""Scores of architectures in a file that grows: what was scored before a kill is kept.

A line of JSON for each architecture: {"id": ..., "values": {name: number}, "by": {...}}, where `by`
says what scored it, such as the digest of a supernet and the number of images.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils import distributed
from utils.checkpoint import write_text
from utils.errors import UserError
from utils.json_file import as_type, parse_json, read_json
from utils.runtime import Progress

Values = dict[str, float]
By = dict[str, str | int | float]
GROUP = 8  # architectures for each process that are scored before they are written
DIGITS = 16  # of the digest of a supernet


@dataclass(frozen=True)
class Line:
    """A line of the file."""

    id: str
    values: Values
    by: By

    def __str__(self) -> str:
        return json.dumps(asdict(self)) + "\n"


class ScoreFile:
    """`values` of architectures by their ids, in the order of the file; see `open`."""

    def __init__(self, path: Path, by: By | None, values: dict[str, Values]):
        self.path, self.by, self.values = path, by, values

    @classmethod
    def open(cls, path: Path, by: By | None = None) -> "ScoreFile":
        """The scores in `path`, which may be absent; without `by` they are only read.

        A last line that a kill cut is dropped, and an older format is converted. All processes call
        it. UserError when the file is broken, or when something else than `by` scored it.
        """
        values = {}
        for line in _read(path, by or {}):
            if by is not None and line.by != by:
                key = next(key for key in {**by, **line.by} if line.by.get(key) != by.get(key))
                way = f"{key} was {line.by.get(key)}, now it is {by.get(key)}"
                raise UserError(f"{path}: it was scored in another way: {way}; choose another")
            values[line.id] = line.values
        distributed.wait()  # until all have read
        if by is not None and distributed.rank() == 0:
            write_text(path, "".join(str(Line(name, values[name], by)) for name in values))
        return cls(path, by, values)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that have no values yet."""
        return [name for name in dict.fromkeys(ids) if name not in self.values]

    def add(self, name: str, values: Values) -> None:
        """Append the values of an architecture; only the first process writes them."""
        self.values[name] = values
        if distributed.rank() == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(str(Line(name, values, self.by)))

    def fill(
        self, ids: Iterable[str], score: Callable[[list[str]], list[Values]], title: str
    ) -> None:
        """Add what `score` gives for those of `ids` that are missing, a group of them at a time.

        All processes call it and `score`, which may divide a group among them.
        """
        missing, size = self.missing(ids), GROUP * distributed.size()
        with Progress(title, len(missing), print_freq=size) as progress:
            for start in range(0, len(missing), size):
                group = missing[start : start + size]
                for name, values in zip(group, score(group), strict=True):
                    self.add(name, values)
                    progress.update(**values)


# -- reading ---------------------------------------------------------------------------------------


def _read(path: Path, by: By) -> Iterator[Line]:
    """The lines of a file; those of older formats get from `by` what these did not record."""
    older = path.with_suffix(".json")
    if not path.exists() and older.exists():  # tools/rank.py wrote {"top1": {id: top1}, **by}
        record = read_json(older)
        top1 = as_type(record.pop("top1", None), Values, str(older), "scores of architectures")
        record["supernet"] = str(record.get("supernet"))[:DIGITS]
        yield from (Line(name, {"top1": value}, record) for name, value in top1.items())
    # what follows the last line break was cut off
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        where, what = f"{path}: line {number}", "a score of an architecture"
        record = parse_json(line, dict[str, Any], where, what)
        if "cell" in record:  # benchmarks/nasbench201.py wrote {"cell", "top1", **by}
            scores = {"id": record.pop("cell"), "values": {"top1": record.pop("top1", None)}}
            record = {**scores, "by": by | record}
        yield as_type(record, Line, where, what)

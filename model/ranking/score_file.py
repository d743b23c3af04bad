"""Scores of architectures in a file that grows: what was scored before a kill is kept.

A line of JSON for each architecture: {"id": ..., name: number, ..., "architecture": ..., "by":
{...}}, where `by` says what scored it, such as the digest of a supernet and the number of images;
`architecture`, as its space writes it, is there where it was given.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
    architecture: Any = None

    def __str__(self) -> str:
        more = {} if self.architecture is None else {"architecture": self.architecture}
        return json.dumps({"id": self.id, **self.values, **more, "by": self.by}) + "\n"

    @classmethod
    def read(cls, record: dict, where: str) -> "Line":
        """From JSON, where names and values stood in a record `values` of their own before."""
        known = {name: record[name] for name in ("id", "by", "architecture") if name in record}
        values = record.get("values")
        if values is None:
            values = {name: value for name, value in record.items() if name not in known}
        elif isinstance(values, dict) and "top1" in values:
            values = {"supernet": values["top1"]}
        return as_type({**known, "values": values}, cls, where, "a score of an architecture")


class ScoreFile:
    """`values` of architectures by their ids, in the order of the file; see `open`.

    `architectures` are those that the lines say, by their ids.
    """

    def __init__(self, path: Path, by: By | None, lines: Iterable[Line]):
        self.path, self.by = path, by
        self.values: dict[str, Values] = {}
        self.architectures: dict[str, Any] = {}
        for line in lines:
            self._take(line)

    def _take(self, line: Line) -> None:
        self.values[line.id] = line.values
        if line.architecture is not None:
            self.architectures[line.id] = line.architecture

    @classmethod
    def open(cls, path: Path, by: By | None = None, columns: Iterable[str] = ()) -> "ScoreFile":
        """The scores in `path`, which may be absent; without `by` they are only read.

        Lines that lack one of `columns` are left out, and scored again.

        A last line that a kill cut is dropped, and an older format is converted. All processes call
        it. UserError when the file is broken, or when something else than `by` scored it.
        """
        lines, columns = list(_read(path, by or {})), set(columns)
        for line in lines:
            if by is not None and line.by != by:
                key = next(key for key in {**by, **line.by} if line.by.get(key) != by.get(key))
                way = f"{key} was {line.by.get(key)}, now it is {by.get(key)}"
                raise UserError(f"{path}: it was scored in another way: {way}; choose another")
        lines = [line for line in lines if columns <= line.values.keys()]
        distributed.wait()  # until all have read
        if by is not None and distributed.rank() == 0:
            write_text(path, "".join(map(str, {line.id: line for line in lines}.values())))
        return cls(path, by, lines)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that have no values yet."""
        return [name for name in dict.fromkeys(ids) if name not in self.values]

    def add(self, name: str, values: Values, architecture: Any = None) -> None:
        """Append the values of an architecture; only the first process writes them."""
        line = Line(name, values, self.by, architecture)
        self._take(line)
        if distributed.rank() == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(str(line))

    def fill(
        self,
        ids: Iterable[str],
        score: Callable[[list[str]], list[Values]],
        title: str,
        architectures: Mapping[str, Any] | None = None,
    ) -> None:
        """Add what `score` gives for those of `ids` that are missing, a group of them at a time.

        All processes call it and `score`, which may divide a group among them. `architectures`, by
        their ids, are written next to their values.
        """
        known = architectures or {}
        missing, size = self.missing(ids), GROUP * distributed.size()
        with Progress(title, len(missing), max(size, len(missing) // 20)) as progress:
            for start in range(0, len(missing), size):
                group = missing[start : start + size]
                for name, values in zip(group, score(group), strict=True):
                    self.add(name, values, known.get(name))
                    progress.update(**values)


# -- reading ---------------------------------------------------------------------------------------


def _read(path: Path, by: By) -> Iterator[Line]:
    """The lines of a file; those of older formats get from `by` what these did not record."""
    older = path.with_suffix(".json")
    if not path.exists() and older.exists():  # tools/rank.py wrote {"top1": {id: top1}, **by}
        record = read_json(older)
        top1 = as_type(record.pop("top1", None), Values, str(older), "scores of architectures")
        record["supernet"] = str(record.get("supernet"))[:DIGITS]
        yield from (Line(name, {"supernet": value}, record) for name, value in top1.items())
    # what follows the last line break was cut off
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        where, what = f"{path}: line {number}", "a score of an architecture"
        record = parse_json(line, dict[str, Any], where, what)
        if "cell" in record:  # benchmarks/nasbench201.py wrote {"cell", "top1", **by}
            scores = {"id": record.pop("cell"), "values": {"supernet": record.pop("top1", None)}}
            record = {**scores, "by": by | record}
        yield Line.read(record, where)

"""The folder of an evolutionary search: the published files, and how a search goes on where it
stopped.

iter_k/net_i.subnet and .stats are written as candidates are evaluated, iter_k.stats after each
iteration; search.json says what was searched. Architectures are stored as records of their space
(`Genome.record`).
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.nsganetv2.nsga2_search import Record, Search
from model.spaces.contracts import Genome
from utils import distributed
from utils.checkpoint import write_text
from utils.errors import UserError


class SearchFolder:
    """`open` only looks; the first file that is written makes the folder. Several processes share
    it.
    """

    def __init__(self, path: Path, settings: dict, origin: Path | None = None):
        self.path, self.settings, self.origin = path, settings, origin
        self.validation: list[int] = []  # indices of the images that validate candidates
        # (error, cost) of the hypervolume, fixed by iteration 0
        self.reference: tuple[float, float] | None = None

    @classmethod
    def open(cls, path: Path, settings: dict, resume: str) -> "SearchFolder":
        """`resume`: auto, none, or a folder whose archive a new search begins with. UserError on
        another search.
        """
        saved = path / "search.json"
        if saved.exists():
            if resume == "none":
                raise UserError(
                    f"--save {path}: it holds a search; choose another folder, or --resume auto goes on"
                )
            # once there was no choice
            before = {"selection": "published"} | _read(saved).get("settings", {})
            changed = [key for key in settings if settings[key] != before.get(key)]
            if changed:
                was = ", ".join(f"{key} {before.get(key)} (now {settings[key]})" for key in changed)
                raise UserError(
                    f"--save {path}: it holds a search with {was}; choose another folder"
                )
        elif path.exists() and any(path.glob("iter_*")):
            raise UserError(
                f"--save {path}: it has iter_* files, but no search.json; choose another folder"
            )
        origin = None if resume in ("auto", "none") else Path(resume)
        if origin is not None and not (
            origin.is_dir() and (_last(origin) is not None or _nets(origin))
        ):
            raise UserError(
                f"--resume {resume}: it must be auto, none, or a folder with iter_*.stats or net_*.subnet"
            )
        return cls(path, settings, origin)

    # -- going on ----------------------------------------------------------------------------------

    def restore(self, search: Search) -> int:
        """Take up the last finished iteration; its number, or -1 when there is none. All processes
        call it.
        """
        distributed.wait()  # until all have looked
        folder, done = self.path, _last(self.path)
        if done is None:
            record = {"settings": self.settings, "validation": self.validation}
            _write_once(self.path / "search.json", record)
            folder, done = self.origin, _last(self.origin) if self.origin else None
        if done is None:
            return -1
        file = folder / f"iter_{done}.stats"
        record = _read(file)
        failed = record.get("failed", [_read(failure) for failure in _failures(folder, done)])
        search.failed = {tuple(search.genome.from_json(found)) for found in failed}
        search.add(_recosted(archive_of(record, search.genome, file), search))
        try:
            search.predicted = [(float(a), float(b)) for a, b in record["foretold"]]
            self.reference = tuple(map(float, record["reference"]))
            same_cost = record["sec_obj"] == search.objective.name
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: this search cannot go on from it ({error!r})") from None
        if not same_cost:
            self.reference = search.worst()
        print(
            f"goes on after iteration {done} of {folder}: {len(search.archive)} architectures",
            flush=True,
        )
        return done

    def first_archive(self, search: Search) -> list[Record]:
        """The archive in the net_*.subnet and .stats of `origin`; empty without."""
        pairs = [
            (_read(file), _read(file.with_suffix(".stats")))
            for file in (_nets(self.origin) if self.origin else [])
        ]
        try:
            rows = [[subnet, 100 - float(stats["top1"]), 0.0] for subnet, stats in pairs]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.origin}: a .stats file has no top1 ({error!r})") from None
        return _recosted(archive_of({"archive": rows}, search.genome, self.origin), search)

    def stats(self, iteration: int, index: int, record: dict) -> dict | None:
        """What an earlier, unfinished run of this iteration measured of this very architecture."""
        subnet, stats = (
            self._net(iteration, index, ".subnet"),
            self._net(iteration, index, ".stats"),
        )
        try:
            return _read(stats) if _read(subnet) == record else None
        except UserError:  # not there, or cut off
            return None

    # -- writing -----------------------------------------------------------------------------------

    def write_stats(self, iteration: int, index: int, record: dict, stats: dict) -> None:
        self._net(iteration, index, ".stats").unlink(missing_ok=True)  # one of another architecture
        write_text(self._net(iteration, index, ".subnet"), json.dumps(record) + "\n")
        write_text(self._net(iteration, index, ".stats"), json.dumps(stats) + "\n")

    def write_failure(self, iteration: int, index: int, record: dict, reason: str) -> None:
        """A candidate that could not be evaluated, with the reason; it never becomes a number in
        the archive.
        """
        file = self.path / "failed" / f"it_{iteration}_net_{index}"
        _write_once(file, {**record, "error": reason})
        print(f"iter_{iteration}/net_{index} failed, see {file}: {reason}", flush=True)

    def write_iteration(
        self, iteration: int, search: Search, new: list[Record], hypervolume: float, surrogate: dict
    ) -> None:
        """iter_k.stats as published, and beside that what resuming needs."""
        rows = [[search.genome.to_json(r.genes), r.error, r.cost] for r in search.archive]
        record = {
            "archive": rows,
            "candidates": rows[-len(new) :],
            "hv": hypervolume,
            # NaN
            "surrogate": {
                key: None if value != value else value for key, value in surrogate.items()
            },
            "reference": list(self.reference),
            "foretold": search.predicted,
            # of an origin, too
            "failed": [search.genome.to_json(row) for row in sorted(search.failed)],
            "sec_obj": search.objective.name,
        }
        _write_once(self._stats(iteration), record)

    def _net(self, iteration: int, index: int, suffix: str) -> Path:
        return self.path / f"iter_{iteration}" / f"net_{index}{suffix}"

    def _stats(self, iteration: int) -> Path:
        return self.path / f"iter_{iteration}.stats"


def _write_once(file: Path, record: dict) -> None:
    """What all processes know, written by the first."""
    if distributed.rank() == 0:
        write_text(file, json.dumps(record) + "\n")


def _recosted(records: list[Record], search: Search) -> list[Record]:
    """With the costs of this search, unrounded, whatever those were that were stored."""
    costs = search.objective(np.array([record.genes for record in records])) if records else []
    return [replace(record, cost=float(cost)) for record, cost in zip(records, costs, strict=True)]


def archive_of(record: dict, genome: Genome, file: Path) -> list[Record]:
    """The archive in an iter_k.stats record; UserError when it is none of this space."""
    try:
        rows = [
            (tuple(genome.from_json(found)), error, cost)
            for found, error, cost in record["archive"]
        ]
        return [Record(genes, float(error), float(cost)) for genes, error, cost in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: no archive of this space ({error})") from None


def read_archive(file: Path) -> dict:
    """An iter_k.stats file; UserError when it is none."""
    record = _read(file)
    if not isinstance(record.get("archive"), list) or not record["archive"]:
        raise UserError(f"{file}: it holds no archive")
    return record


def last_archive(folder: Path) -> list[list]:
    """The rows (architecture, error, cost) of a search's last finished iteration; UserError when
    there is none.
    """
    last = _last(folder)
    if last is None:
        raise UserError(f"{folder}: it holds no finished iteration of a search")
    return read_archive(folder / f"iter_{last}.stats")["archive"]


def _read(file: Path) -> dict:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{file}: it holds no record")
    return record


def _last(folder: Path) -> int | None:
    """The number of the last finished iteration in a folder."""
    numbers = [
        re.fullmatch(r"iter_(\d+)\.stats", file.name) for file in folder.glob("iter_*.stats")
    ]
    return max((int(number[1]) for number in numbers if number), default=None)


def _failures(folder: Path, done: int) -> list[Path]:
    """Failures up to iteration `done`: those of an unfinished one were not known when its
    candidates were proposed.
    """
    return [file for k in range(done + 1) for file in (folder / "failed").glob(f"it_{k}_net_*")]


def _nets(folder: Path) -> list[Path]:
    """net_*.subnet with .stats, in the order of their numbers."""
    files = [file for file in folder.glob("net_*.subnet") if file.with_suffix(".stats").exists()]
    return sorted(files, key=lambda file: (len(file.name), file.name))

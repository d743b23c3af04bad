"""The folder of an evolutionary search: the published files, and how a search resumes.

iter_k/net_i.subnet and .stats are written as candidates are evaluated, iter_k.stats after each
iteration; search.json says what is searched. Architectures are stored as their space writes them
(`Genome.to_json`).
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from msgspec import Meta

from model.nsganetv2.evaluation import Evaluation
from model.nsganetv2.nsga2_search import Record, Search
from model.ranking.combined import FixedScale
from model.ranking.score_file import ScoreFile
from model.spaces.contracts import Genome
from utils import distributed
from utils.checkpoint import remove_unfinished, write_text
from utils.claim import Claim
from utils.data_record import DATA_FILE, DataRecord
from utils.errors import UserError
from utils.json_file import read_json

Written = dict | list | str  # an architecture, by `Genome.to_json`
Percent = Annotated[float, Meta(ge=-1, le=101)]  # rounded ones, too
Cost = Annotated[float, Meta(ge=0, le=1e12)]
Row = tuple[Written, Percent, Cost]  # architecture, top-1 error in %, cost


ITERATION = r"iter_(\d+)\.stats"  # the file of a finished iteration


class IterationStats(TypedDict, total=False):
    """What is read of iter_k.stats: published keys, and from `reference` on those of resuming."""

    archive: list[Row]
    hv: float
    surrogate: dict
    reference: tuple[float, float]
    predictions: list[tuple[float, float]]
    foretold: list[tuple[float, float]]  # what older searches call predictions
    failed: list[Written]
    sec_obj: str
    evaluate: str  # absent: supernet
    scale: FixedScale | None


class NetStats(TypedDict):
    """What is read of a net_i.stats."""

    top1: Percent


@dataclass
class _SearchJson:
    """What is read of search.json."""

    settings: dict[str, Any] = field(default_factory=dict)


class SearchFolder:
    """Where a search writes; several processes share it.

    `open` only looks; the first file that is written makes the folder.
    """

    def __init__(self, path: Path, settings: dict, origin: Path | None = None):
        self.path, self.settings, self.origin = path, settings, origin
        self.validation: list[int] = []  # indices of the images that validate candidates
        self.evaluate = "supernet"  # how candidates are judged
        self.evaluation: Evaluation | None = None  # what does
        # (error, cost) of the hypervolume, fixed by iteration 0
        self.reference: tuple[float, float] | None = None
        self._claim: Claim | None = None
        self._data: DataRecord | None = None

    @classmethod
    def open(cls, path: Path, settings: dict, resume: str) -> "SearchFolder":
        """Open the folder of a new search, or of the same one; UserError if it is of another.

        `resume` is auto, none, or a folder whose archive a new search starts with.
        """
        saved = path / "search.json"
        if saved.exists():
            if resume == "none":
                reason = "it holds a search; choose another folder, or --resume auto resumes it"
                raise UserError(f"--save {path}: {reason}")
            # the first searches had no choice of a selection
            before = {"selection": "published", "evaluate": "supernet"}
            before |= read_json(saved, _SearchJson, "the search.json of a search").settings
            changed = [key for key in settings if settings[key] != before.get(key)]
            if changed:
                was = ", ".join(f"{key} {before.get(key)} (now {settings[key]})" for key in changed)
                reason = f"it holds a search with {was}; choose another folder"
                raise UserError(f"--save {path}: {reason}")
        elif path.exists() and any(path.glob("iter_*")):
            reason = "it has iter_* files, but no search.json; choose another folder"
            raise UserError(f"--save {path}: {reason}")
        origin = None if resume in ("auto", "none") else Path(resume)
        if origin is not None and not (_last(origin) or _nets(origin)):
            reason = "it must be auto, none, or a folder with iter_*.stats or net_*.subnet"
            raise UserError(f"--resume {resume}: {reason}")
        return cls(path, settings, origin)

    def check_data(self, record: DataRecord) -> None:
        """UserError when the search that is resumed had other images.

        Searches that were started before there were records take the first one that they see.
        """
        self._data, file = record, self.path / DATA_FILE
        if file.exists():
            kept = read_json(file, DataRecord, "the record of a search's data")
            kept.refuse_changes(record, self.path)

    # -- resuming ----------------------------------------------------------------------------------

    def restore(self, search: Search) -> int:
        """Load the last finished iteration and return its number, or -1 if there is none.

        All processes call it.
        """
        if distributed.of_first(self.path.exists()):
            self._lock()
        last = _last(self.path)
        new = last is None
        if new:
            last = _last(self.origin) if self.origin else None
        if last is None:
            self.first_archive(search)  # what is broken shows before anything is written
            self._begin()
            return -1
        done, file = last
        stats = read_archive(file)
        judged = stats.get("evaluate", "supernet")
        if judged != self.evaluate:
            reason = f"its errors are those of --evaluate {judged}, not {self.evaluate}"
            raise UserError(f"{file}: {reason}")
        missing = [key for key in ("predictions", "reference", "sec_obj") if key not in stats]
        if missing:
            raise UserError(f"{file}: no search can resume from it, it lacks {', '.join(missing)}")
        if "failed" in stats:
            failed = [(record, file) for record in stats["failed"]]
        else:  # older searches
            failures = _failures(file.parent, done)
            failed = [(_failed(read_json(failure, dict)), failure) for failure in failures]
        search.failed = {_genes_of(record, search.genome, source) for record, source in failed}
        search.add(_recosted(archive_of(stats, search.genome, file), search))
        search.predictions = stats["predictions"]
        if self.evaluation is not None:
            self.evaluation.scale = stats.get("scale")
        same_cost = stats["sec_obj"] == search.objective.name
        self.reference = stats["reference"] if same_cost else search.worst()
        if new:
            self._begin()
        said = (
            f"resumes after iteration {done} of {file.parent}: {len(search.archive)} architectures"
        )
        print(said, flush=True)
        return done

    def _lock(self) -> None:
        """Make the folder, lock it, and remove what a kill left; all processes call it."""
        distributed.wait()  # until all have looked
        if distributed.rank() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim = Claim.lock(self.path)
            if self._data and not (self.path / DATA_FILE).exists():
                write_text(self.path / DATA_FILE, self._data.to_json())
            for inside in ("", "iter_*/", "failed/"):  # the folder may hold more than the search
                remove_unfinished(self.path, inside)
        distributed.wait()
        self._claim = self._claim or Claim.of(self.path)

    def _begin(self) -> None:
        """Write what is searched; before all other files, and once all that is read is whole."""
        if self._claim is None:
            self._lock()
        record = {"settings": self.settings, "validation": self.validation}
        self._write_once("search.json", record)

    def first_archive(self, search: Search) -> list[Record]:
        """The archive in the net_*.subnet and .stats of `origin`; empty without."""
        rows, files = [], _nets(self.origin) if self.origin else []
        if files and self.evaluate != "supernet":
            reason = f"its accuracies are not those of --evaluate {self.evaluate}"
            raise UserError(f"--resume {self.origin}: {reason}")
        for file in files:
            stats = read_json(file.with_suffix(".stats"), NetStats, "the .stats of a network")
            rows.append((read_json(file, Written), 100 - stats["top1"], 0.0))
        return _recosted(archive_of({"archive": rows}, search.genome, self.origin), search)

    def stats(
        self, iteration: int, index: int, record: Written, needed: Iterable[str] = ("top1",)
    ) -> dict[str, float | None] | None:
        """What an earlier, unfinished run of this iteration measured of this very architecture.

        None when it is not there, cut off, NaN, or lacks one of `needed`: it is evaluated again.
        """
        subnet, stats = (self._net(iteration, index, suffix) for suffix in (".subnet", ".stats"))
        try:
            if read_json(subnet, Written) != record:
                return None
            if "top1" in needed:
                read_json(stats, NetStats)
            found = read_json(stats, dict[str, float | None])
        except UserError:
            return None
        return found if all(found.get(name) is not None for name in needed) else None

    # -- writing -----------------------------------------------------------------------------------

    def write_stats(self, iteration: int, index: int, record: Written, stats: dict) -> None:
        """Write an evaluated candidate: its architecture, and then what was measured."""
        self._check()
        self._net(iteration, index, ".stats").unlink(missing_ok=True)  # of another architecture
        write_text(self._net(iteration, index, ".subnet"), json.dumps(record) + "\n")
        write_text(self._net(iteration, index, ".stats"), json.dumps(stats) + "\n")

    def write_failure(self, iteration: int, index: int, record: Written, reason: str) -> None:
        """Write a candidate that could not be evaluated; it becomes no number in the archive."""
        name = f"failed/it_{iteration}_net_{index}"
        self._write_once(name, {"architecture": record, "error": reason})
        said = f"iter_{iteration}/net_{index} failed, see {self.path / name}: {reason}"
        print(said, flush=True)

    def write_iteration(
        self, iteration: int, search: Search, new: list[Record], hypervolume: float, surrogate: dict
    ) -> None:
        """Write iter_k.stats, with NaN as null."""
        to_json = search.genome.to_json
        rows = [[to_json(r.genes), r.error, r.cost] for r in search.archive]
        record = {
            "kind": search.genome.space.kind,
            "archive": rows,
            "candidates": rows[-len(new) :],
            "hv": hypervolume,
            "surrogate": {k: None if v != v else v for k, v in surrogate.items()},
            "reference": list(self.reference),
            "predictions": search.predictions,
            # of an origin, too
            "failed": [to_json(row) for row in sorted(search.failed)],
            "sec_obj": search.objective.name,
            "evaluate": self.evaluate,
        }
        if self.evaluation is not None and self.evaluation.scale is not None:
            record["scale"] = asdict(self.evaluation.scale)
        self._write_once(f"iter_{iteration}.stats", record)

    def scores(self, columns: Iterable[str]) -> ScoreFile:
        """The signals of a pool of architectures, in signals.jsonl; all processes call it."""
        self._begin()
        return ScoreFile.open(self.path / "signals.jsonl", {"seed": self.settings["seed"]}, columns)

    def _write_once(self, name: str, record: dict) -> None:
        """Write what all processes know, by the first of them."""
        if distributed.rank() == 0:
            self._check()
            write_text(self.path / name, json.dumps(record) + "\n")

    def _check(self) -> None:
        """UserError when the folder has been deleted since the search began."""
        if self._claim is not None:
            self._claim.check()

    def _net(self, iteration: int, index: int, suffix: str) -> Path:
        return self.path / f"iter_{iteration}" / f"net_{index}{suffix}"


# -- reading archives ------------------------------------------------------------------------------


def read_archive(file: Path) -> IterationStats:
    """An iter_k.stats file with an archive; UserError when it is none, or holds NaN."""
    stats = read_json(file, IterationStats, "the iter_k.stats of a search")
    if not stats.get("archive"):
        raise UserError(f"{file}: it holds no archive")
    if "foretold" in stats:
        stats["predictions"] = stats.pop("foretold")
    return stats


def last_archive(folder: Path) -> list[Row]:
    """The archive of a search's last finished iteration; UserError when there is none."""
    last = _last(folder)
    if last is None:
        raise UserError(f"{folder}: it holds no finished iteration of a search")
    return read_archive(last[1])["archive"]


def archive_of(stats: IterationStats, genome: Genome, file: Path) -> list[Record]:
    """The archive of iter_k.stats as genes; UserError when it is none of this space."""
    rows = stats["archive"]
    return [Record(_genes_of(found, genome, file), error, cost) for found, error, cost in rows]


def _failed(record: dict) -> Written:
    """The architecture of a failure; older searches wrote its keys beside the error."""
    return record.get("architecture", record)


def _genes_of(record: Written, genome: Genome, file: Path) -> tuple[int, ...]:
    try:
        return tuple(genome.from_json(record))
    except UserError as error:
        raise UserError(f"{file}: no architectures of this space ({error})") from None


def _recosted(records: list[Record], search: Search) -> list[Record]:
    """With the costs of this search, unrounded, whatever those were that were stored."""
    costs = search.objective(np.array([record.genes for record in records])) if records else []
    return [replace(record, cost=float(cost)) for record, cost in zip(records, costs, strict=True)]


def _last(folder: Path) -> tuple[int, Path] | None:
    """Number and file of the last finished iteration in a folder."""
    return max(_numbered(folder, ITERATION), default=None)


def _failures(folder: Path, done: int) -> list[Path]:
    """Failures up to iteration `done`; the next one proposed candidates without knowing of more."""
    return [file for k, file in _numbered(folder / "failed", r"it_(\d+)_net_.*") if k <= done]


def _nets(folder: Path) -> list[Path]:
    """net_*.subnet with .stats, in the order of their numbers."""
    files = [file for file in folder.glob("net_*.subnet") if file.with_suffix(".stats").exists()]
    return sorted(files, key=lambda file: (len(file.name), file.name))


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """Files whose name is like the pattern, each with the number in its group."""
    found = [(re.fullmatch(pattern, file.name), file) for file in folder.glob("*")]
    return [(int(match[1]), file) for match, file in found if match]

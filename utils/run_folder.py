"""The folder of a run: what a stage writes, and how it resumes where it stopped."""

import glob
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import ClassVar, Protocol

import torch
import yaml

from utils import checkpoint, distributed
from utils.claim import Claim
from utils.data_record import DATA_FILE, DataRecord
from utils.errors import UserError, one_line
from utils.json_file import as_type, parse_json, read_json
from utils.places import check_file, check_folder
from utils.ranges import Natural, Ranged
from utils.recipe import EpochMeter, check_weights
from utils.runtime import describe_environment
from utils.stopping import check_stop_together, saved_when_stopped

# Keys that may change between two sessions of one run: they do not touch its results.
_FREE_KEYS = {"strict_data", "num_workers", "print_freq", "log_dir", "write_dir", "ngpu"}
# What a run that starts from the state of another one takes over.
_STATE = (
    "split.json",
    "prior_pool.json",
    "metrics.jsonl",
    "architecture.json",
    "checkpoints/*.pth",
)


class Training(Protocol):
    """What is trained, with all that its training needs."""

    epochs: int  # finished ones
    meter: EpochMeter  # of the epoch in progress

    def state(self) -> dict:
        """A checkpoint: tensors and plain values, the trained weights under "model"."""

    def load_state(self, state: dict) -> None:
        """Continue from a checkpoint."""


class Settings(Protocol):
    """What decides the results of a run: a `Config`, or the flags of a command."""

    log_dir: str
    write_dir: str | None
    title_flag: ClassVar[str]  # which flag names the folder
    # may differ where a run starts from the state of another one
    length_keys: ClassVar[frozenset[str]]

    def to_dict(self) -> dict:
        """Plain values."""

    @classmethod
    def read(cls, file: Path) -> "Settings":
        """From the YAML file of `to_dict`."""


@dataclass(frozen=True)
class Provenance:
    """What environment.json says of a run: its stage, and the run whose state it started from."""

    stage: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class _Progress(Ranged):
    """How far the state of a training says that it came."""

    epoch: Natural
    tally: dict[str, int | float]


@dataclass(frozen=True)
class _Row:
    """What is read of a line of metrics.jsonl."""

    stage: str
    epoch: int | float


class RunFolder:
    """`log_dir/title`: everything that a run writes, and all that is needed to resume it.

    config.yml, environment.json, data.json, split.json, metrics.jsonl, checkpoints/, tensorboard/,
    and the stage's tables. `open` only looks; `begin` writes, once all is known to be in order.
    Only the first process writes; a kill leaves every file whole.
    """

    def __init__(self, path: Path, events: Path | None = None):
        self.path = Path(path)
        self.continues = False  # whether the folder holds an earlier part of this very run
        self.stage = ""
        self.minutes = 15.0  # between two checkpoints inside an epoch
        self.origin: Path | None = None  # the run folder whose state a new run starts from
        self._events = events or self.path / "tensorboard"
        self._writer = None
        self._data: DataRecord | None = None
        self._claim: Claim | None = None
        self._afresh = False  # whether an earlier run is to be moved aside

    # -- opening -----------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        stage: str,
        config: Settings,
        title: str,
        resume: str = "auto",
        data: DataRecord | None = None,
    ) -> "RunFolder":
        """The folder of `title` for a run of `stage`.

        Args:
            resume: "auto" resumes a run of the same config and refuses another one; "none" starts
                from scratch; a path to another run folder, or to a checkpoint in it, starts a new
                title from the state of that run, whose config may differ in the number of epochs.
            data: for `check_data`, where keys of the config are made of the data.
        """
        flag = config.title_flag
        if not title or Path(title).is_absolute() or ".." in Path(title).parts:
            raise UserError(f"{flag} {title!r}: it must name a folder inside log_dir")
        events = Path(config.write_dir) / title if config.write_dir else None
        run = cls(Path(config.log_dir) / title, events)
        run.stage = stage
        saved, named, other = run.file("config.yml"), f"{flag} {title}", "choose another title"
        if run.path.exists() and not saved.exists() and any(run.path.iterdir()):
            raise UserError(f"{named}: {run.path} exists, but is no run folder; {other}")
        run.continues, run._afresh = resume != "none" and saved.exists(), resume == "none"
        if data is not None:
            run.check_data(data)
        recorded = run._provenance() if run.continues else Provenance()
        if resume not in ("auto", "none"):
            run.origin = _run_folder_of(Path(resume))
            origin = type(config).read(run.origin / "config.yml")
            _refuse_changes(origin, config, str(run.origin), config.length_keys)
            if run.continues and recorded.origin != str(run.origin):
                raise UserError(f"--resume {resume}: {named} has a run of its own; {other}")
        if run.continues:
            if recorded.stage not in (stage, None):
                raise UserError(f"{named}: this is a run of {recorded.stage}; {other}")
            _refuse_changes(type(config).read(saved), config, title)
        run._check_places(config)
        return run

    def _check_places(self, config: Settings) -> None:
        """UserError that names the key of a place where nothing can be written."""
        check_folder(self.path, "log_dir")
        if config.write_dir:
            check_folder(self._events, "write_dir")
        for key, value in config.to_dict().items():
            if key.startswith("path_to_") and value:
                check_file(value, key)

    def _provenance(self) -> Provenance:
        file = self.file("environment.json")
        known = file.exists()
        return read_json(file, Provenance, "the record of a run") if known else Provenance()

    def check_data(self, record: DataRecord) -> None:
        """UserError when the run, or the one it starts from, had other images; `begin` keeps them.

        Runs that were started before there were records take the first one that they see.
        """
        self._data, folder = record, self.path if self.continues else self.origin
        file = folder / DATA_FILE if folder else None
        if file is not None and file.exists():
            read_json(file, DataRecord, "the record of a run's data").refuse_changes(record, folder)

    def begin(self, config: Settings, device: torch.device) -> None:
        """Make the folder, and move aside a run that is not resumed; all processes call it."""
        distributed.wait()  # until all have looked
        if distributed.rank() == 0:
            if self.continues:
                self._claim = Claim.lock(self.path)
                checkpoint.remove_unfinished(self.path)
            else:
                if self.file("config.yml").exists():
                    self._move_aside()
                self._create(config)
            if self._data and not self.file(DATA_FILE).exists():
                self.write_text(DATA_FILE, self._data.to_json())
            provenance = Provenance(self.stage, self._provenance().origin)
            record = {**asdict(provenance), **describe_environment(device)}
            self.write_text("environment.json", json.dumps(record, indent=1) + "\n")
            print(f"run folder {self.path}, on {device}", flush=True)
        distributed.wait()

    def _create(self, config: Settings) -> None:
        """Make all that a new run starts with by one rename: after a kill it is whole or absent.

        It is locked before it appears, so that of two processes that start a title one is refused.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_left_over()
        new = self.path.with_name(f".{self.path.name}.{token_hex(4)}{checkpoint.UNFINISHED}")
        provenance = Provenance(self.stage, str(self.origin) if self.origin else None)
        try:
            new.mkdir()
            self._claim = Claim.lock(new)
            text = yaml.safe_dump(config.to_dict(), sort_keys=False)
            checkpoint.write_text(new / "config.yml", text)
            checkpoint.write_text(new / "environment.json", json.dumps(asdict(provenance)))
            if self._data:
                checkpoint.write_text(new / DATA_FILE, self._data.to_json())
            for file in self._inherited_files(config) if self.origin else ():
                checkpoint.copy(file, new / file.relative_to(self.origin))
            with suppress(OSError):
                self.path.rmdir()  # an empty one
            if self.path.exists():
                raise UserError(f"{self.path}: another process has just started this run")
            new.rename(self.path)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _remove_left_over(self) -> None:
        """Remove what a kill left of a folder that was being made."""
        name = glob.escape(f".{self.path.name}")
        for pattern in (checkpoint.UNFINISHED, f".{'[0-9a-f]' * 8}{checkpoint.UNFINISHED}"):
            for folder in self.path.parent.glob(f"{name}{pattern}/"):
                with suppress(UserError, OSError):  # of a process that makes it now
                    Claim.lock(folder)
                    shutil.rmtree(folder)

    def _inherited_files(self, config: Settings) -> list[Path]:
        """What a run takes over from `origin`: no generator if it trains the supernet further."""
        files = [file for name in _STATE for file in self.origin.glob(name)]
        before, now = type(config).read(self.origin / "config.yml").to_dict(), config.to_dict()
        if before.get("warmup_epochs") != now.get("warmup_epochs"):
            files = [file for file in files if not file.name.startswith("generator_")]
        return files

    def _move_aside(self) -> None:
        Claim.lock(self.path)  # unless another process writes there
        if not self._afresh:
            raise UserError(f"{self.path}: another process has just started this run")
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        # kept elsewhere by write_dir
        if self._events.exists() and not self._events.is_relative_to(self.path):
            self._events.rename(self._events.with_name(aside.name))
        print(f"moved the earlier run to {self.path.rename(aside)}")

    # -- files -------------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        return self.path / name

    def checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.pth"

    def write_once(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` write a file that does not exist yet."""
        for path in self._written(self.file(name)):
            if not path.exists():
                write(path)

    def write_text(self, name: str, text: str, mirror: str | None = None) -> None:
        """Write a file, and a copy of it at `mirror` when that is given."""
        for path in self._written(mirror, self.file(name)):
            checkpoint.write_text(path, text)

    def write_csv(
        self, name: str, columns: tuple[str, ...], rows: list[tuple], mirror: str | None = None
    ) -> None:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        self.write_text(name, "\n".join(lines) + "\n", mirror)

    def save(self, name: str, payload: dict, mirror: str | None = None) -> None:
        """Save a checkpoint, and first a copy of it at `mirror` when that is given.

        The last file that a stage saves in an epoch is what resuming reads, so it must not come
        before its copies.
        """
        for path in self._written(mirror, self.checkpoint(name)):
            checkpoint.save(path, payload)

    def log(self, stage: str, epoch: int, **numbers: float) -> None:
        """Log numbers in metrics.jsonl and TensorBoard, after `epoch` epochs of `stage`."""
        for path in self._written(self.file("metrics.jsonl")):
            with checkpoint.errors_name(path), open(path, "a") as file:
                file.write(json.dumps({"stage": stage, "epoch": epoch, **numbers}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with checkpoint.errors_name(self._events):
                self._picture(stage, epoch, numbers)

    def _picture(self, stage: str, epoch: int, numbers: dict[str, float]) -> None:
        """Numbers for TensorBoard."""
        if self._writer is None:
            # slow to import, and not every call needs it
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events))
        for name, number in numbers.items():
            self._writer.add_scalar(f"{stage}/{name}", number, epoch)
        self._writer.flush()

    def _written(self, *paths: str | Path | None) -> list[str | Path]:
        """The `paths` that this process writes: none, except for the first process.

        UserError when the folder has been deleted since the run began.
        """
        if distributed.rank():
            return []
        if self._claim is not None:
            self._claim.check(self.path)
        return [path for path in paths if path is not None]

    # -- training ----------------------------------------------------------------------------------

    def train(
        self,
        stage: str,
        name: str,
        training: Training,
        total: int,
        one_epoch: Callable[[int], None],
    ) -> None:
        """Do what is left of `total` epochs, each by `one_epoch(epoch)`; all processes call it.

        `training` is saved as checkpoint `name` after each epoch, every so many `minutes` inside
        one, and when SIGTERM or Ctrl-C comes.
        """
        self._restore(name, training)
        self.forget_after(stage, training.epochs)
        with saved_when_stopped(partial(self._keep, name, training), self.minutes):
            for epoch in range(training.epochs, total):
                check_stop_together()
                one_epoch(epoch)
                training.epochs, training.meter = epoch + 1, EpochMeter()
                self._keep(name, training)
            check_stop_together()

    def _restore(self, name: str, training: Training) -> None:
        file = self.checkpoint(name)
        if not file.exists():
            return
        state, broken = checkpoint.load(file), None
        try:
            as_type(state, _Progress, "its state", "that of a training")
            checkpoint.weights(state, "its state")
        except UserError as error:
            broken = one_line(error)
        if broken is None:
            try:
                return training.load_state(state)
            except UserError:
                raise
            except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                broken = f"{type(error).__name__}: {one_line(error)}"
        advice = "--resume none moves the run aside and starts again"
        raise UserError(f"{file}: cannot resume from it ({broken}); {advice}")

    def _keep(self, name: str, training: Training) -> None:
        """Save what `_restore` reads, unless it is broken: then the last good checkpoint stays."""
        state = training.state()
        check_weights(state["model"].values(), str(self.path), self.checkpoint(name))
        self.save(name, state)

    def forget_after(self, stage: str, epoch: int) -> None:
        """Drop metrics of `stage` after `epoch`: of an epoch that a kill kept from being saved."""
        metrics = self.file("metrics.jsonl")
        if distributed.rank() == 0 and metrics.exists():
            text = metrics.read_text(encoding="utf-8", errors="replace")
            lines = text.splitlines(keepends=True)
            kept = [line for line in lines if not _is_after(line, stage, epoch)]
            if len(kept) < len(lines):
                self.write_text("metrics.jsonl", "".join(kept))


def _run_folder_of(path: Path) -> Path:
    """A run folder from its own path or that of one of its checkpoints."""
    folder = path if path.is_dir() else path.parent.parent
    if not path.exists() or not (folder / "config.yml").exists():
        allowed = "auto, none, a run folder or a checkpoint in one"
        raise UserError(f"--resume {path}: it must be {allowed}")
    return folder


def _is_after(line: str, stage: str, epoch: int) -> bool:
    try:
        row = parse_json(line, _Row, "metrics.jsonl", "a record", nan=True)
    except UserError:  # the line that a kill cut short
        return True
    return row.stage == stage and row.epoch > epoch


def _refuse_changes(
    saved: Settings, config: Settings, title: str, free: frozenset[str] = frozenset()
) -> None:
    """UserError that names the first key in which two settings differ, except `free` ones."""
    old, new = saved.to_dict(), config.to_dict()
    changed = [key for key in new if old.get(key) != new[key] and key not in _FREE_KEYS | free]
    if changed:
        key = changed[0]
        before, now = (one_line(repr(values.get(key)), 60) for values in (old, new))
        was = f"this run was started with {key}: {before}, now it is {now}"
        advice = "choose another title, or --resume none to move the old run aside"
        raise UserError(f"{config.title_flag} {title}: {was}; {advice}")

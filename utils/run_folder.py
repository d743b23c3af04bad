"""The folder of a run: what a stage writes, and how it goes on where it stopped."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import torch
import yaml

from utils import checkpoint, distributed
from utils.engine import EpochMeter, check_weights
from utils.errors import UserError
from utils.runtime import describe_environment
from utils.stopping import check_stop_together, saved_when_stopped


class Training(Protocol):
    """What is trained, with all that training it further needs."""

    epochs: int  # that are done
    meter: EpochMeter  # of the epoch that is under way

    def state(self) -> dict:
        """A checkpoint: tensors and plain values, the trained weights under "model"."""

    def load_state(self, state: dict) -> None:
        """Take up a checkpoint."""


class Settings(Protocol):
    """What a run was begun with: a `Config`, or the flags of a command."""

    log_dir: str
    write_dir: str | None
    title_flag: ClassVar[str]  # which flag names the folder
    # may differ where a run begins with the state of another one
    length_keys: ClassVar[frozenset[str]]

    def to_dict(self) -> dict:
        """Plain values."""

    @classmethod
    def read(cls, file: Path) -> "Settings":
        """From the YAML file of `to_dict`."""


class RunFolder:
    """`log_dir/title`: everything that a run writes.

    config.yml, environment.json, split.json, metrics.jsonl, checkpoints/, tensorboard/, and the
    stage's tables. `open` only looks; `begin` writes, once everything is known to be in order.
    """

    def __init__(self, path: Path, events: Path | None = None):
        self.path = Path(path)
        self.continues = False  # whether the folder holds an earlier part of this very run
        self.stage = ""
        self.minutes = 15.0  # between two checkpoints inside an epoch
        self.origin: Path | None = None  # the run folder whose state a new run begins with
        self._events = events or self.path / "tensorboard"
        self._writer = None

    @classmethod
    def open(cls, stage: str, config: Settings, title: str, resume: str = "auto") -> "RunFolder":
        """The folder of `title` for a run of `stage`.

        `resume` "auto" continues a run of the same config and refuses another one; "none" begins
        anew; a path to another run folder, or to a checkpoint in it, begins a new title with the
        state of that run, whose config may differ in the number of epochs.
        """
        if not title or Path(title).is_absolute() or ".." in Path(title).parts:
            raise UserError(f"{config.title_flag} {title!r}: it must name a folder inside log_dir")
        named = f"{config.title_flag} {title}"
        run = cls(
            Path(config.log_dir) / title,
            Path(config.write_dir) / title if config.write_dir else None,
        )
        run.stage = stage
        saved = run.file("config.yml")
        if run.path.exists() and not saved.exists() and any(run.path.iterdir()):
            raise UserError(
                f"{named}: {run.path} is there already, but is no run folder; choose another title"
            )
        run.continues = resume != "none" and saved.exists()
        if resume not in ("auto", "none"):
            run.origin = _run_folder_of(Path(resume))
            _refuse_changes(
                type(config).read(run.origin / "config.yml"),
                config,
                str(run.origin),
                config.length_keys,
            )
            if run.continues and run._recorded("origin") != str(run.origin):
                raise UserError(
                    f"--resume {resume}: {named} has a run of its own; choose another title"
                )
        if run.continues and run._recorded("stage") not in (stage, None):
            raise UserError(
                f"{named}: this is a run of {run._recorded('stage')}; choose another title"
            )
        if run.continues:
            _refuse_changes(type(config).read(saved), config, title)
        for key, value in config.to_dict().items():
            if key.startswith("path_to_") and value and Path(value).is_dir():
                raise UserError(f"{key}: {value}: a file is to be written here, but it is a folder")
        return run

    def begin(self, config: Settings, device: torch.device) -> None:
        """Make the folder; what lies there of another run moves aside. All processes call it, and
        the first does it.
        """
        distributed.wait()  # until all have looked
        if distributed.rank() == 0:
            self._begin(config, device)
        distributed.wait()

    def _begin(self, config: Settings, device: torch.device) -> None:
        if self.continues:
            checkpoint.remove_unfinished(self.path)
        else:
            if self.file("config.yml").exists():
                self._move_aside()
            self._begin_anew(config)
        origin = self._recorded("origin")
        record = {"stage": self.stage, "origin": origin, **describe_environment(device)}
        self.write_text("environment.json", json.dumps(record, indent=1) + "\n")
        print(f"run folder {self.path}, on {device}", flush=True)

    def _begin_anew(self, config: Settings) -> None:
        """All that a new run begins with, in one rename: a kill leaves the folder whole or absent."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = f".{self.path.name}.unfinished"
        # what a kill left of an earlier beginning
        shutil.rmtree(self.path.with_name(unfinished), ignore_errors=True)
        record = {"stage": self.stage, "origin": str(self.origin) if self.origin else None}
        new = self.path.with_name(unfinished)
        try:
            new.mkdir()
            checkpoint.write_text(
                new / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False)
            )
            checkpoint.write_text(new / "environment.json", json.dumps(record))
            for file in self._inherited_files(config) if self.origin else ():
                checkpoint.copy(file, new / file.relative_to(self.origin))
            if self.path.exists():
                self.path.rmdir()
            new.rename(self.path)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _inherited_files(self, config: Settings) -> list[Path]:
        """What a run takes over from `origin`: no generator, when it will train the supernet
        further.
        """
        files = [file for name in _STATE_FILES for file in self.origin.glob(name)]
        before, now = type(config).read(self.origin / "config.yml").to_dict(), config.to_dict()
        if before.get("warmup_epochs") != now.get("warmup_epochs"):
            files = [file for file in files if not file.name.startswith("generator_")]
        return files

    def _recorded(self, key: str) -> str | None:
        try:
            return json.loads(self.file("environment.json").read_text())[key]
        except (OSError, ValueError, KeyError):
            return None

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        # kept elsewhere by write_dir
        if self._events.exists() and not self._events.is_relative_to(self.path):
            self._events.rename(self._events.with_name(aside.name))
        print(f"moved the earlier run to {self.path.rename(aside)}")

    def file(self, name: str) -> Path:
        return self.path / name

    def checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.pth"

    def write_once(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` write a file that is not there yet; the first process does."""
        if distributed.rank() == 0 and not self.file(name).exists():
            write(self.file(name))

    def write_text(self, name: str, text: str, mirror: str | None = None) -> None:
        """Write a file whole, and a copy of it at `mirror` when that is given."""
        for path in _written(mirror, self.file(name)):
            checkpoint.write_text(path, text)

    def save(self, name: str, payload: dict, mirror: str | None = None) -> None:
        """Save a checkpoint, and first a copy of it at `mirror` when that is given.

        The last file that a stage saves in an epoch is what resuming reads, so it must not come
        before its copies.
        """
        for path in _written(mirror, self.checkpoint(name)):
            checkpoint.save(path, payload)

    def train(
        self,
        stage: str,
        name: str,
        training: Training,
        total: int,
        one_epoch: Callable[[int], None],
    ) -> None:
        """Do what is left of `total` epochs, each by `one_epoch(epoch)`, and keep `training` as
        checkpoint `name`.

        It is kept after each epoch; and in the middle of one every so many `minutes`, and where
        SIGTERM or Ctrl-C comes. All processes call it.
        """
        self._restore(name, training)
        self._forget_after(stage, training.epochs)
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
        try:
            training.load_state(checkpoint.load(file))
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"{file}: this run cannot go on from it ({type(error).__name__}: {reason}); "
                "--resume none moves the run aside and begins anew"
            ) from None

    def _keep(self, name: str, training: Training) -> None:
        """Save what `_restore` takes up, unless it is broken: then the last good checkpoint stays."""
        state = training.state()
        check_weights(state["model"].values(), str(self.path), self.checkpoint(name))
        self.save(name, state)

    def write_csv(
        self, name: str, columns: tuple[str, ...], rows: list[tuple], mirror: str | None = None
    ) -> None:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        self.write_text(name, "\n".join(lines) + "\n", mirror)

    def log(self, stage: str, epoch: int, **numbers: float) -> None:
        """One line of metrics.jsonl, and TensorBoard scalars. `epoch` counts finished epochs of the
        stage.
        """
        if distributed.rank():
            return
        with open(self.file("metrics.jsonl"), "a") as file:
            file.write(json.dumps({"stage": stage, "epoch": epoch, **numbers}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._writer is None:
            # slow to import, and not every call needs it
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events))
        for name, number in numbers.items():
            self._writer.add_scalar(f"{stage}/{name}", number, epoch)
        self._writer.flush()

    def _forget_after(self, stage: str, epoch: int) -> None:
        """Drop the metrics of `stage` after `epoch`: a killed run may have logged an epoch it could
        not save.
        """
        metrics = self.file("metrics.jsonl")
        if distributed.rank() == 0 and metrics.exists():
            lines = metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if not _is_after(line, stage, epoch)]
            if len(kept) < len(lines):
                self.write_text("metrics.jsonl", "".join(kept))


def _written(*paths: str | Path | None) -> list[str | Path]:
    """Those of `paths` that this process is to write: none, but for the first process."""
    return [path for path in paths if path is not None and distributed.rank() == 0]


# What a run that begins with the state of another one takes over.
_STATE_FILES = (
    "split.json",
    "prior_pool.json",
    "metrics.jsonl",
    "architecture.json",
    "checkpoints/*.pth",
)


def _run_folder_of(path: Path) -> Path:
    """A run folder from its own path or that of one of its checkpoints."""
    folder = path if path.is_dir() else path.parent.parent
    if not path.exists() or not (folder / "config.yml").exists():
        raise UserError(
            f"--resume {path}: it must be auto, none, a run folder or a checkpoint in one"
        )
    return folder


def _is_after(line: str, stage: str, epoch: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:  # the line that a kill cut short
        return True
    return row["stage"] == stage and row["epoch"] > epoch


# Keys that may change between two sittings of one run: they do not touch its results.
_FREE_KEYS = {"strict_data", "num_workers", "print_freq", "log_dir", "write_dir", "ngpu"}


def _refuse_changes(
    saved: Settings, config: Settings, title: str, free: set[str] = frozenset()
) -> None:
    old, new = saved.to_dict(), config.to_dict()
    changed = [key for key in new if old.get(key) != new[key] and key not in _FREE_KEYS | free]
    if changed:
        key = changed[0]
        before, now = (
            text if len(text) < 60 else text[:56] + " ..."
            for text in (repr(old.get(key)), repr(new[key]))
        )
        raise UserError(
            f"{config.title_flag} {title}: this run was begun with {key}: {before}, now it is {now}; "
            "choose another title, or --resume none to move the old run aside"
        )

"""What surrounds a stage: its errors, device, random streams, run folder and progress."""

import argparse
import functools
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
import yaml
from tqdm import tqdm

from utils import checkpoint
from utils.config import Config, load_config
from utils.errors import UserError


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came, and all is in order to save and leave."""


class _StopRequest:
    """The signal that asks this process to stop; within `saved_when_stopped` it waits for `check_stop`."""

    signal: int | None = None
    waits = False

    def receive(self, number: int, frame) -> None:
        impatient = self.signal is not None
        self.signal = number
        if impatient or not self.waits:
            raise KeyboardInterrupt
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)


_request = _StopRequest()


def check_stop() -> None:
    """Raise `Stopped` if a signal has come: called where everything that trains is between two steps."""
    if _request.waits and _request.signal is not None:
        raise Stopped


@contextmanager
def saved_when_stopped(save: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait for the next `check_stop`, and `save()` is called before the process ends."""
    _request.waits = True
    try:
        yield
    except Stopped:
        save()
        print("saved; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        _request.waits = False


@contextmanager
def _signals_received() -> Iterator[None]:
    """Let `_request` have SIGTERM and Ctrl-C, which only the main thread can arrange."""
    _request.signal = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(main: Callable) -> Callable:
    """Let a stage's `main(argv=None)` end bad input as one line on stderr and exit status 2.

    SIGTERM and Ctrl-C end it with a line, too, and with the exit status that shells expect.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        name = Path(sys.argv[0]).name
        with _signals_received():
            try:
                return main(argv)
            except UserError as error:
                reason = str(error)
            except OSError as error:  # a full disk, a folder that cannot be written: nothing a traceback explains
                reason = f"{error.filename or 'input and output'}: {error.strerror or error}"
            except KeyboardInterrupt:
                number = _request.signal or signal.SIGINT
                print(f"{name}: stopped by {signal.Signals(number).name}", file=sys.stderr)
                raise SystemExit(128 + number) from None
        print(f"{name}: error: {reason}", file=sys.stderr)
        raise SystemExit(2)

    return run


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--set`, which every stage with a config has."""
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", action="extend", help="override the config"
    )


def not_negative(text: str) -> int:
    """An argparse type: a whole number from 0."""
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def boolean(text: str) -> bool:
    """An argparse type that reads what people write: `--se False` is false."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def pick_device(accelerator: bool = True) -> torch.device:
    """CUDA, else MPS, where there is one and it is wanted, else the CPU."""
    if accelerator and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU random stream of its own for each purpose, epoch and step, so that resuming needs no generator states."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def seed_global(rng: torch.Generator) -> None:
    """Seed the global streams, which dropout, stochastic depth and mixup draw from, by the seed of `rng`."""
    torch.manual_seed(rng.initial_seed())


def describe_environment(device: torch.device) -> dict:
    """Versions, commit and hardware, for the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    git = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip() or None
    except OSError:  # there is no git
        return None


class Training(Protocol):
    """What is trained, with all that training it further needs."""

    def state(self, epochs: int) -> dict:
        """A checkpoint after `epochs` whole epochs: tensors and plain values."""

    def load_state(self, state: dict) -> int:
        """Take up a checkpoint; returns its number of whole epochs."""


class RunFolder:
    """`log_dir/title`: everything that a run writes.

    config.yml, environment.json, split.json, metrics.jsonl, checkpoints/, tensorboard/, and the stage's tables.
    `open` only looks; `begin` writes, once everything is known to be in order.
    """

    def __init__(self, path: Path, events: Path | None = None):
        self.path = Path(path)
        self.continues = False  # whether the folder holds an earlier part of this very run
        self.stage = ""
        self.origin: Path | None = None  # the run folder whose state a new run begins with
        self._events = events or self.path / "tensorboard"
        self._writer = None

    @classmethod
    def open(cls, stage: str, config: Config, title: str, resume: str = "auto") -> "RunFolder":
        """The folder of `title` for a run of `stage`.

        `resume` "auto" continues a run of the same config and refuses another one; "none" begins anew; a path to
        another run folder, or to a checkpoint in it, begins a new title with the state of that run, whose config may
        differ in the number of epochs.
        """
        if not title or Path(title).is_absolute() or ".." in Path(title).parts:
            raise UserError(f"--title {title!r}: it must name a folder inside log_dir")
        run = cls(Path(config.log_dir) / title, Path(config.write_dir) / title if config.write_dir else None)
        run.stage = stage
        saved = run.file("config.yml")
        if run.path.exists() and not saved.exists() and any(run.path.iterdir()):
            raise UserError(f"--title {title}: {run.path} is there already, but is no run folder; choose another title")
        run.continues = resume != "none" and saved.exists()
        if resume not in ("auto", "none"):
            run.origin = _run_folder_of(Path(resume))
            _refuse_changes(load_config(run.origin / "config.yml"), config, str(run.origin), _LENGTH_KEYS)
            if run.continues and run._recorded("origin") != str(run.origin):
                raise UserError(f"--resume {resume}: --title {title} has a run of its own; choose another title")
        if run.continues and run._recorded("stage") not in (stage, None):
            raise UserError(f"--title {title}: this is a run of {run._recorded('stage')}; choose another title")
        if run.continues:
            _refuse_changes(load_config(saved), config, title)
        for key, value in config.to_dict().items():
            if key.startswith("path_to_") and value and Path(value).is_dir():
                raise UserError(f"{key}: {value}: a file is to be written here, but it is a folder")
        return run

    def begin(self, config: Config, device: torch.device) -> None:
        """Make the folder; what lies there of another run moves aside."""
        if not self.continues:
            if self.file("config.yml").exists():
                self._move_aside()
            self._begin_anew(config)
        origin = self._recorded("origin")
        record = {"stage": self.stage, "origin": origin, **describe_environment(device)}
        self.write_text("environment.json", json.dumps(record, indent=1) + "\n")
        print(f"run folder {self.path}, on {device}", flush=True)

    def _begin_anew(self, config: Config) -> None:
        """All that a new run begins with, in one rename: a kill leaves the folder whole or absent."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {"stage": self.stage, "origin": str(self.origin) if self.origin else None}
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as folder:
            new = Path(folder) / "run"
            checkpoint.write_text(new / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            checkpoint.write_text(new / "environment.json", json.dumps(record))
            for name in _STATE_FILES if self.origin else ():
                for file in self.origin.glob(name):
                    checkpoint.copy(file, new / file.relative_to(self.origin))
            if self.path.exists():
                self.path.rmdir()
            new.rename(self.path)

    def _recorded(self, key: str) -> str | None:
        try:
            return json.loads(self.file("environment.json").read_text())[key]
        except (OSError, ValueError, KeyError):
            return None

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        if self._events.exists() and not self._events.is_relative_to(self.path):  # kept elsewhere by write_dir
            self._events.rename(self._events.with_name(aside.name))
        print(f"moved the earlier run to {self.path.rename(aside)}")

    def file(self, name: str) -> Path:
        return self.path / name

    def checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.pth"

    def write_text(self, name: str, text: str, mirror: str | None = None) -> None:
        """Write a file whole, and a copy of it at `mirror` when that is given."""
        for path in filter(None, (mirror, self.file(name))):
            checkpoint.write_text(path, text)

    def save(self, name: str, payload: dict, mirror: str | None = None) -> None:
        """Save a checkpoint, and first a copy of it at `mirror` when that is given.

        The last file that a stage saves in an epoch is what resuming reads, so it must not come before its copies.
        """
        for path in filter(None, (mirror, self.checkpoint(name))):
            checkpoint.save(path, payload)

    def restore(self, name: str, training: Training) -> int:
        """Let `training` take up the checkpoint `name`; its number of whole epochs, 0 when there is none yet."""
        file = self.checkpoint(name)
        if not file.exists():
            return 0
        try:
            return training.load_state(checkpoint.load(file))
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"{file}: this run cannot go on from it ({type(error).__name__}: {reason}); "
                "--resume none moves the run aside and begins anew"
            ) from None

    def keep(self, name: str, training: Training, epochs: int) -> None:
        """Save what `restore` takes up: after `epochs` whole epochs, and perhaps part of another one."""
        self.save(name, training.state(epochs))

    def write_csv(self, name: str, columns: tuple[str, ...], rows: list[tuple], mirror: str | None = None) -> None:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        self.write_text(name, "\n".join(lines) + "\n", mirror)

    def log(self, stage: str, epoch: int, **numbers: float) -> None:
        """One line of metrics.jsonl, and TensorBoard scalars. `epoch` counts finished epochs of the stage."""
        with open(self.file("metrics.jsonl"), "a") as file:
            file.write(json.dumps({"stage": stage, "epoch": epoch, **numbers}) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every call needs it

            self._writer = SummaryWriter(str(self._events))
        for name, number in numbers.items():
            self._writer.add_scalar(f"{stage}/{name}", number, epoch)
        self._writer.flush()

    def forget_after(self, stage: str, epoch: int) -> None:
        """Drop the metrics of `stage` after `epoch`: a killed run may have logged an epoch it could not save."""
        metrics = self.file("metrics.jsonl")
        if metrics.exists():
            lines = metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if not _is_after(line, stage, epoch)]
            if len(kept) < len(lines):
                self.write_text("metrics.jsonl", "".join(kept))


# What a run that begins with the state of another one takes over.
_STATE_FILES = ("split.json", "prior_pool.json", "metrics.jsonl", "architecture.json", "checkpoints/*.pth")


def _run_folder_of(path: Path) -> Path:
    """A run folder from its own path or that of one of its checkpoints."""
    folder = path if path.is_dir() else path.parent.parent
    if not path.exists() or not (folder / "config.yml").exists():
        raise UserError(f"--resume {path}: it must be auto, none, a run folder or a checkpoint in one")
    return folder


def _is_after(line: str, stage: str, epoch: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:  # the line that a kill cut short
        return True
    return row["stage"] == stage and row["epoch"] > epoch


# Keys that may change between two sittings of one run: they do not touch its results.
_FREE_KEYS = {"strict_data", "num_workers", "print_freq", "log_dir", "write_dir", "ngpu"}


# Keys that may differ where a run begins with the state of another one.
_LENGTH_KEYS = {"warmup_epochs", "search_epochs", "epochs"}


def _refuse_changes(saved: Config, config: Config, title: str, free: set[str] = frozenset()) -> None:
    old, new = saved.to_dict(), config.to_dict()
    changed = [key for key in new if old.get(key) != new[key] and key not in _FREE_KEYS | free]
    if changed:
        key = changed[0]
        before, now = (text if len(text) < 60 else text[:56] + " ..." for text in (repr(old.get(key)), repr(new[key])))
        raise UserError(
            f"--title {title}: this run was begun with {key}: {before}, now it is {now}; "
            "choose another title, or --resume none to move the old run aside"
        )


class Progress:
    """A bar with time left on a terminal; in a log, a plain line every `print_freq` steps and at the end."""

    def __init__(self, title: str, total: int, print_freq: int = 100, done: int = 0):
        self.title, self.total, self.print_freq = title, total, print_freq
        self.step, self.first, self.began = done, done, time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, desc=title, leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def update(self, **numbers: float) -> None:
        self.step += 1
        if self.bar is not None:
            self.bar.set_postfix({name: f"{number:.4g}" for name, number in numbers.items()}, refresh=False)
            self.bar.update()
        elif self.step % self.print_freq == 0 and self.step < self.total:
            left = (time.monotonic() - self.began) / (self.step - self.first) * (self.total - self.step)
            shown = " ".join(f"{name} {number:.4g}" for name, number in numbers.items())
            print(f"{self.title} step {self.step}/{self.total} {shown} left {tqdm.format_interval(left)}", flush=True)

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()

"""What data a run started with, so that it does not resume with other images in silence."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from utils import distributed
from utils.data import PACKED, Dataset
from utils.errors import UserError
from utils.folder2lmdb import LmdbSource, lmdb_file, lmdb_images
from utils.images import FileSource, ImageData, Images

DATA_FILE = "data.json"  # of the folder of a run
FOLDERS = ("imagefolder", "imagenet")
PARTS = ("train", "val", "test")
Counts = dict[str, int]  # images by class


@dataclass(frozen=True)
class DataRecord:
    """The images of a data set: how many of each class, and a digest of what they are.

    Args:
        form: "folder", "LMDB", or "set" for all that is not read by the names of its classes; the
            digests of two forms cannot be compared.
        digest: SHA-256 of the names and sizes of files, of the lengths of LMDB records, or of the
            pixels of images in memory.
        parts: for each part of the data its images by class.
    """

    form: str
    digest: str
    parts: dict[str, Counts]

    @classmethod
    def of(cls, name: str, directory: str, dataset: Dataset) -> "DataRecord":
        """The record of a data set that was read from a directory; all processes call it."""
        # one process looks: a large folder has a million files
        own = cls._look(name, Path(directory), dataset) if distributed.rank() == 0 else None
        return cls(**distributed.of_first(asdict(own) if own else None))

    @classmethod
    def _look(cls, name: str, directory: Path, dataset: Dataset) -> "DataRecord":
        seen, parts = hashlib.sha256(), {}
        if name in FOLDERS:
            names = [part for part in PARTS if (directory / part).is_dir()] or ["all"]
            for part in names:
                folder = directory if part == "all" else directory / part
                parts[part] = _count_files(folder, seen)
        elif name == PACKED:
            for part in PARTS:
                if lmdb_file(directory, part).exists():
                    parts[part] = _count_records(lmdb_file(directory, part), seen)
        else:
            for part in ("train", "test", "held_out"):
                if (images := getattr(dataset, part)) is not None:
                    parts[part] = _count_images(images, seen)
        form = {PACKED: "LMDB"}.get(name, "folder" if name in FOLDERS else "set")
        return cls(form, seen.hexdigest(), {part: found for part, found in parts.items() if found})

    def to_json(self) -> str:
        """The text of `DATA_FILE`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def changes(self, now: "DataRecord") -> str | None:
        """What has changed since this record, in words; None when nothing has."""
        if self.parts.keys() != now.parts.keys() and self.form == now.form:
            return f"its parts were {', '.join(self.parts)}, now they are {', '.join(now.parts)}"
        for part in (part for part in self.parts if part in now.parts):
            if found := _differences(self.parts[part], now.parts[part]):
                return f"{part}: {found}"
        if self.form != now.form or self.digest == now.digest:
            return None
        return "an image was exchanged: the numbers of images are the same, names or sizes are not"

    def refuse_changes(self, now: "DataRecord", started: Path) -> None:
        """UserError that says what has changed since the run in folder `started` began."""
        if found := self.changes(now):
            advice = "put the images back, or start another run"
            raise UserError(f"{started}: its data have changed since it started: {found}; {advice}")


def _differences(before: Counts, now: Counts) -> str | None:
    """The first class in which two parts differ, in words."""
    gone, new = (sorted(a.keys() - b.keys()) for a, b in ((before, now), (now, before)))
    total = f"{sum(before.values())} images of {len(before)} classes, now {sum(now.values())}"
    total = f"{total} of {len(now)}"
    if gone or new:
        words = [f"class {gone[0]!r} is gone"] * bool(gone) + [f"class {new[0]!r} is new"] * bool(
            new
        )
        return f"{' and '.join(words)} ({total})"
    for name in before:
        if before[name] != now[name]:
            return f"class {name!r} had {before[name]} images, now {now[name]} ({total})"
    return None


# -- counting ----------------------------------------------------------------------------------


def _count_files(folder: Path, seen) -> Counts:
    """The image files of each class folder; names and sizes go to the digest."""
    counts = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        files = sorted(_image_files(entry.path))
        if files:
            counts[_printable(entry.name)] = len(files)
        for path, size in files:
            seen.update(f"{os.path.relpath(path, folder)}\0{size}\0".encode(errors="replace"))
    return counts


def _image_files(folder: str) -> Iterator[tuple[str, int]]:
    """Path and size of each image file, also in folders inside."""
    for root, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if not name.startswith(".") and has_file_allowed_extension(name, IMG_EXTENSIONS):
                path = os.path.join(root, name)
                yield path, os.path.getsize(path) if os.path.exists(path) else -1


def _count_records(file: Path, seen) -> Counts:
    """The records of an LMDB file; labels, and lengths as its index has them, go to the digest."""
    images, classes = lmdb_images(file, 0, False)
    source = images.source
    assert isinstance(source, LmdbSource)
    seen.update(images.labels.numpy().tobytes())
    for length in source.lengths():
        seen.update(length.to_bytes(8, "little"))
    return _by_class(images.labels, classes)


def _count_images(images: Images, seen) -> Counts:
    """Images in memory, by their pixels, or files, by their names and sizes."""
    seen.update(images.labels.numpy().tobytes())
    if isinstance(images, ImageData):
        seen.update(images.images.contiguous().numpy())
    elif isinstance(images.source, FileSource):
        root = str(images.source.root)
        for number in images.index.tolist():
            path = images.source.name(number)
            size = os.path.getsize(path) if os.path.exists(path) else -1
            seen.update(f"{path.removeprefix(root)}\0{size}\0".encode(errors="replace"))
    return _by_class(images.labels, None)


def _by_class(labels: Tensor, classes: list[str] | None) -> Counts:
    counts = labels.bincount().tolist()
    names = classes or map(str, range(len(counts)))
    return {_printable(name): count for name, count in zip(names, counts, strict=False)}


def _printable(name: str) -> str:
    """The name of a class as JSON can hold it."""
    return os.fsencode(name).decode(errors="replace")

"""Data sets: where their images come from, and how they are split.

Images are `ImageData` (decoded once into one uint8 tensor; all sets of small images) or
`EncodedImages` (decoded on the fly); `utils/loader.py` turns either into batches.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from utils import distributed
from utils.checkpoint import write_text
from utils.errors import UserError
from utils.folder2lmdb import lmdb_file, lmdb_images
from utils.image_sets import IMAGE_SETS, read_part
from utils.images import EncodedImages, ImageData, Images, fitted, image_folder
from utils.runtime import stream

PACKED = "imagenet_lmdb"
ON_DISK = ("imagefolder", "imagenet", PACKED)
SETS = tuple(name for name in IMAGE_SETS if name not in ON_DISK)
DATASETS = ("digits", *SETS, *ON_DISK)

# Up to this side in pixels, images are decoded once and kept in memory.
SMALL = 64


@dataclass(frozen=True)
class Dataset:
    """`train`, `test`, and `held_out` when the data set comes with a part that is neither."""

    train: Images
    test: Images
    held_out: Images | None = None

    def seen(self, view: str) -> "Dataset":
        """With large images brought to size in another way (`utils.images.VIEWS`)."""
        parts = (self.train, self.test, self.held_out)
        return Dataset(
            *(
                replace(part, view=view) if isinstance(part, EncodedImages) else part
                for part in parts
            )
        )


# Of a folder without parts: the share of its images that test.
TEST_SHARE = 0.2

# -- reading ---------------------------------------------------------------------------------------


def load_dataset(
    name: str,
    directory: str,
    size: int,
    classes: int | None,
    download: bool = True,
    strict: bool = False,
    in_memory: int = SMALL,
) -> Dataset:
    """The data set `name` in `directory` at `size` pixels; UserError when it is missing or has
    other `classes`.

    Images on disk are decoded once, and kept in memory, up to a side of `in_memory` pixels. Image
    files that cannot be read are skipped, counted and named; with `strict` the first of them is a
    UserError.
    """
    if name not in DATASETS:
        raise UserError(f"dataset: {name!r} cannot be read; allowed are {', '.join(DATASETS)}")
    if name == "digits":
        dataset = _digits(size)
    elif name in SETS:
        parts = [
            read_part(name, directory, part, size, download, strict, in_memory)
            for part in (True, False)
        ]
        dataset = Dataset(*(images for images, _ in parts))
    else:
        dataset = _Parts(Path(directory), name == PACKED, size, strict, in_memory).dataset()
    found = int(dataset.train.labels.max()) + 1
    if classes not in (found, None):
        raise UserError(
            f"classes: the config says {classes}, but {name} in {directory} has {found}"
        )
    return dataset


def class_names(directory: str) -> list[str]:
    """Of a folder of images, in the order of their labels."""
    return _Parts(Path(directory), False, 0, False).classes()


def load_test_images(
    name: str,
    directory: str,
    size: int,
    classes: int,
    part: str | None = None,
    strict: bool = False,
    in_memory: int = SMALL,
) -> Images:
    """The test part alone, so that it needs no training images beside it; of parts on disk another
    one if named.
    """
    return _load_part(name, directory, size, classes, False, part, strict, in_memory)


def load_training_images(
    name: str, directory: str, size: int, classes: int, strict: bool = False, in_memory: int = SMALL
) -> Images:
    """The training part alone."""
    return _load_part(name, directory, size, classes, True, "train", strict, in_memory)


def _load_part(
    name: str,
    directory: str,
    size: int,
    classes: int,
    training: bool,
    part: str | None,
    strict: bool,
    in_memory: int,
) -> Images:
    """The training or the test part; of parts on disk the one that is named. UserError when it has
    other `classes`.
    """
    if name in ON_DISK:
        parts = _Parts(Path(directory), name == PACKED, size, strict, in_memory)
        images, names = parts.read(part or parts.test)
        if len(names) != classes:
            raise UserError(
                f"classes: {directory} has {len(names)} class folders, the network {classes} classes"
            )
        return images
    if name in SETS:
        images, found = read_part(name, directory, training, size, True, strict, in_memory)
        if found != classes:
            raise UserError(f"classes: {name} in {directory} has {found}, the network {classes}")
        return images
    dataset = load_dataset(name, directory, size, classes, strict=strict)
    return dataset.train if training else dataset.test


def _digits(size: int) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged to `size`; every fifth of each class is a
    test image.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = (
        F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
    )
    data = ImageData(
        images.to(torch.uint8).repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long()
    )
    train, test = stratified_split(data.labels, 0.8, stream(0, "digits test images"))
    return Dataset(data.subset(train), data.subset(test))


@dataclass(frozen=True)
class _Parts:
    """The parts train, val and maybe test on disk: folders with a folder for each class, or LMDB
    files.

    A directory without any of them may itself be a folder of classes: then about a fifth of its
    images, by their names, are test images.
    """

    directory: Path
    packed: bool
    size: int
    strict: bool
    in_memory: int = SMALL

    def path(self, part: str) -> Path:
        return lmdb_file(self.directory, part) if self.packed else self.directory / part

    def read(self, part: str) -> tuple[Images, list[str]]:
        """Its images, small ones decoded, and the names of its classes."""
        read = lmdb_images if self.packed else image_folder
        images, names = read(
            self.directory if self.undivided else self.path(part), self.size, self.strict
        )
        if self.undivided:
            tests = self._by_name(images, names)
            images = images.subset((~tests if part == "train" else tests).nonzero().flatten())
        return (fitted(images) if self.size <= self.in_memory else images), names

    @property
    def undivided(self) -> bool:
        """Whether the directory is itself a folder with a folder of images for each class."""
        if self.packed or any(self.path(part).exists() for part in ("train", "val", "test")):
            return False
        return any(
            has_file_allowed_extension(str(file), IMG_EXTENSIONS)
            for file in self.directory.glob("*/*")
        )

    def _by_name(self, images: EncodedImages, names: list[str]) -> Tensor:
        """Which are test images `[N]`, by digests of their names, so that files that are added move
        no other one.

        At least one image of each class tests, and one trains; UserError for a class that has only
        one.
        """
        files = (
            Path(images.source.name(number)).relative_to(self.directory)
            for number in range(len(images.labels))
        )
        keys = torch.tensor(
            [hashlib.sha256(file.as_posix().encode()).digest()[0] / 256 for file in files]
        )
        tests = keys < TEST_SHARE
        for label, name in enumerate(names):
            own = (images.labels == label).nonzero().flatten()
            if len(own) < 2:
                raise UserError(
                    f"{self.directory / name}: one image; at least 2 are needed, to train and to test"
                )
            order = own[keys[own].argsort(stable=True)]
            tests[order[0]], tests[order[-1]] = True, False
        return tests

    def classes(self) -> list[str]:
        folder = self.directory if self.undivided else self.path("train")
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())

    @property
    def test(self) -> str:
        """The part "test", where its images are labelled (those of ImageNet's folder are not), else
        "val".
        """
        path = self.path("test")
        there = (
            path.exists()
            if self.packed
            else path.is_dir() and any(entry.is_dir() for entry in path.iterdir())
        )
        return "test" if there else "val"

    def dataset(self) -> Dataset:
        """With a part test, val is a held-out one."""
        images, classes = self.read("train")
        test = self.test
        held_out = (
            self._as_train("val", classes) if test == "test" and self.path("val").exists() else None
        )
        return Dataset(images, self._as_train(test, classes), held_out)

    def _as_train(self, part: str, classes: list[str]) -> Images:
        images, found = self.read(part)
        if found != classes:
            differ = ", ".join(sorted(set(found) ^ set(classes))[:3])
            raise UserError(
                f"{self.path(part)}: its classes are not those of {self.path('train')}: {differ}"
            )
        return images


# -- splitting -------------------------------------------------------------------------------------


def stratified_split(labels: Tensor, portion: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of about `portion` of each class, and of the rest, in ascending order."""
    keys = torch.rand(len(labels), generator=rng, dtype=torch.float64)
    order = torch.argsort(labels.double() + keys)  # by class, at random within
    counts = torch.bincount(labels)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    first = rank < (counts * portion).round().long()[labels]
    return first.nonzero().flatten(), (~first).nonzero().flatten()


@dataclass(frozen=True)
class SearchImages:
    """The three parts of a search: supernet training, generator training, validation. No test image
    is among them.
    """

    train: Images
    feed: Images
    validate: Images

    @property
    def held_out(self) -> Images:
        """All that does not train the supernet."""
        labels = torch.cat([self.feed.labels, self.validate.labels])
        if isinstance(self.feed, EncodedImages):
            return replace(
                self.feed, index=torch.cat([self.feed.index, self.validate.index]), labels=labels
            )
        return ImageData(torch.cat([self.feed.images, self.validate.images]), labels)


# Share of the training set that trains the supernet when the config's train_portion leaves nothing
# to hold out.
HELD_OUT_BY_DEFAULT = 0.8


def split_for_search(
    dataset: Dataset, train_portion: float, seed: int, file: Path | None = None
) -> SearchImages:
    """Cut the parts of a search, stratified by class; written to `file` if given, and read from it
    when it is there.

    What is held out of training (the data set's own part when it has one) is cut again: three
    quarters feed the generator, one quarter validates.
    """
    source = dataset.held_out or dataset.train
    rest = torch.ones(len(source.labels), dtype=torch.bool)
    if file is not None and file.exists():
        split = _read_split(file, len(source.labels))
    else:
        rng = stream(seed, "split")
        held = torch.arange(len(source.labels))
        if dataset.held_out is None:
            portion = train_portion if train_portion < 1 else HELD_OUT_BY_DEFAULT
            _, held = stratified_split(source.labels, portion, rng)
        feed, validate = (held[part] for part in stratified_split(source.labels[held], 0.75, rng))
        split = {"feed": feed, "validate": validate}
        nothing_left = dataset.held_out is None and len(held) == len(rest)
        if nothing_left or not all(len(part) for part in split.values()):
            raise UserError(
                f"train_portion: {train_portion} leaves too few of {len(rest)} images to train or hold out"
            )
        record = {
            "images": len(source.labels),
            **{name: part.tolist() for name, part in split.items()},
        }
        if file is not None and distributed.rank() == 0:
            write_text(file, json.dumps(record) + "\n")
    rest[torch.cat(list(split.values()))] = False
    train = (
        dataset.train.subset(rest.nonzero().flatten())
        if dataset.held_out is None
        else dataset.train
    )
    return SearchImages(train, source.subset(split["feed"]), source.subset(split["validate"]))


def _read_split(file: Path, images: int) -> dict[str, Tensor]:
    try:
        record = json.loads(file.read_text())
        split = {
            name: torch.tensor(record[name], dtype=torch.long) for name in ("feed", "validate")
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no split file ({error})") from None
    if not all(len(part) for part in split.values()):
        raise UserError(f"{file}: no split file (a part is empty)")
    if record.get("images") != images or max(int(part.max()) for part in split.values()) >= images:
        raise UserError(
            f"{file}: it splits {record.get('images')} images; the data set has {images}"
        )
    return split

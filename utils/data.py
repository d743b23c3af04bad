"""Data sets: how they are read, and how they are split. N denotes the number of images.

Images are `ImageData` (decoded once into one uint8 tensor; all sets of small images) or
`EncodedImages` (decoded on the fly); `utils/loader.py` turns either into batches.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from utils import distributed
from utils.checkpoint import write_text
from utils.class_folders import few, has_images_below, sub_folders
from utils.errors import UserError
from utils.folder2lmdb import lmdb_file, lmdb_images
from utils.image_sets import IMAGE_SETS, read_part
from utils.images import (
    EncodedImages,
    ImageData,
    Images,
    at_size,
    check_readable,
    fitted,
    image_folder,
    labelled_as,
)
from utils.json_file import read_json
from utils.runtime import stream

PACKED = "imagenet_lmdb"
ON_DISK = ("imagefolder", "imagenet", PACKED)
SETS = tuple(name for name in IMAGE_SETS if name not in ON_DISK)
DATASETS = ("digits", *SETS, *ON_DISK)

SMALL = 64  # up to this side in pixels, images are decoded once and kept in memory
PARTS = ("train", "val", "test")
TEST_SHARE = 0.2  # of the images of a folder without parts
# Share of the training set that trains the supernet where `train_portion` holds nothing out.
HELD_OUT_BY_DEFAULT = 0.8


@dataclass(frozen=True)
class DataSource:
    """Which data set to read, and how."""

    name: str  # one of DATASETS
    directory: str
    size: int  # side in pixels at which images are read
    classes: int | None  # how many it must have; None: any number
    download: bool = True  # what is missing
    strict: bool = False  # an image that cannot be read is a UserError; else skipped and named
    in_memory: int = SMALL  # up to this side in pixels, images on disk are decoded once and kept


@dataclass(frozen=True)
class Dataset:
    """`train`, `test`, and `held_out` when the data set comes with a part that is neither."""

    train: Images
    test: Images
    held_out: Images | None = None
    names: tuple[str, ...] | None = None  # of the classes, where they are known

    def seen(self, view: str) -> "Dataset":
        """With large images brought to size in another way (`utils.images.VIEWS`)."""

        def by_view(part: Images | None) -> Images | None:
            return replace(part, view=view) if isinstance(part, EncodedImages) else part

        train, test, held_out = map(by_view, (self.train, self.test, self.held_out))
        return replace(self, train=train, test=test, held_out=held_out)


# -- reading ---------------------------------------------------------------------------------------


def load_dataset(name: str, directory: str, size: int, classes: int | None, **options) -> Dataset:
    """Read the data set of a `DataSource`; UserError when it is missing or has other `classes`."""
    source = DataSource(name, directory, size, classes, **options)
    if name in ON_DISK:
        dataset = _PartsOnDisk(source).dataset()
    else:
        (train, names), (test, _) = (_read_part(source, training) for training in (True, False))
        dataset = Dataset(train, test, names=names and tuple(names))
    _check_classes(source, int(dataset.train.labels.max()) + 1, "config says")
    return dataset


def load_test_images(
    name: str,
    directory: str,
    size: int,
    classes: int,
    part: str | None = None,
    names: Sequence[str] | None = None,
    **options,
) -> Images:
    """Read the test part of a `DataSource` alone, or of parts on disk the one that is named.

    No other part must be there. Labels number the `names` of a network's classes where these are
    known. UserError when it is missing or has other `classes` or names.
    """
    source = DataSource(name, directory, size, classes, **options)
    return _for_network(source, *_read_part(source, False, part), names)


def load_training_images(
    name: str,
    directory: str,
    size: int,
    classes: int,
    names: Sequence[str] | None = None,
    **options,
) -> Images:
    """Read the training part of a `DataSource` alone; otherwise as `load_test_images`."""
    source = DataSource(name, directory, size, classes, **options)
    return _for_network(source, *_read_part(source, True), names)


def _for_network(
    source: DataSource, images: Images, found: list[str] | None, names: Sequence[str] | None
) -> Images:
    """Images of the classes `found`, labelled as a network with the classes `names` does."""
    if found is not None and names is not None:
        return labelled_as(images, found, source.directory, names, "the network")
    count = IMAGE_SETS[source.name].classes if found is None else len(found)
    _check_classes(source, count, "network has")
    return images


def _check_classes(source: DataSource, found: int, who: str) -> None:
    if source.classes not in (found, None):
        where = f"{source.name} in {source.directory}"
        raise UserError(f"classes: the {who} {source.classes}, but {where} has {found}")


def _read_part(
    source: DataSource, training: bool, part: str | None = None
) -> tuple[Images, list[str] | None]:
    """The training or test part, small images decoded, and the names of classes if known."""
    name, size = source.name, source.size
    if name == "digits":
        return _digits(size, training), list("0123456789")
    if name in ON_DISK:
        parts = _PartsOnDisk(source)
        return parts.read(part or ("train" if training else parts.test))
    if name not in SETS:
        raise UserError(f"dataset: {name!r} cannot be read; allowed are {', '.join(DATASETS)}")
    known = IMAGE_SETS[name]
    images, classes = read_part(name, source.directory, training, source.download)
    if isinstance(images, EncodedImages):
        images = replace(images, size=known.side or size, strict=source.strict, view=known.view)
        images = fitted(images) if known.side or size <= source.in_memory else images
    if isinstance(images, ImageData):
        images = replace(images, images=at_size(images.images, size))
    return images, classes


def _digits(size: int, training: bool) -> ImageData:
    """scikit-learn's 1,797 handwritten digits at `size` pixels; a fifth of each class tests."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = at_size(torch.from_numpy(digits.images).float()[:, None] * (255 / 16), size)
    data = ImageData(images.repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long())
    train, test = stratified_split(data.labels, 0.8, stream(0, "digits test images"))
    return data.subset(train if training else test)


class _PartsOnDisk:
    """The parts train, val and maybe test: folders with a folder for each class, or LMDB files.

    A directory without any of them may itself be a folder of classes: then about a fifth of its
    images, by their names, are test images.
    """

    def __init__(self, source: DataSource):
        self.source, self.directory = source, Path(source.directory)
        self.packed = source.name == PACKED

    def path(self, part: str) -> Path:
        return lmdb_file(self.directory, part) if self.packed else self.directory / part

    @cached_property
    def undivided(self) -> bool:
        """Whether the directory is itself a folder with a folder of images for each class.

        A class may have the name of a part, where its images lie directly in its folder. UserError
        when such a folder may be either.
        """
        if self.packed or not self.directory.is_dir():
            return False
        folders = sub_folders(self.directory)
        parts = [folder for folder in folders if folder.name in PARTS]
        others = [folder for folder in folders if folder not in parts and has_images_below(folder)]
        if not parts or not others:
            return bool(others)
        divided = [f.name for f in parts if any(map(has_images_below, sub_folders(f)))]
        if len(divided) != 1:
            return not divided
        either = f"{divided[0]} may be a class or a part, next to {few([f.name for f in others])}"
        allowed = "rename it, or put the classes into train and val (or test)"
        raise UserError(f"{self.directory}: {either}; {allowed}")

    @property
    def test(self) -> str:
        """The part "test" where its images are labelled (not in ImageNet's folder), else "val"."""
        path = self.path("test")
        labelled = path.exists() if self.packed else path.is_dir() and any(sub_folders(path))
        return "test" if labelled else "val"

    def read(self, part: str) -> tuple[Images, list[str]]:
        """The images of a part, small ones decoded, and the names of its classes."""
        size, path = self.source.size, self.directory if self.undivided else self.path(part)
        read = lmdb_images if self.packed else image_folder
        images, names = read(path, size, self.source.strict)
        if self.undivided:
            tests = self._tests(images, names)
            images = images.subset((~tests if part == "train" else tests).nonzero().flatten())
            if part == "train":
                check_readable(images, names, "training images")
        return (fitted(images) if size <= self.source.in_memory else images), names

    def _tests(self, images: EncodedImages, names: list[str]) -> Tensor:
        """Which images test `[N]`, by digests of their names: added files move no other one.

        At least one image of each class tests, and one trains; UserError for a class with fewer.
        """
        files = [Path(images.source.name(number)) for number in range(len(images.labels))]
        texts = [file.relative_to(self.directory).as_posix().encode() for file in files]
        keys = torch.tensor([hashlib.sha256(text).digest()[0] / 256 for text in texts])
        tests = keys < TEST_SHARE
        for label, name in enumerate(names):
            own = (images.labels == label).nonzero().flatten()
            if len(own) < 2:
                needs = "one image; at least 2 are needed, to train and to test"
                raise UserError(f"{self.directory / name}: {needs}")
            order = own[keys[own].argsort(stable=True)]
            tests[order[0]], tests[order[-1]] = True, False
        return tests

    def dataset(self) -> Dataset:
        """All parts; where there is a part test, val is the held-out one."""
        (train, classes), test = self.read("train"), self.test
        holds_out = not self.undivided and test == "test" and self.path("val").exists()
        held_out = self._read_alike("val", classes) if holds_out else None
        return Dataset(train, self._read_alike(test, classes), held_out, tuple(classes))

    def _read_alike(self, part: str, classes: list[str]) -> Images:
        """The images of a part, which must have these classes."""
        images, found = self.read(part)
        return labelled_as(images, found, self.path(part), classes, self.path("train"))


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
    """The parts of a search, without test images: supernet and generator training, validation."""

    train: Images
    feed: Images
    validate: Images

    @property
    def held_out(self) -> Images:
        """All that does not train the supernet."""
        feed, validate = self.feed, self.validate
        labels = torch.cat([feed.labels, validate.labels])
        if isinstance(feed, ImageData):
            return ImageData(torch.cat([feed.images, validate.images]), labels)
        return replace(feed, index=torch.cat([feed.index, validate.index]), labels=labels)


Indices = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]


@dataclass(frozen=True)
class Split:
    """A split file: which of so many `images` feed the generator, and which validate."""

    images: int
    feed: Indices
    validate: Indices

    @classmethod
    def draw(cls, dataset: Dataset, train_portion: float, seed: int) -> "Split":
        """Hold images out, unless the data set does: three quarters feed, one quarter validates.

        UserError when no image is left to train, to feed or to validate.
        """
        labels, rng = (dataset.held_out or dataset.train).labels, stream(seed, "split")
        held = torch.arange(len(labels))
        if dataset.held_out is None:
            portion = train_portion if train_portion < 1 else HELD_OUT_BY_DEFAULT
            _, held = stratified_split(labels, portion, rng)
        feed, validate = (held[part] for part in stratified_split(labels[held], 0.75, rng))
        trains = dataset.held_out is not None or len(held) < len(labels)
        if not (trains and len(feed) and len(validate)):
            few = f"leaves too few of {len(labels)} images to train or hold out"
            raise UserError(f"train_portion: {train_portion} {few}")
        return cls(len(labels), feed.tolist(), validate.tolist())

    @classmethod
    def read(cls, file: Path, images: int) -> "Split":
        """UserError when the file does not split this number of images, each into one part."""
        split = read_json(file, cls, "a split file")
        if split.images != images:
            raise UserError(f"{file}: it splits {split.images} images; the data set has {images}")
        held = [*split.feed, *split.validate]
        if max(held) >= images:
            raise UserError(f"{file}: not a split file (index {max(held)} of {images} images)")
        if len(set(held)) < len(held):
            raise UserError(f"{file}: not a split file (an index is there twice)")
        return split


def split_for_search(
    dataset: Dataset, train_portion: float, seed: int, file: Path | None = None
) -> SearchImages:
    """The parts of a search, stratified by class; written to `file`, or read from it if it exists.

    What is held out of training is the data set's own part when it has one.
    """
    source = dataset.held_out or dataset.train
    if file is not None and file.exists():
        split = Split.read(file, len(source.labels))
    else:
        split = Split.draw(dataset, train_portion, seed)
        if file is not None and distributed.rank() == 0:
            write_text(file, json.dumps(asdict(split)) + "\n")
    feed, validate, train = torch.tensor(split.feed), torch.tensor(split.validate), dataset.train
    if dataset.held_out is None:
        rest = torch.ones(len(train.labels), dtype=torch.bool)
        rest[torch.cat([feed, validate])] = False
        train = train.subset(rest.nonzero().flatten())
    return SearchImages(train, source.subset(feed), source.subset(validate))

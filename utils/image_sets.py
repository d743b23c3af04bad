"""The published sets of images: their layout, their colours, and how NSGANetV2 tunes on them.

Those that torchvision knows are read by it, and downloaded where they are missing; those that the
authors kept in folders with a folder for each class are read from these, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torchvision import datasets

from utils import distributed
from utils.errors import UserError
from utils.images import (
    EncodedImages,
    FileSource,
    ImageData,
    Images,
    image_folder,
    labelled_as,
)

USUAL_SIZE = 224  # pixels, where nothing else is given
Part = tuple[Images, list[str] | None]  # images, and the names of the classes where they are known


@dataclass(frozen=True)
class ImageSet:
    """A published set of images."""

    classes: int
    mean: tuple[float, float, float]  # of its colours in [0, 1]
    std: tuple[float, float, float]
    # read(directory, training, download) gives a part of it
    read: Callable[[Path, bool, bool], Part] | None = None
    layout: str = ""  # what a user must put where
    side: int | None = None  # pixels of its images where these are small and alike
    # fine-tuning by NSGANetV2
    lr: float = 0.01
    augment: dict = field(default_factory=dict)  # of utils.loader.Augmentation
    view: str = "bilinear"  # how images come to size, of utils.images.VIEWS

    def sizes(self, network: int | None) -> tuple[int, int | None]:
        """The pixels at which images are read for a network that sees `network` pixels.

        And those to which small ones are resized after their augmentation; None where not needed.
        """
        return (network or USUAL_SIZE, None) if self.side is None else (self.side, network)

    @property
    def padding(self) -> int:
        """Pixels around small images, before they are cropped at random."""
        return (self.side or USUAL_SIZE) // 8


def known_set(name: str) -> ImageSet | None:
    """The set of a name, LMDB files of ImageNet among them; None for image folders and digits."""
    return IMAGE_SETS.get(name.removesuffix("_lmdb"))


class NotThere(UserError):
    """A set that can be downloaded is not there."""


def read_part(name: str, directory: str, training: bool, download: bool) -> Part:
    """A part of a set, and the names of its classes; UserError when it is missing."""
    known = IMAGE_SETS[name]
    try:
        with distributed.first_alone():  # of several processes one downloads
            return known.read(Path(directory), training, download)
    except UserError:
        raise
    except Exception as error:  # urllib, ssl, tarfile and torchvision raise many kinds here
        missing = f"{name} is not there{' and cannot be downloaded' * download}"
        reason = " ".join(str(error).split())
        todo = f"{known.layout} into {directory}"
        raise NotThere(f"dataset_dir: {directory}: {missing} ({reason}); {todo}") from None


# -- reading ---------------------------------------------------------------------------------------


def _cifar(kind: type, directory: Path, training: bool, download: bool) -> Part:
    """The python archive, or its images as files, in train/ and test/."""
    if (directory / "train").is_dir():
        return _of_folders([directory / "train"], directory / "test", training)
    part = kind(str(directory), train=training, download=download)
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
    return ImageData(images, torch.tensor(part.targets)), part.classes


def _stl10(directory: Path, training: bool, download: bool) -> Part:
    split = "train" if training else "test"
    part = datasets.STL10(str(directory), split=split, download=download)
    return ImageData(
        torch.from_numpy(part.data), torch.from_numpy(part.labels).long()
    ), part.classes


def _cinic10(directory: Path, training: bool, download: bool) -> Part:
    """train_and_valid/ as its users merged it, or train/ and valid/ as published; and test/."""
    merged = ["train_and_valid"] if (directory / "train_and_valid").is_dir() else ["train", "valid"]
    return _of_folders([directory / name for name in merged], directory / "test", training)


def _flowers102(directory: Path, training: bool, download: bool) -> Part:
    """Classes are called by their numbers, as in folders of the authors."""
    read = partial(_of_torchvision, datasets.Flowers102, ("train", "val"), directory)
    part, classes = read(training, download)
    return part, classes or [str(number) for number in range(1, 103)]


def _pets(directory: Path, training: bool, download: bool) -> Part:
    """Classes in the order of their names, as in folders of the authors; the archive's differs."""
    read = partial(_of_torchvision, datasets.OxfordIIITPet, ("trainval",), directory)
    part, classes = read(training, download)
    if (directory / "train").is_dir():
        return part, classes
    parts = [part, read(not training, download)[0]]
    breeds = [[Path(path).stem.rsplit("_", 1)[0] for path in p.source.paths] for p in parts]
    order = {breed: label for label, breed in enumerate(sorted({*breeds[0], *breeds[1]}))}
    return replace(part, labels=torch.tensor([order[breed] for breed in breeds[0]])), list(order)


def _aircraft(directory: Path, training: bool, download: bool) -> Part:
    """Its folder, or what is inside, as the authors of NSGANetV2 kept it."""
    data = directory / "data"
    file = data / f"images_variant_{'trainval' if training else 'test'}.txt"
    if not file.exists():
        kind = datasets.FGVCAircraft
        return _of_torchvision(kind, ("trainval",), directory, training, download)
    lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
    names = (data / "variants.txt").read_text().splitlines()
    files = [
        (data / "images" / f"{image}.jpg", names.index(variant.strip())) for image, variant in lines
    ]
    return _of_files(directory, files), None


def _of_torchvision(
    kind: type, train: tuple[str, ...], directory: Path, training: bool, download: bool
) -> Part:
    """train/ and test/ (or valid/) with a folder for each class, else torchvision's splits."""
    if (directory / "train").is_dir():
        tests = [directory / name for name in ("test", "valid", "val")]
        test = next((folder for folder in tests if folder.is_dir()), tests[0])
        return _of_folders([directory / "train"], test, training)
    files = []
    for split in train if training else ("test",):
        part = kind(str(directory), split=split, download=download)
        # which images torchvision would open: it has no public name for them
        paths = getattr(part, "_images", None) or part._image_files
        files += zip(paths, part._labels, strict=True)
    return _of_files(directory, files), None


def _of_folders(train: list[Path], test: Path, training: bool) -> Part:
    """Folders with a folder for each class, which must be the same in all of them."""
    folders = train if training else [train[0], test]
    read = [image_folder(folder, USUAL_SIZE, False) for folder in folders]
    classes, files = read[0][1], []
    parts = [
        labelled_as(part, names, folder, classes, train[0])
        for folder, (part, names) in zip(folders, read, strict=True)
    ]
    for part in parts if training else parts[1:]:
        files += zip(part.source.paths, part.labels.tolist(), strict=True)
    return _of_files(train[0].parent, files), classes


def _of_files(directory: Path, files: list[tuple[str | Path, int]]) -> EncodedImages:
    paths, labels = zip(*files, strict=True)
    source = FileSource(directory, tuple(map(str, paths)))
    return EncodedImages(source, torch.arange(len(paths)), torch.tensor(labels), USUAL_SIZE)


# -- the sets --------------------------------------------------------------------------------------

# Source: the data providers of the published NSGANetV2; ImageNet is read by `utils/data.py`.
_CIFAR = ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
_ARCHIVE = "unpack its python archive, or put folders train and test of its images,"
_RANDOM = {"lr": 0.05, "augment": {"rand_augment": "rand-m9-mstd0.5"}}

IMAGE_SETS = {
    "cifar10": ImageSet(10, *_CIFAR, partial(_cifar, datasets.CIFAR10), _ARCHIVE, 32),
    "cifar100": ImageSet(100, *_CIFAR, partial(_cifar, datasets.CIFAR100), _ARCHIVE, 32),
    "cinic10": ImageSet(
        10,
        (0.47889522, 0.47227842, 0.43047404),
        (0.24205776, 0.23828046, 0.25874835),
        _cinic10,
        "put its folders train (or train_and_valid), valid and test",
        32,
    ),
    "stl10": ImageSet(
        10,
        (0.44671097, 0.4398105, 0.4066468),
        (0.2603405, 0.25657743, 0.27126738),
        _stl10,
        "unpack its binary archive (the folder stl10_binary)",
        96,
    ),
    "flowers102": ImageSet(
        102,
        (0.5178361839861569, 0.4106749456881299, 0.32864167836880803),
        (0.2972239085211309, 0.24976049135203868, 0.28533308036347665),
        _flowers102,
        "put the folders train and test, or flowers-102 (with jpg, imagelabels.mat and setid.mat),",
        augment={"affine": True, "horizontal_flip": False, "balanced": True},
    ),
    "dtd": ImageSet(
        47,
        (0.5329876098715876, 0.474260843249454, 0.42627281899380676),
        (0.26549755708788914, 0.25473554309855373, 0.2631728035662832),
        partial(_of_torchvision, datasets.DTD, ("train", "val")),
        "put the folders train and valid, or dtd/dtd (with images and labels),",
        **_RANDOM,
        view="squash",
    ),
    "pets": ImageSet(
        37,
        (0.4828895122298728, 0.4448394893850807, 0.39566558230789783),
        (0.25925664613996574, 0.2532760018681693, 0.25981017205097917),
        _pets,
        "put the folders train and valid, or oxford-iiit-pet (with images and annotations),",
        **_RANDOM,
    ),
    "aircraft": ImageSet(
        100,
        (0.48933587508932375, 0.5183537408957618, 0.5387914411673883),
        (0.22388883112804625, 0.21641635409388751, 0.24615605842636115),
        _aircraft,
        "put the folder fgvc-aircraft-2013b (with data/images and data/images_variant_*.txt), "
        "or its data,",
        **_RANDOM,
    ),
    "imagenet": ImageSet(
        1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), lr=1e-4, augment={"colour_jitter": True}
    ),
}

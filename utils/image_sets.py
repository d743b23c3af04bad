"""The published sets of images: what they are called, where their images lie, and how NSGANetV2 sees and tunes on them.

Those that torchvision knows are read by it, and downloaded where they are missing; those that the authors kept in
folders with a folder for each class are read from these, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.datasets import ImageFolder

from utils import distributed
from utils.errors import UserError
from utils.images import EncodedImages, FileSource, ImageData, Images, fitted

Files = list[tuple[str, int]]  # image files and their labels
Part = ImageData | Files


@dataclass(frozen=True)
class ImageSet:
    """A set of images of `classes` classes; `read(directory, training, download)` gives a part of it.

    `mean` and `std` are of its colours in [0, 1], `side` the pixels of its images where these are small and alike,
    `layout` what a user must put where. For fine-tuning by NSGANetV2: the learning rate, how the published code
    `augment`s (names of `utils.loader.Augmentation`), and how it brings images to size (`utils.images.VIEWS`).
    """

    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    read: Callable[[Path, bool, bool], Part] | None = None
    layout: str = ""
    side: int | None = None
    lr: float = 0.01
    augment: dict = field(default_factory=dict)
    view: str = "bilinear"


def read_part(
    name: str, directory: str, training: bool, size: int, download: bool, strict: bool, in_memory: int
) -> Images:
    """A part of the set `name`, its images at `size` pixels; decoded up to `in_memory` pixels. UserError if missing."""
    known = IMAGE_SETS[name]
    try:
        with distributed.first_alone():  # of several processes one downloads
            part = known.read(Path(directory), training, download)
    except UserError:
        raise
    except Exception as error:  # urllib, ssl, tarfile and torchvision raise many kinds here
        raise UserError(
            f"dataset_dir: {directory}: {name} is not there{' and cannot be downloaded' * download} "
            f"({' '.join(str(error).split())}); {known.layout} into {directory}"
        ) from None
    if isinstance(part, ImageData):
        return ImageData(resized(part.images, size), part.labels)
    paths, labels = zip(*part, strict=True)
    files = FileSource(Path(directory), tuple(map(str, paths)))
    index = torch.arange(len(paths))
    if known.side is not None:
        images = fitted(EncodedImages(files, index, torch.tensor(labels), known.side, strict))
        return ImageData(resized(images.images, size), images.labels)
    images = EncodedImages(files, index, torch.tensor(labels), size, strict, known.view)
    return fitted(images) if size <= in_memory else images


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images `[N, 3, S, S]` at `size` pixels, bilinear."""
    if images.shape[-1] == size:
        return images.contiguous()
    images = torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)


# -- reading ---------------------------------------------------------------------------------------------------------


def _cifar(kind: type, directory: Path, training: bool, download: bool) -> ImageData:
    part = kind(str(directory), train=training, download=download)
    return ImageData(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))


def _stl10(directory: Path, training: bool, download: bool) -> ImageData:
    part = torchvision.datasets.STL10(str(directory), split="train" if training else "test", download=download)
    return ImageData(torch.from_numpy(part.data), torch.from_numpy(part.labels).long())


def _cinic10(directory: Path, training: bool, download: bool) -> Files:
    """train_and_valid/ as its authors' other users merged it, or train/ and valid/ as it is published; and test/."""
    merged = ["train_and_valid"] if (directory / "train_and_valid").is_dir() else ["train", "valid"]
    folders = [_folder(directory / name) for name in (merged if training else ["test"])]
    if any(folder.classes != folders[0].classes for folder in folders):
        raise UserError(f"{directory}: the classes of {' and '.join(merged)} differ")
    return [file for folder in folders for file in folder.samples]


def _known_to_torchvision(kind: type, train: tuple, test: tuple, directory: Path, training: bool, download: bool):
    """`train/` and `test/` (or `valid/`) with a folder for each class, else what torchvision calls these splits."""
    if (directory / "train").is_dir():
        others = [directory / name for name in ("test", "valid", "val") if (directory / name).is_dir()]
        return _folder(directory / "train" if training else others[0] if others else directory / "test").samples
    parts = [kind(str(directory), split=split, download=download) for split in (train if training else test)]
    return [file for part in parts for file in _files(part)]


def _files(part: torchvision.datasets.VisionDataset) -> Files:
    """Which images torchvision would open; it has no public name for them."""
    return list(zip(getattr(part, "_images", None) or part._image_files, part._labels, strict=True))


def _folder(directory: Path) -> ImageFolder:
    try:
        return ImageFolder(str(directory))
    except FileNotFoundError:
        raise UserError(f"{directory}: it must be a folder with a folder of images for each class") from None


# -- the sets --------------------------------------------------------------------------------------------------------

# Source: the data providers of the published NSGANetV2; ImageNet's is `utils/data.py`'s to read.
_CIFAR = ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
_ARCHIVE = "unpack its python archive"
_RANDOM = {"rand_augment": "rand-m9-mstd0.5"}

IMAGE_SETS = {
    "cifar10": ImageSet(10, *_CIFAR, partial(_cifar, torchvision.datasets.CIFAR10), _ARCHIVE, 32),
    "cifar100": ImageSet(100, *_CIFAR, partial(_cifar, torchvision.datasets.CIFAR100), _ARCHIVE, 32),
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
        partial(_known_to_torchvision, torchvision.datasets.Flowers102, ("train", "val"), ("test",)),
        "put the folders train and test, or flowers-102 (with jpg, imagelabels.mat and setid.mat),",
        augment={"affine": True, "horizontal_flip": False, "balanced": True},
    ),
    "dtd": ImageSet(
        47,
        (0.5329876098715876, 0.474260843249454, 0.42627281899380676),
        (0.26549755708788914, 0.25473554309855373, 0.2631728035662832),
        partial(_known_to_torchvision, torchvision.datasets.DTD, ("train", "val"), ("test",)),
        "put the folders train and valid, or dtd/dtd (with images and labels),",
        lr=0.05,
        augment=_RANDOM,
        view="squash",
    ),
    "pets": ImageSet(
        37,
        (0.4828895122298728, 0.4448394893850807, 0.39566558230789783),
        (0.25925664613996574, 0.2532760018681693, 0.25981017205097917),
        partial(_known_to_torchvision, torchvision.datasets.OxfordIIITPet, ("trainval",), ("test",)),
        "put the folders train and valid, or oxford-iiit-pet (with images and annotations),",
        lr=0.05,
        augment=_RANDOM,
    ),
    "aircraft": ImageSet(
        100,
        (0.48933587508932375, 0.5183537408957618, 0.5387914411673883),
        (0.22388883112804625, 0.21641635409388751, 0.24615605842636115),
        partial(_known_to_torchvision, torchvision.datasets.FGVCAircraft, ("trainval",), ("test",)),
        "put the folder fgvc-aircraft-2013b (with data/images and data/images_variant_*.txt)",
        lr=0.05,
        augment=_RANDOM,
    ),
    "imagenet": ImageSet(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), lr=1e-4, augment={"colour_jitter": True}),
}

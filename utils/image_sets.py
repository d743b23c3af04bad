"""The published sets of images: what they are called, where their images lie, and how NSGANetV2
sees and tunes on them.

Those that torchvision knows are read by it, and downloaded where they are missing; those that the
authors kept in folders with a folder for each class are read from these, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torchvision

from utils import distributed
from utils.errors import UserError
from utils.images import EncodedImages, FileSource, ImageData, Images, fitted, image_folder

USUAL_SIZE = 224  # pixels, where nothing says more
Part = tuple[ImageData | EncodedImages, int]  # images of a part, and how many classes their set has


@dataclass(frozen=True)
class ImageSet:
    """A set of images of `classes` classes; `read(directory, training, download)` gives a part of
    it.

    `mean` and `std` are of its colours in [0, 1], `side` the pixels of its images where these are
    small and alike, `layout` what a user must put where. For fine-tuning by NSGANetV2: the learning
    rate, how the published code `augment`s (names of `utils.loader.Augmentation`), and how it
    brings images to size (`utils.images.VIEWS`).
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

    def sizes(self, network: int | None) -> tuple[int, int | None]:
        """The pixels at which its images are read for a network that sees `network` pixels, and to
        which small ones are resized, behind their augmentation; None where they need not be.
        """
        if self.side is None:
            return network or USUAL_SIZE, None
        return self.side, network

    @property
    def padding(self) -> int:
        """Pixels around small images, before they are cropped at random."""
        return (self.side or USUAL_SIZE) // 8


def known_set(name: str) -> ImageSet | None:
    """The set of a name, LMDB files of ImageNet among them; None for image folders and digits."""
    return IMAGE_SETS.get(name.removesuffix("_lmdb"))


def read_part(
    name: str,
    directory: str,
    training: bool,
    size: int,
    download: bool,
    strict: bool,
    in_memory: int,
) -> tuple[Images, int]:
    """A part of the set `name`, its images at `size` pixels, decoded up to `in_memory` pixels; and
    its classes.

    UserError when it is missing.
    """
    known = IMAGE_SETS[name]
    try:
        with distributed.first_alone():  # of several processes one downloads
            part, classes = known.read(Path(directory), training, download)
    except UserError:
        raise
    except Exception as error:  # urllib, ssl, tarfile and torchvision raise many kinds here
        raise UserError(
            f"dataset_dir: {directory}: {name} is not there{' and cannot be downloaded' * download} "
            f"({' '.join(str(error).split())}); {known.layout} into {directory}"
        ) from None
    if isinstance(part, EncodedImages):
        part = replace(part, size=known.side or size, strict=strict, view=known.view)
        part = fitted(part) if part.size <= in_memory or known.side else part
    return (at_size(part, size) if isinstance(part, ImageData) else part), classes


def at_size(data: ImageData, size: int) -> ImageData:
    """Decoded images at `size` pixels, bilinear."""
    images = data.images
    if images.shape[-1] == size:
        return ImageData(images.contiguous(), data.labels)
    images = torch.nn.functional.interpolate(
        images.float(), size=(size, size), mode="bilinear", antialias=True
    )
    return ImageData(images.round().clamp(0, 255).to(torch.uint8), data.labels)


# -- reading ---------------------------------------------------------------------------------------


def _cifar(kind: type, classes: int, directory: Path, training: bool, download: bool) -> Part:
    """The python archive, or its images as files, in train/ and test/."""
    if (directory / "train").is_dir():
        return _of_folders([directory / "train"], directory / "test", training)
    part = kind(str(directory), train=training, download=download)
    return ImageData(
        torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)
    ), classes


def _stl10(directory: Path, training: bool, download: bool) -> Part:
    part = torchvision.datasets.STL10(
        str(directory), split="train" if training else "test", download=download
    )
    return ImageData(torch.from_numpy(part.data), torch.from_numpy(part.labels).long()), 10


def _cinic10(directory: Path, training: bool, download: bool) -> Part:
    """train_and_valid/ as its users merged it, or train/ and valid/ as it is published; and test/."""
    merged = ["train_and_valid"] if (directory / "train_and_valid").is_dir() else ["train", "valid"]
    return _of_folders([directory / name for name in merged], directory / "test", training)


def _flowers102(directory: Path, training: bool, download: bool) -> Part:
    return _of_torchvision(
        torchvision.datasets.Flowers102, ("train", "val"), 102, directory, training, download
    )


def _dtd(directory: Path, training: bool, download: bool) -> Part:
    return _of_torchvision(
        torchvision.datasets.DTD, ("train", "val"), 47, directory, training, download
    )


def _pets(directory: Path, training: bool, download: bool) -> Part:
    """Classes in the order of folders of their names, which is that of the authors; the archive's
    own differs.
    """
    kind = torchvision.datasets.OxfordIIITPet
    part, classes = _of_torchvision(kind, ("trainval",), 37, directory, training, download)
    if (directory / "train").is_dir():
        return part, classes
    parts = [part, _of_torchvision(kind, ("trainval",), 37, directory, not training, download)[0]]
    breeds = [[Path(path).stem.rsplit("_", 1)[0] for path in p.source.paths] for p in parts]
    order = {breed: label for label, breed in enumerate(sorted({*breeds[0], *breeds[1]}))}
    return replace(part, labels=torch.tensor([order[breed] for breed in breeds[0]])), classes


def _aircraft(directory: Path, training: bool, download: bool) -> Part:
    """Its folder, or as the authors of NSGANetV2 kept it, what is inside."""
    split = "trainval" if training else "test"
    file = directory / "data" / f"images_variant_{split}.txt"
    if not file.exists():
        return _of_torchvision(
            torchvision.datasets.FGVCAircraft, ("trainval",), 100, directory, training, download
        )
    lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
    names = (directory / "data" / "variants.txt").read_text().splitlines()
    files = [
        (directory / "data" / "images" / f"{image}.jpg", names.index(variant.strip()))
        for image, variant in lines
    ]
    return _of_files(directory, files), len(names)


def _of_torchvision(
    kind: type, train: tuple, classes: int, directory: Path, training: bool, download: bool
) -> Part:
    """`train/` and `test/` (or `valid/`) with a folder for each class, else what torchvision calls
    these splits.
    """
    if (directory / "train").is_dir():
        others = [
            directory / name for name in ("test", "valid", "val") if (directory / name).is_dir()
        ]
        return _of_folders(
            [directory / "train"], others[0] if others else directory / "test", training
        )
    parts = [
        kind(str(directory), split=split, download=download)
        for split in (train if training else ("test",))
    ]
    # which images torchvision would open: it has no public name for them
    files = [
        zip(getattr(part, "_images", None) or part._image_files, part._labels, strict=True)
        for part in parts
    ]
    return _of_files(directory, [file for part in files for file in part]), classes


def _of_folders(train: list[Path], test: Path, training: bool) -> Part:
    """Folders with a folder for each class, which must be the same in all of them."""
    folders = [
        image_folder(folder, USUAL_SIZE, False)
        for folder in ([*train] if training else [train[0], test])
    ]
    for folder, (_, names) in zip(train if training else [train[0], test], folders, strict=True):
        if names != folders[0][1]:
            differ = ", ".join(sorted(set(names) ^ set(folders[0][1]))[:3])
            raise UserError(f"{folder}: its classes are not those of {train[0]}: {differ}")
    chosen = folders if training else folders[1:]
    files = [
        file
        for part, _ in chosen
        for file in zip(part.source.paths, part.labels.tolist(), strict=True)
    ]
    return _of_files(train[0].parent, files), len(folders[0][1])


def _of_files(directory: Path, files: list[tuple[str | Path, int]]) -> EncodedImages:
    paths, labels = zip(*files, strict=True)
    source = FileSource(directory, tuple(map(str, paths)))
    return EncodedImages(source, torch.arange(len(paths)), torch.tensor(labels), USUAL_SIZE)


# -- the sets --------------------------------------------------------------------------------------

# Source: the data providers of the published NSGANetV2; ImageNet's is `utils/data.py`'s to read.
_CIFAR = ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
_ARCHIVE = "unpack its python archive, or put folders train and test of its images,"
_RANDOM = {"rand_augment": "rand-m9-mstd0.5"}

IMAGE_SETS = {
    "cifar10": ImageSet(
        10, *_CIFAR, partial(_cifar, torchvision.datasets.CIFAR10, 10), _ARCHIVE, 32
    ),
    "cifar100": ImageSet(
        100, *_CIFAR, partial(_cifar, torchvision.datasets.CIFAR100, 100), _ARCHIVE, 32
    ),
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
        _dtd,
        "put the folders train and valid, or dtd/dtd (with images and labels),",
        lr=0.05,
        augment=_RANDOM,
        view="squash",
    ),
    "pets": ImageSet(
        37,
        (0.4828895122298728, 0.4448394893850807, 0.39566558230789783),
        (0.25925664613996574, 0.2532760018681693, 0.25981017205097917),
        _pets,
        "put the folders train and valid, or oxford-iiit-pet (with images and annotations),",
        lr=0.05,
        augment=_RANDOM,
    ),
    "aircraft": ImageSet(
        100,
        (0.48933587508932375, 0.5183537408957618, 0.5387914411673883),
        (0.22388883112804625, 0.21641635409388751, 0.24615605842636115),
        _aircraft,
        "put the folder fgvc-aircraft-2013b (with data/images and data/images_variant_*.txt), or its data,",
        lr=0.05,
        augment=_RANDOM,
    ),
    "imagenet": ImageSet(
        1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), lr=1e-4, augment={"colour_jitter": True}
    ),
}

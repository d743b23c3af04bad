"""Images: where they come from, how they are split, and how they reach a network.

A data set is `ImageData` (decoded once into one uint8 tensor; all sets of small images) or `ImageFiles` (decoded on
the fly). `loader()` turns either into batches; every random choice is a function of the seed and the epoch.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from utils.checkpoint import write_text
from utils.errors import UserError
from utils.runtime import seed_global, stream
from utils.stopping import ignore_signals

DATASETS = ("digits", "cifar10", "cifar100", "imagefolder", "imagenet")

# Published means and standard deviations, in [0, 1].
DATASET_STATISTICS = {
    **dict.fromkeys(
        ("cifar10", "cifar100"), ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

# Up to this side in pixels, images are decoded once and kept in memory.
SMALL = 64

# What Pillow raises on files that are no images, or broken ones.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageData:
    """Decoded images: `images` uint8 `[N, 3, S, S]`, `labels` int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def subset(self, index: Tensor) -> "ImageData":
        return ImageData(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk: `paths` of N files, `labels` int64 `[N]`; they are loaded at `size` pixels.

    One that cannot be read is skipped and named, or with `strict` a UserError.
    """

    paths: tuple[str, ...]
    labels: Tensor
    size: int
    strict: bool = False

    def subset(self, index: Tensor) -> "ImageFiles":
        paths = tuple(self.paths[i] for i in index.tolist())
        return ImageFiles(paths, self.labels[index], self.size, self.strict)

    def open(self, index: int) -> Image.Image | None:
        """The image as RGB; None when it is skipped."""
        try:
            with Image.open(self.paths[index]) as image:
                return image.convert("RGB")
        except BROKEN_IMAGE as error:
            if getattr(error, "errno", None):  # no broken image, but a disk or a permission that is missing
                raise UserError(f"{self.paths[index]}: cannot be read ({error.strerror})") from None
            if self.strict:
                raise UserError(f"{self.paths[index]}: cannot be read as an image ({error})") from None
            print(f"skipped {self.paths[index]}: cannot be read as an image ({error})", file=sys.stderr)
            return None


Images = ImageData | ImageFiles


@dataclass(frozen=True)
class Dataset:
    """`train`, `test`, and `held_out` when the data set comes with a part that is neither."""

    train: Images
    test: Images
    held_out: Images | None = None


# -- reading ---------------------------------------------------------------------------------------------------------


def load_dataset(
    name: str, directory: str, size: int, classes: int, download: bool = True, strict: bool = False
) -> Dataset:
    """The data set `name` in `directory` at `size` pixels; UserError when it is missing or has other classes.

    Image files that cannot be read are skipped, counted and named; with `strict` the first of them is a UserError.
    """
    if name not in DATASETS:
        raise UserError(f"dataset: {name!r} cannot be read; allowed are {', '.join(DATASETS)}")
    if name == "digits":
        dataset = _digits(size)
    elif name in ("cifar10", "cifar100"):
        dataset = _cifar(name, directory, size, download)
    else:
        dataset = _image_folders(Path(directory), size, strict)
    found = int(dataset.train.labels.max()) + 1
    if found != classes:
        raise UserError(f"classes: the config says {classes}, but {name} in {directory} has {found}")
    return dataset


def load_test_images(
    name: str, directory: str, size: int, classes: int, part: str | None = None, strict: bool = False
) -> Images:
    """The test part alone, so that it needs no training images beside it; of image folders another `part` if named."""
    if name in ("imagefolder", "imagenet"):
        folder = Path(directory) / part if part else _test_folder(Path(directory))
        images, names = _image_folder(folder, size, strict)
        if len(names) != classes:
            raise UserError(f"classes: {directory} has {len(names)} class folders, the network {classes} classes")
        return images
    return load_dataset(name, directory, size, classes, strict=strict).test


def _digits(size: int) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged to `size`; every fifth of each class is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
    data = ImageData(images.to(torch.uint8).repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long())
    train, test = stratified_split(data.labels, 0.8, stream(0, "digits test images"))
    return Dataset(data.subset(train), data.subset(test))


def _cifar(name: str, directory: str, size: int, download: bool) -> Dataset:
    """CIFAR-10 or CIFAR-100 by torchvision; `download` it when it is missing."""
    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    try:
        parts = [kind(directory, train=train, download=download) for train in (True, False)]
    except Exception as error:  # urllib, ssl, tarfile and torchvision raise many kinds here
        raise UserError(
            f"dataset_dir: {directory}: {name} is not there{' and cannot be downloaded' * download} "
            f"({' '.join(str(error).split())}); unpack its python archive into {directory}"
        ) from None
    train, test = (
        ImageData(_resize(torch.from_numpy(part.data).permute(0, 3, 1, 2), size), torch.tensor(part.targets))
        for part in parts
    )
    return Dataset(train, test)


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images.contiguous()
    images = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)


def _image_folders(directory: Path, size: int, strict: bool) -> Dataset:
    """Folders train/, val/ and maybe test/, each with a folder a class; with test/, val/ is a held-out part."""
    folders = {"train": directory / "train", "test": _test_folder(directory)}
    if folders["test"] != directory / "val" and (directory / "val").is_dir():
        folders["held_out"] = directory / "val"
    parts = {part: _image_folder(folder, size, strict) for part, folder in folders.items()}
    names = parts["train"][1]
    for part, (_, found) in parts.items():
        if found != names:
            differ = ", ".join(sorted(set(found) ^ set(names))[:3])
            raise UserError(f"{folders[part]}: its class folders are not those of {folders['train']}: {differ}")
    return Dataset(**{part: images for part, (images, _) in parts.items()})


def _test_folder(directory: Path) -> Path:
    """DIR/test when it has class folders (that of ImageNet has no labels), else DIR/val."""
    test = directory / "test"
    return test if test.is_dir() and any(entry.is_dir() for entry in test.iterdir()) else directory / "val"


def _image_folder(directory: Path, size: int, strict: bool) -> tuple[Images, list[str]]:
    """The images of a folder with a folder for each class, and the names of the classes."""
    try:
        folder = torchvision.datasets.ImageFolder(str(directory))
    except FileNotFoundError:
        raise UserError(f"{directory}: it must be a folder with a folder of images for each class") from None
    files = ImageFiles(tuple(path for path, _ in folder.samples), torch.tensor(folder.targets), size, strict)
    return (_decode(files) if size <= SMALL else files), folder.classes


def _decode(files: ImageFiles) -> ImageData:
    """All images as one tensor, but for those that are skipped."""
    images = np.empty((len(files.paths), files.size, files.size, 3), dtype=np.uint8)
    good = torch.ones(len(files.paths), dtype=torch.bool)
    for index in range(len(files.paths)):
        image = files.open(index)
        if image is None:
            good[index] = False
            continue
        if image.size != (files.size, files.size):
            image = image.resize((files.size, files.size), Image.Resampling.BICUBIC)
        images[index] = np.asarray(image)
    if not good.any():
        raise UserError(f"{_root(files)}: none of its images can be read")
    data = ImageData(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), files.labels)
    if good.all():
        return data
    print(f"{_root(files)}: skipped {int((~good).sum())} of {len(good)} images", file=sys.stderr)
    return data.subset(good.nonzero().flatten())


def decoded(images: Images) -> ImageData:
    """Image files decoded once, as evaluation sees them: resized to size / 0.875, then the centre of `size` pixels."""
    if isinstance(images, ImageData):
        return images
    steps = v2.Compose(evaluation_steps(images.size))
    found = ((images.open(index), images.labels[index]) for index in range(len(images.labels)))
    kept = [(v2.functional.pil_to_tensor(steps(image)), label) for image, label in found if image is not None]
    if not kept:
        raise UserError(f"{_root(images)}: none of its images can be read")
    pixels, labels = zip(*kept, strict=True)
    return ImageData(torch.stack(pixels), torch.stack(labels))


def evaluation_steps(size: int) -> list[v2.Transform]:
    """The published resize to size / 0.875, bicubic, then the centre."""
    return [v2.Resize(round(size / 0.875), v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]


# -- splitting -------------------------------------------------------------------------------------------------------


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
    """The three parts of a search: supernet training, generator training, validation. No test image is among them."""

    train: Images
    feed: Images
    validate: Images

    @property
    def held_out(self) -> Images:
        """All that does not train the supernet."""
        if isinstance(self.feed, ImageFiles):
            paths, parts = self.feed.paths + self.validate.paths, (self.feed.labels, self.validate.labels)
            return replace(self.feed, paths=paths, labels=torch.cat(parts))
        parts = (self.feed, self.validate)
        return ImageData(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


# Share of the training set that trains the supernet when the config's train_portion leaves nothing to hold out.
HELD_OUT_BY_DEFAULT = 0.8


def split_for_search(dataset: Dataset, train_portion: float, seed: int, file: Path | None = None) -> SearchImages:
    """Cut the parts of a search, stratified by class; written to `file` if given, and read from it when it is there.

    What is held out of training (the data set's own part when it has one) is cut again: three quarters feed the
    generator, one quarter validates.
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
            raise UserError(f"train_portion: {train_portion} leaves too few of {len(rest)} images to train or hold out")
        record = {"images": len(source.labels), **{name: part.tolist() for name, part in split.items()}}
        if file is not None:
            write_text(file, json.dumps(record) + "\n")
    rest[torch.cat(list(split.values()))] = False
    train = dataset.train.subset(rest.nonzero().flatten()) if dataset.held_out is None else dataset.train
    return SearchImages(train, source.subset(split["feed"]), source.subset(split["validate"]))


def _read_split(file: Path, images: int) -> dict[str, Tensor]:
    try:
        record = json.loads(file.read_text())
        split = {name: torch.tensor(record[name], dtype=torch.long) for name in ("feed", "validate")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no split file ({error})") from None
    if not all(len(part) for part in split.values()):
        raise UserError(f"{file}: no split file (a part is empty)")
    if record.get("images") != images or max(int(part.max()) for part in split.values()) >= images:
        raise UserError(f"{file}: it splits {record.get('images')} images; the data set has {images}")
    return split


# -- loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` -> float32, in the memory format of `images`."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return images.float().sub_(255 * mean).div_(255 * std)


@dataclass(frozen=True)
class Augmentation:
    """Random crop (small images: after zero padding; others: resized, of a share of the area) and horizontal flip.

    Then, where asked for, AutoAugment (Cubuk et al., CVPR 2019: the CIFAR-10 policy for small images, else that for
    ImageNet), and a square of `cutout` pixels (DeVries and Taylor, 2017) that is the mean colour.
    """

    crop_padding: int = 4
    horizontal_flip: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    autoaugment: bool = False
    cutout: int = 0


class MemoryLoader:
    """Batches of decoded images: `epoch(n)` yields (float `[B, 3, S, S]`, labels `[B]`).

    Each batch has a random stream of its own, so that an epoch can begin at any of them.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        normalise: Normalisation,
        augment: Augmentation | None = None,
        seed: int = 0,
    ):
        self.data, self.batch_size, self.normalise = data, batch_size, normalise
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return _batches(len(self.data.labels), self.batch_size, self.augment is not None)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from number `first` on. With augmentation: shuffled, whole batches only."""
        for number, index in enumerate(_order(self, epoch).split(self.batch_size)[: len(self)]):
            if number >= first:
                yield self._batch(index, stream(self.seed, "augmentation", epoch, number))

    def _batch(self, index: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        images, augment = self.data.images[index], self.augment
        if augment is not None:
            images = crop_and_flip(images, augment.crop_padding, augment.horizontal_flip, rng)
            if augment.autoaugment:
                images = autoaugment(images, rng)
        images = self.normalise(images)
        if augment is not None and augment.cutout:
            images = cutout(images, augment.cutout, rng)
        return images, self.data.labels[index]


def resize(images: Tensor, size: int) -> Tensor:
    """Float images `[B, 3, H, W]` at `size` pixels, bilinear, in the same memory format."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=size < images.shape[-1])


def crop_and_flip(images: Tensor, padding: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each image `[3, S, S]` of a batch cropped at random after zero padding, and flipped with probability 1/2.

    One gather does both; the result is channels-last.
    """
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    rows, columns = torch.randint(2 * padding + 1, (2, count, 1), generator=rng) + torch.arange(size)
    if flip:
        turned = torch.rand(count, 1, generator=rng) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def autoaugment(images: Tensor, rng: torch.Generator) -> Tensor:
    """uint8 images `[B, 3, S, S]`, each with a draw of its own from the CIFAR-10 policy, in the same memory format.

    One by one and through Pillow, which is faster on small images than torchvision's tensor operations.
    """
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128)
    changed = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        for index, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
            augmented = np.asarray(policy(Image.fromarray(image)))
            changed[index] = torch.from_numpy(augmented.copy()).permute(2, 0, 1)
    return changed


def cutout(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Normalised images `[B, 3, S, S]`, each with a square of `side` pixels set to 0, the mean colour.

    Its centre is uniform over the image, so that part of it may lie outside (DeVries and Taylor, 2017, section 3.2).
    """
    corner = torch.randint(images.shape[-1], (2, len(images), 1), generator=rng) - side // 2
    pixels = torch.arange(images.shape[-1])
    rows, columns = (pixels >= corner) & (pixels < corner + side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


class FileLoader:
    """Batches of images read from disk by `workers` processes; otherwise as `MemoryLoader`."""

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        normalise: Normalisation,
        augment: Augmentation | None = None,
        seed: int = 0,
        workers: int = 0,
    ):
        self.data, self.batch_size, self.augment = files, batch_size, augment
        self.seed, self.workers = seed, workers
        if augment is None:
            steps = evaluation_steps(files.size)
        else:
            steps = [v2.RandomResizedCrop(files.size, scale=augment.crop_scale)]
            steps += [v2.RandomHorizontalFlip()] * augment.horizontal_flip
            steps += [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128)] * augment.autoaugment
        self.transform = v2.Compose(
            [
                *steps,
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(normalise.mean, normalise.std),
            ]
        )

    def __len__(self) -> int:
        return _batches(len(self.data.labels), self.batch_size, self.augment is not None)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        loader = torch.utils.data.DataLoader(
            _Files(self.data, self.transform, (self.seed, epoch)),
            self.batch_size,
            sampler=_order(self, epoch)[first * self.batch_size : len(self) * self.batch_size].tolist(),
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=ignore_signals,
        )
        side = self.augment.cutout if self.augment is not None else 0
        skipped = 0
        for number, (batch, broken) in enumerate(loader, start=first):
            if isinstance(broken, UserError):
                raise broken
            skipped += broken
            if batch is not None:
                images, labels = batch
                rng = stream(self.seed, "augmentation", epoch, number)
                yield (cutout(images, side, rng) if side else images), labels
            elif self.augment is not None:  # to go on would be to train on nothing
                raise UserError(f"{_root(self.data)}: a whole batch of {broken} images cannot be read")
        if skipped:
            print(f"{_root(self.data)}: skipped {skipped} of {len(self.data.labels)} images", file=sys.stderr)


class _Files(torch.utils.data.Dataset):
    """Each image has a random stream of its own, so that the number of workers changes nothing."""

    def __init__(self, files: ImageFiles, transform, names: tuple[int, int]):
        self.files, self.transform, self.names = files, transform, names

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | UserError | None:
        try:
            image = self.files.open(index)
        except UserError as error:  # handed on, since a worker process would wrap it into a traceback
            return error
        if image is None:
            return None
        with torch.random.fork_rng(devices=[]):
            seed_global(stream(*self.names, index))
            return self.transform(image), self.files.labels[index]


def _collate(samples: list) -> tuple[list[Tensor] | None, int | UserError]:
    """A batch of the images that could be read, if any, and how many could not; or the first error among them."""
    for sample in samples:
        if isinstance(sample, UserError):
            return None, sample
    good = [sample for sample in samples if sample is not None]
    return (torch.utils.data.default_collate(good) if good else None), len(samples) - len(good)


def _root(files: ImageFiles) -> Path:
    """The folder of the class folders."""
    return Path(files.paths[0]).parent.parent


Loader = MemoryLoader | FileLoader


def loader(
    images: Images,
    batch_size: int,
    normalise: Normalisation,
    augment: Augmentation | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Loader:
    """Batches of `images`; shuffled and augmented when `augment` is given."""
    if isinstance(images, ImageData):
        return MemoryLoader(images, batch_size, normalise, augment, seed)
    return FileLoader(images, batch_size, normalise, augment, seed, workers)


def _order(batches: Loader, epoch: int) -> Tensor:
    """Indices of the images of an epoch; shuffled when they are augmented."""
    count = len(batches.data.labels)
    if batches.augment is None:
        return torch.arange(count)
    return torch.randperm(count, generator=stream(batches.seed, "batches", epoch))


def _batches(images: int, batch_size: int, training: bool) -> int:
    """Training drops the last, smaller batch, unless it is the only one."""
    return images // batch_size if training and images >= batch_size else -(-images // batch_size)

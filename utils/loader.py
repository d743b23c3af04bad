"""Batches of images: every random choice in them is a function of the seed, the epoch and the
batch.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from utils import distributed
from utils.errors import UserError
from utils.images import EncodedImages, ImageData, Images, evaluation_steps
from utils.runtime import seed_global, stream
from utils.stopping import ignore_signals


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
    """Random crop (small images: after zero padding; others: resized, of a share of the area) and
    horizontal flip.

    Then, where asked for, AutoAugment (Cubuk et al., CVPR 2019: the CIFAR-10 policy for images in
    memory, else that for ImageNet), and a square of `cutout` pixels (DeVries and Taylor, 2017) that
    is the mean colour. Of large images only, as NSGANetV2 tunes on some sets: first a random
    rotation and scaling (`affine`), then changes of colour, or timm's RandAugment. `balanced`: as
    many images of each class, drawn with replacement.
    """

    crop_padding: int = 4
    horizontal_flip: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    autoaugment: bool = False
    cutout: int = 0
    affine: bool = False
    colour_jitter: bool = False
    rand_augment: str | None = None
    balanced: bool = False


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
        self.augment, self.seed, self.training = augment, seed, augment is not None
        self.balanced = augment is not None and augment.balanced

    def __len__(self) -> int:
        return _batches(len(self.data.labels), self.batch_size, self.training)

    def epoch(
        self, epoch: int = 0, first: int = 0, every: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from number `first` on, or `every` second of them, and so on.

        With augmentation they are shuffled, whole, and shared: this process gets its part of each.
        """
        for number, index in _numbered(self, epoch, first, every):
            yield self._batch(index, _batch_stream(self, epoch, number))

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


def resize(images: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """Float images `[B, 3, H, W]` at `size` pixels, in the same memory format."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode=mode, antialias=size < images.shape[-1])


def crop_and_flip(images: Tensor, padding: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each image `[3, S, S]` of a batch cropped at random after zero padding, and flipped with
    probability 1/2.

    One gather does both; the result is channels-last.
    """
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    rows, columns = torch.randint(2 * padding + 1, (2, count, 1), generator=rng) + torch.arange(
        size
    )
    if flip:
        turned = torch.rand(count, 1, generator=rng) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def autoaugment(images: Tensor, rng: torch.Generator) -> Tensor:
    """uint8 images `[B, 3, S, S]`, each with a draw of its own from the CIFAR-10 policy, in the
    same memory format.

    One by one and through Pillow, which is faster on small images than torchvision's tensor
    operations.
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
    """Normalised images `[B, 3, S, S]`, each with a square of `side` pixels set to 0, the mean
    colour.

    Its centre is uniform over the image, so that part of it may lie outside (DeVries and Taylor,
    2017, section 3.2).
    """
    corner = torch.randint(images.shape[-1], (2, len(images), 1), generator=rng) - side // 2
    pixels = torch.arange(images.shape[-1])
    rows, columns = (pixels >= corner) & (pixels < corner + side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


Transform = Callable[[Image.Image], Tensor]


def training_transform(size: int, normalise: Normalisation, augment: Augmentation) -> Transform:
    """A large image for training, all but `cutout`; it draws from the global random streams."""
    steps = [
        v2.RandomAffine(45, (0.4, 0.4), (0.75, 1.5), interpolation=v2.InterpolationMode.BILINEAR)
    ] * augment.affine
    steps += [v2.RandomResizedCrop(size, scale=augment.crop_scale)]
    steps += [v2.RandomHorizontalFlip()] * augment.horizontal_flip
    steps += [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128)] * augment.autoaugment
    steps += [v2.ColorJitter(brightness=32 / 255, saturation=0.5)] * augment.colour_jitter
    if augment.rand_augment:
        steps.append(_rand_augment(augment.rand_augment, size, normalise))
    return v2.Compose([*steps, *_as_numbers(normalise)])


def _rand_augment(
    policy: str, size: int, normalise: Normalisation
) -> Callable[[Image.Image], Image.Image]:
    """timm's, with what it fills gaps by, and how far it may move an image, as timm's own loaders
    choose them.
    """
    from timm.data import rand_augment_transform

    colour = tuple(min(255, round(255 * mean)) for mean in normalise.mean)
    return rand_augment_transform(policy, {"translate_const": int(size * 0.45), "img_mean": colour})


def evaluation_transform(size: int, normalise: Normalisation, view: str = "bicubic") -> Transform:
    """A large image as it is evaluated."""
    return v2.Compose([*evaluation_steps(size, view), *_as_numbers(normalise)])


def _as_numbers(normalise: Normalisation) -> list[v2.Transform]:
    scaled = v2.ToDtype(torch.float32, scale=True)
    return [v2.PILToTensor(), scaled, v2.Normalize(normalise.mean, normalise.std)]


class FileLoader:
    """Batches of images read from disk by `workers` processes, each as `transform` makes it.

    For `training` they are shuffled, and so on, as by `MemoryLoader`, with squares of `cutout`
    pixels.
    """

    def __init__(
        self,
        files: EncodedImages,
        batch_size: int,
        transform: Transform,
        training: bool,
        seed: int = 0,
        workers: int = 0,
        cutout: int = 0,
        balanced: bool = False,
    ):
        self.data, self.batch_size, self.transform, self.training = (
            files,
            batch_size,
            transform,
            training,
        )
        self.seed, self.workers, self.cutout, self.balanced = seed, workers, cutout, balanced

    def __len__(self) -> int:
        return _batches(len(self.data.labels), self.batch_size, self.training)

    def epoch(
        self, epoch: int = 0, first: int = 0, every: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        numbered = _numbered(self, epoch, first, every)
        loader = torch.utils.data.DataLoader(
            _Files(self.data, self.transform, (self.seed, epoch)),
            batch_sampler=[index.tolist() for _, index in numbered],
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=ignore_signals,
        )
        skipped = 0
        for (number, _), (batch, broken) in zip(numbered, loader, strict=True):
            if isinstance(broken, UserError):
                raise broken
            skipped += broken
            if batch is not None:
                images, labels = batch
                rng = _batch_stream(self, epoch, number)
                yield (cutout(images, self.cutout, rng) if self.cutout else images), labels
            elif self.training:  # to go on would be to train on nothing
                raise UserError(
                    f"{self.data.source.root}: a whole batch of {broken} images cannot be read"
                )
        if skipped:
            print(
                f"{self.data.source.root}: skipped {skipped} of {len(self.data.labels)} images",
                file=sys.stderr,
            )


class _Files(torch.utils.data.Dataset):
    """Each image has a random stream of its own, so that the number of workers changes nothing."""

    def __init__(self, files: EncodedImages, transform, names: tuple[int, int]):
        self.files, self.transform, self.names = files, transform, names

    def __len__(self) -> int:
        return len(self.files.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | UserError | None:
        try:
            image = self.files.open(index)
        # handed on, since a worker process would wrap it into a traceback
        except UserError as error:
            return error
        if image is None:
            return None
        with torch.random.fork_rng(devices=[]):
            seed_global(stream(*self.names, index))
            return self.transform(image), self.files.labels[index]


def _collate(samples: list) -> tuple[list[Tensor] | None, int | UserError]:
    """A batch of the images that could be read, if any, and how many could not; or the first error
    among them.
    """
    for sample in samples:
        if isinstance(sample, UserError):
            return None, sample
    good = [sample for sample in samples if sample is not None]
    return (torch.utils.data.default_collate(good) if good else None), len(samples) - len(good)


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
    if augment is None:
        transform = evaluation_transform(images.size, normalise, images.view)
        return FileLoader(images, batch_size, transform, False, seed, workers)
    transform = training_transform(images.size, normalise, augment)
    return FileLoader(
        images, batch_size, transform, True, seed, workers, augment.cutout, augment.balanced
    )


class Resized:
    """The batches of a loader, resized to `size` pixels."""

    def __init__(self, batches: Loader, size: int, mode: str = "bilinear"):
        self.batches, self.size, self.mode = batches, size, mode

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(
        self, epoch: int = 0, first: int = 0, every: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches.epoch(epoch, first, every):
            yield resize(images, self.size, self.mode), labels


def _order(batches: Loader, epoch: int) -> Tensor:
    """Indices of the images of an epoch; shuffled for training."""
    count = len(batches.data.labels)
    if not batches.training:
        return torch.arange(count)
    rng, labels = stream(batches.seed, "batches", epoch), batches.data.labels
    if batches.balanced:
        return torch.multinomial(
            1 / labels.bincount()[labels].double(), count, replacement=True, generator=rng
        )
    return torch.randperm(count, generator=rng)


def _numbered(batches: Loader, epoch: int, first: int, every: int) -> list[tuple[int, Tensor]]:
    """The numbers of the wanted batches, and which images are in them, for this process."""
    size, training = batches.batch_size, batches.training
    if training and size % distributed.size():
        raise UserError(
            f"batch_size: {size} images cannot be shared by {distributed.size()} processes"
        )
    split = _order(batches, epoch).split(size)
    numbered = [(number, split[number]) for number in range(len(batches))[first::every]]
    return (
        [(number, index[distributed.share(len(index))]) for number, index in numbered]
        if training
        else numbered
    )


def _batch_stream(batches: Loader, epoch: int, number: int) -> torch.Generator:
    """What augments this process's part of a batch."""
    rank = distributed.rank()
    return stream(batches.seed, "augmentation", epoch, number, *([rank] if rank else []))


def _batches(images: int, batch_size: int, training: bool) -> int:
    """Training drops the last, smaller batch, unless it is the only one."""
    return images // batch_size if training and images >= batch_size else -(-images // batch_size)


@dataclass(frozen=True)
class BatchRecipe:
    """How images become the batches of a stage."""

    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    horizontal_flip: bool
    num_workers: int
    seed: int

    def batches(self, images: Images, purpose: str, training: bool) -> Loader:
        """Batches for a part of the work; each `purpose` has random streams of its own."""
        augment = Augmentation(self.crop_padding, self.horizontal_flip) if training else None
        seed = stream(self.seed, purpose).initial_seed()
        normalise = Normalisation(self.mean, self.std)
        return loader(images, self.batch_size, normalise, augment, seed, self.num_workers)

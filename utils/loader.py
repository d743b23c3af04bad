"""Batches of images: every random choice is a function of the seed, the epoch and the batch.

B denotes the number of images of a batch, S the side in pixels of small images.
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
    """Random crop and horizontal flip, and further steps where asked for.

    AutoAugment (Cubuk et al., CVPR 2019) is that for CIFAR-10 for images in memory, else that for
    ImageNet; cutout is by DeVries and Taylor, 2017.
    """

    crop_padding: int = 4  # pixels of zero padding around an image in memory
    horizontal_flip: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)  # shares of the area of a larger image
    autoaugment: bool = False
    cutout: int = 0  # side in pixels of a square of the mean colour
    # of larger images only, as NSGANetV2 tunes on some sets
    affine: bool = False  # random rotation and scaling
    colour_jitter: bool = False
    rand_augment: str | None = None  # timm's name of a policy
    balanced: bool = False  # as many images of each class, drawn with replacement


Batch = tuple[Tensor, Tensor]  # images [B, 3, H, W] and labels [B]


class _Batches:
    """Which images are in which batch: a function of the seed and the epoch.

    For training they are shuffled, in whole batches, and shared: each process gets its part of
    each batch. Every batch has a random stream of its own, so that an epoch can start at any.
    """

    data: Images
    batch_size: int
    training: bool
    seed: int
    balanced: bool

    def __len__(self) -> int:
        """Training drops the last, smaller batch, unless it is the only one."""
        images, size = len(self.data.labels), self.batch_size
        return images // size if self.training and images >= size else -(-images // size)

    def order(self, epoch: int) -> Tensor:
        """Indices of the images of an epoch."""
        count, labels = len(self.data.labels), self.data.labels
        if not self.training:
            return torch.arange(count)
        rng = stream(self.seed, "batches", epoch)
        if self.balanced:
            shares = 1 / labels.bincount()[labels].double()
            return torch.multinomial(shares, count, replacement=True, generator=rng)
        return torch.randperm(count, generator=rng)

    def numbered(self, epoch: int, first: int, every: int) -> list[tuple[int, Tensor]]:
        """The numbers of the wanted batches, and which images this process reads for them."""
        size, processes = self.batch_size, distributed.size()
        if self.training and size % processes:
            raise UserError(f"batch_size: {size} images cannot be shared by {processes} processes")
        split = self.order(epoch).split(size)
        numbered = [(number, split[number]) for number in range(len(self))[first::every]]
        if not self.training:
            return numbered
        return [(number, index[distributed.share(len(index))]) for number, index in numbered]

    def stream(self, epoch: int, number: int) -> torch.Generator:
        """What augments this process's part of a batch."""
        rank = distributed.rank()
        return stream(self.seed, "augmentation", epoch, number, *([rank] if rank else []))


@dataclass(frozen=True)
class MemoryLoader(_Batches):
    """Batches of decoded images, float `[B, 3, S, S]`, for training if `augment` is given."""

    data: ImageData
    batch_size: int
    normalise: Normalisation
    augment: Augmentation | None = None
    seed: int = 0

    @property
    def training(self) -> bool:
        return self.augment is not None

    @property
    def balanced(self) -> bool:
        return self.training and self.augment.balanced

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """The batches from number `first` on, all or each `every`-th."""
        for number, index in self.numbered(epoch, first, every):
            yield self._batch(index, self.stream(epoch, number))

    def _batch(self, index: Tensor, rng: torch.Generator) -> Batch:
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
    """Images `[B, 3, S, S]`, each cropped at random after zero padding, and half of them flipped.

    One gather does both; the result is channels-last.
    """
    count, size = len(images), images.shape[-1]
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    corners = torch.randint(2 * padding + 1, (2, count, 1), generator=rng)
    rows, columns = corners + torch.arange(size)
    if flip:
        turned = torch.rand(count, 1, generator=rng) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def autoaugment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images `[B, 3, S, S]`, uint8, each changed by its own draw from the CIFAR-10 policy.

    One by one through Pillow, which is faster on small images than torchvision's tensor operations.
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
    """Normalised images `[B, 3, S, S]`, each with a square of `side` pixels set to the mean colour.

    Its centre is uniform over the image, so that part of it may lie outside (DeVries and Taylor,
    2017, section 3.2).
    """
    corner = torch.randint(images.shape[-1], (2, len(images), 1), generator=rng) - side // 2
    pixels = torch.arange(images.shape[-1])
    rows, columns = (pixels >= corner) & (pixels < corner + side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


Transform = Callable[[Image.Image], Tensor]


def training_transform(size: int, normalise: Normalisation, augment: Augmentation) -> Transform:
    """A large image for training, except `cutout`; it draws from the global random streams."""
    turn = {"degrees": 45, "translate": (0.4, 0.4), "scale": (0.75, 1.5)}
    affine = v2.RandomAffine(**turn, interpolation=v2.InterpolationMode.BILINEAR)
    steps = [affine] * augment.affine
    steps += [v2.RandomResizedCrop(size, scale=augment.crop_scale)]
    steps += [v2.RandomHorizontalFlip()] * augment.horizontal_flip
    steps += [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128)] * augment.autoaugment
    steps += [v2.ColorJitter(brightness=32 / 255, saturation=0.5)] * augment.colour_jitter
    if augment.rand_augment:
        from timm.data import rand_augment_transform

        # as timm's own loaders choose them: what fills gaps, and how far an image may move
        colour = tuple(min(255, round(255 * mean)) for mean in normalise.mean)
        options = {"translate_const": int(size * 0.45), "img_mean": colour}
        steps.append(rand_augment_transform(augment.rand_augment, options))
    return v2.Compose([*steps, *_as_numbers(normalise)])


def evaluation_transform(size: int, normalise: Normalisation, view: str = "bicubic") -> Transform:
    """A large image for evaluation."""
    return v2.Compose([*evaluation_steps(size, view), *_as_numbers(normalise)])


def _as_numbers(normalise: Normalisation) -> list[v2.Transform]:
    scaled = v2.ToDtype(torch.float32, scale=True)
    return [v2.PILToTensor(), scaled, v2.Normalize(normalise.mean, normalise.std)]


@dataclass(frozen=True)
class FileLoader(_Batches):
    """Batches of images read from disk by `workers` processes, each image by `transform`."""

    data: EncodedImages
    batch_size: int
    transform: Transform
    training: bool
    seed: int = 0
    workers: int = 0
    cutout: int = 0  # side in pixels of a square of the mean colour
    balanced: bool = False

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """As of `MemoryLoader`; a batch for training of which nothing can be read is empty.

        UserError when that is so of a whole epoch.
        """
        numbered, root = self.numbered(epoch, first, every), self.data.source.root
        loader = torch.utils.data.DataLoader(
            _Files(self.data, self.transform, (self.seed, epoch)),
            batch_sampler=[index.tolist() for _, index in numbered],
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=ignore_signals,
        )
        skipped, good = 0, False
        for (number, _), (batch, broken) in zip(numbered, loader, strict=True):
            if isinstance(broken, UserError):
                raise broken
            skipped += broken
            if batch is not None:
                (images, labels), good = batch, True
                rng = self.stream(epoch, number)
                yield (cutout(images, self.cutout, rng) if self.cutout else images), labels
            elif self.training:  # the step still counts
                yield torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.int64)
        if self.training and skipped and not good:
            raise UserError(f"{root}: none of {skipped} images can be read")
        if skipped:
            print(f"{root}: skipped {skipped} of {len(self.data.labels)} images", file=sys.stderr)


@dataclass(frozen=True)
class _Files(torch.utils.data.Dataset):
    """Each image has a random stream of its own, so that the number of workers changes nothing."""

    files: EncodedImages
    transform: Transform
    names: tuple[int, int]  # seed and epoch

    def __len__(self) -> int:
        return len(self.files.labels)

    def __getitem__(self, index: int) -> Batch | UserError | None:
        try:
            image = self.files.open(index)
        except UserError as error:  # raised here, a worker would wrap it into a traceback
            return error
        if image is None:
            return None
        with torch.random.fork_rng(devices=[]):
            seed_global(stream(*self.names, index))
            return self.transform(image), self.files.labels[index]


def _collate(samples: list) -> tuple[list[Tensor] | None, int | UserError]:
    """A batch of the images that could be read, if any, and how many could not, or an error."""
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
    options = {"cutout": augment.cutout, "balanced": augment.balanced}
    return FileLoader(images, batch_size, transform, True, seed, workers, **options)


@dataclass(frozen=True)
class Resized:
    """The batches of a loader, resized to `size` pixels."""

    batches: Loader
    size: int
    mode: str = "bilinear"

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1) -> Iterator[Batch]:
        for images, labels in self.batches.epoch(epoch, first, every):
            yield (resize(images, self.size, self.mode) if len(labels) else images), labels


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

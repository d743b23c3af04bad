"""Images before they become batches: decoded once, or read from disk when they are wanted."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from utils.errors import UserError

# What Pillow raises on files that are no images, or broken ones.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageData:
    """Decoded images: `images` uint8 `[N, 3, S, S]`, `labels` int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def subset(self, index: Tensor) -> "ImageData":
        return ImageData(self.images[index], self.labels[index])


class ImageSource(Protocol):
    """Where encoded images lie, by numbers: the files of a folder, or the records of an LMDB file."""

    root: Path  # what to name where the whole is meant

    def name(self, number: int) -> str:
        """What to name where one image is meant."""

    def open(self, number: int) -> BinaryIO:
        """Its encoded bytes."""


@dataclass(frozen=True)
class FileSource:
    """Image files."""

    root: Path
    paths: tuple[str, ...]

    def name(self, number: int) -> str:
        return self.paths[number]

    def open(self, number: int) -> BinaryIO:
        return open(self.paths[number], "rb")


@dataclass(frozen=True)
class EncodedImages:
    """N images on disk: their numbers `index [N]` in `source`, and `labels` int64 `[N]`.

    They are evaluated at `size` pixels by the `view` of that name (`VIEWS`). One that cannot be
    read is skipped and named, or with `strict` a UserError.
    """

    source: ImageSource
    index: Tensor
    labels: Tensor
    size: int
    strict: bool = False
    view: str = "bicubic"

    def subset(self, index: Tensor) -> "EncodedImages":
        return replace(self, index=self.index[index], labels=self.labels[index])

    def open(self, position: int) -> Image.Image | None:
        """The image as RGB; None when it is skipped."""
        number = int(self.index[position])
        try:
            with self.source.open(number) as file, Image.open(file) as image:
                return image.convert("RGB")
        except BROKEN_IMAGE as error:
            name = self.source.name(number)
            # no broken image, but a disk or a permission that is missing
            if getattr(error, "errno", None):
                raise UserError(f"{name}: cannot be read ({error.strerror})") from None
            if self.strict:
                raise UserError(f"{name}: cannot be read as an image ({error})") from None
            print(f"skipped {name}: cannot be read as an image ({error})", file=sys.stderr)
            return None


Images = ImageData | EncodedImages


def image_folder(directory: Path, size: int, strict: bool) -> tuple[EncodedImages, list[str]]:
    """The images of a folder with a folder for each class, and the names of the classes; UserError
    when it is none.
    """
    try:
        folder = ImageFolder(str(directory))
    except FileNotFoundError as error:
        wrong = f"{directory}: it must be a folder with a folder of images for each class"
        raise UserError(f"{wrong} ({str(error).split('. ')[0]})") from None
    source = FileSource(Path(directory), tuple(path for path, _ in folder.samples))
    labels = torch.tensor(folder.targets)
    return EncodedImages(source, torch.arange(len(labels)), labels, size, strict), folder.classes


def fitted(images: EncodedImages) -> ImageData:
    """All images as one tensor, each as a whole at `size` pixels, but for those that are skipped."""
    side = images.size

    def fit(image: Image.Image) -> Image.Image:
        return (
            image
            if image.size == (side, side)
            else image.resize((side, side), Image.Resampling.BICUBIC)
        )

    return _decode(images, fit)


def decoded(images: Images) -> ImageData:
    """Images decoded once, as evaluation sees them."""
    if isinstance(images, ImageData):
        return images
    return _decode(images, v2.Compose(evaluation_steps(images.size, images.view)))


def _decode(images: EncodedImages, form: Callable[[Image.Image], Image.Image]) -> ImageData:
    """All images that can be read, each in the `form` of `size` pixels."""
    count, side = len(images.labels), images.size
    pixels, good = (
        np.empty((count, side, side, 3), dtype=np.uint8),
        torch.ones(count, dtype=torch.bool),
    )
    for position in range(count):
        image = images.open(position)
        good[position] = image is not None
        if image is not None:
            pixels[position] = np.asarray(form(image))
    if not good.any():
        raise UserError(f"{images.source.root}: none of its images can be read")
    data = ImageData(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), images.labels)
    if good.all():
        return data
    print(f"{images.source.root}: skipped {int((~good).sum())} of {count} images", file=sys.stderr)
    return data.subset(good.nonzero().flatten())


# How published evaluations see an image at some size: the centre of it at size / 0.875, or all of
# it, squashed. Bicubic: SGNAS and the training on ImageNet. Bilinear: searches and validations of
# NSGANetV2; squashed: its textures.
VIEWS = {
    "bicubic": lambda size: [
        v2.Resize(round(size / 0.875), v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(size),
    ],
    "bilinear": lambda size: [
        v2.Resize(math.ceil(size / 0.875), v2.InterpolationMode.BILINEAR),
        v2.CenterCrop(size),
    ],
    "squash": lambda size: [v2.Resize((size, size), v2.InterpolationMode.BICUBIC)],
}


def evaluation_steps(size: int, view: str = "bicubic") -> list[v2.Transform]:
    """What is done to an image of any size before it is evaluated at `size` pixels."""
    return VIEWS[view](size)

"""Images before they become batches: decoded once, or read from disk when they are needed.

N denotes the number of images, S their side in pixels.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from utils.class_folders import few, labelled_files
from utils.decoding import UnreadableImage, decode
from utils.errors import UserError
from utils.json_file import one_line


@dataclass(frozen=True)
class ImageData:
    """Decoded images: `images` uint8 `[N, 3, S, S]`, `labels` int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def subset(self, index: Tensor) -> "ImageData":
        return ImageData(self.images[index], self.labels[index])


class ImageSource(Protocol):
    """Numbered encoded images: the files of a folder, or the records of an LMDB file."""

    root: Path  # names all of them in messages

    def name(self, number: int) -> str:
        """The name of an image in messages."""

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
        path = self.paths[number]
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise UserError(f"{path}: this is no file")
        return open(path, "rb")


@dataclass(frozen=True)
class EncodedImages:
    """Images on disk: their numbers `index` in `source` `[N]`, and `labels` int64 `[N]`.

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
        try:
            return self.decode(position)
        except UnreadableImage as error:
            wrong = f"{self.name(position)}: cannot be read as an image ({error})"
            if self.strict:
                raise UserError(wrong) from None
            print(f"skipped {wrong}", file=sys.stderr)
            return None

    def decode(self, position: int) -> Image.Image:
        """The image as RGB; UnreadableImage when it is broken, UserError when its file is."""
        try:
            with self.source.open(int(self.index[position])) as file:
                return decode(file)
        except OSError as error:  # a disk or a permission that is missing
            reason = error.strerror or error
            raise UserError(f"{self.name(position)}: cannot be read ({reason})") from None

    def name(self, position: int) -> str:
        """The name of the image in messages."""
        return self.source.name(int(self.index[position]))


Images = ImageData | EncodedImages


def image_folder(directory: Path, size: int, strict: bool) -> tuple[EncodedImages, list[str]]:
    """The images of a folder with a folder for each class, and the names of the classes.

    UserError when it is no such folder, or nothing of a class can be read.
    """
    files = labelled_files(Path(directory))
    source, labels = FileSource(Path(directory), tuple(files.paths)), torch.tensor(files.labels)
    images = EncodedImages(source, torch.arange(len(labels)), labels, size, strict)
    check_readable(images, files.classes)
    return images, files.classes


def check_readable(images: EncodedImages, classes: Sequence[str], what: str = "images") -> None:
    """UserError when not one image of a class can be read; `what` is what it calls them."""
    order, counts = (
        images.labels.argsort(stable=True),
        images.labels.bincount(minlength=len(classes)),
    )
    for name, positions in zip(classes, order.split(counts.tolist()), strict=True):
        own = positions.tolist()
        errors = (_broken(images, position) for position in own)
        if own and all(error is not None for error in errors):
            none = f"class {one_line(name, 60)}: none of its {what} can be read"
            first = f"{images.name(own[0])}: {_broken(images, own[0])}"
            raise UserError(f"{images.source.root}: {none} ({len(own)}; the first: {first})")


def _broken(images: EncodedImages, position: int) -> UnreadableImage | None:
    """Why an image cannot be read, if it cannot."""
    try:
        images.decode(position)
    except UnreadableImage as error:
        return error
    return None


def labelled_as(
    images: Images, found: Sequence[str], where: Path | str, classes: Sequence[str], other: object
) -> Images:
    """Images whose labels number the names `found`, with labels that number `classes`.

    UserError when a name is in one of the two alone; it calls them `where` and `other`.
    """
    if list(found) == list(classes):
        return images
    only = {
        place: sorted(set(one) - set(two))
        for place, one, two in (("only here", found, classes), ("only there", classes, found))
    }
    if any(only.values()):
        differ = "; ".join(f"{few(names)} ({place})" for place, names in only.items() if names)
        raise UserError(f"{where}: its classes are not those of {other}: {differ}")
    number = {name: label for label, name in enumerate(classes)}
    return replace(images, labels=torch.tensor([number[name] for name in found])[images.labels])


def at_size(images: Tensor, size: int) -> Tensor:
    """Images `[N, C, S, S]` of values from 0 to 255, resized to `size` pixels, bilinear, uint8."""
    if images.shape[-1] != size:
        side = (size, size)
        images = F.interpolate(images.float(), size=side, mode="bilinear", antialias=True)
    if images.dtype != torch.uint8:
        images = images.round().clamp(0, 255).to(torch.uint8)
    return images.contiguous()


def fitted(images: EncodedImages) -> ImageData:
    """All images that can be read, whole, resized to `size` pixels."""
    side = (images.size, images.size)
    return _decode(images, lambda image: image.resize(side, Image.Resampling.BICUBIC))


def decoded(images: Images) -> ImageData:
    """All images that can be read, as evaluation sees them."""
    if isinstance(images, ImageData):
        return images
    return _decode(images, v2.Compose(evaluation_steps(images.size, images.view)))


def _decode(images: EncodedImages, form: Callable[[Image.Image], Image.Image]) -> ImageData:
    """All images that can be read, brought to `size` pixels by `form`."""
    count, side, root = len(images.labels), images.size, images.source.root
    pixels = np.empty((count, side, side, 3), dtype=np.uint8)
    good = torch.ones(count, dtype=torch.bool)
    for position in range(count):
        image = images.open(position)
        good[position] = image is not None
        if image is not None:
            pixels[position] = np.asarray(form(image))
    if not good.any():
        raise UserError(f"{root}: none of its images can be read")
    data = ImageData(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), images.labels)
    if good.all():
        return data
    print(f"{root}: skipped {int((~good).sum())} of {count} images", file=sys.stderr)
    return data.subset(good.nonzero().flatten())


# How published evaluations bring an image to a size: the centre of it at size / 0.875, or all of
# it, squashed. Bicubic: SGNAS and the training on ImageNet. Bilinear: searches and validations of
# NSGANetV2; squashed: its textures.
_BICUBIC, _BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
VIEWS = {
    "bicubic": lambda size: [v2.Resize(round(size / 0.875), _BICUBIC), v2.CenterCrop(size)],
    "bilinear": lambda size: [v2.Resize(math.ceil(size / 0.875), _BILINEAR), v2.CenterCrop(size)],
    "squash": lambda size: [v2.Resize((size, size), _BICUBIC)],
}


def evaluation_steps(size: int, view: str = "bicubic") -> list[v2.Transform]:
    """The transforms of an image of any size before it is evaluated at `size` pixels."""
    return VIEWS[view](size)

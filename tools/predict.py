"""Name the class of images: by a trained network, or by its ONNX file.

    python3 -m tools.predict logs/NET/checkpoints/last.pth IMAGE [IMAGE ...]
    python3 -m tools.predict net.onnx IMAGE [IMAGE ...] --top 1

A checkpoint is one of train_cifar.py, train_imagenet.py or tools.adapt, an ONNX file one of
tools.export: both say how images are brought to size and normalised. An image that cannot be read
is a line of text and exit status 2, before anything is predicted.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from msgspec import Meta
from torch import Tensor

from model.trained import open_own
from tools.formats import onnx_file
from utils.command import Parser, command, positive
from utils.errors import UserError
from utils.images import EncodedImages, FileSource, decoded
from utils.json_file import as_type, parse_json
from utils.loader import Loader, Normalisation, Resized, loader
from utils.table import format_table

BATCH = 64  # images at a time
Side = Annotated[int, Meta(ge=1, le=8192)]
Colour = Annotated[float, Meta(ge=-100, le=100)]
Spread = Annotated[float, Meta(gt=0, le=100)]
Names = Annotated[list[str], Meta(min_length=1, max_length=100_000)]


@dataclass(frozen=True)
class View:
    """How images are brought to what a network takes; an ONNX file holds it as metadata.

    Args:
        read_size: the side in pixels at which images are read.
        image_size: that of the network's input; when it differs, they are resized again.
        resize: squash: the whole image; bicubic, bilinear: the shorter side, and the middle of it.
    """

    mean: tuple[Colour, Colour, Colour]
    std: tuple[Spread, Spread, Spread]
    image_size: Side
    read_size: Side
    classes: Annotated[int, Meta(ge=1, le=100_000)]
    resize: Literal["squash", "bicubic", "bilinear"] = "squash"
    class_names: Names | None = None

    @property
    def names(self) -> list[str]:
        """Of the classes; their numbers where no names are known."""
        return self.class_names or [str(number) for number in range(self.classes)]

    def batches(self, files: list[str]) -> Loader | Resized:
        """Normalised images of `files`, in their order."""
        source, index = FileSource(Path(), tuple(files)), torch.arange(len(files))
        labels = torch.zeros_like(index)
        read = EncodedImages(source, index, labels, self.read_size, True, self.resize)
        batches = loader(decoded(read), BATCH, Normalisation(self.mean, self.std))
        same = self.image_size == self.read_size
        return batches if same else Resized(batches, self.image_size, "bicubic")


Logits = Callable[[Tensor], Tensor]  # images [B, 3, S, S] -> [B, classes]


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    view, logits = (by_onnx if args.network.suffix == ".onnx" else by_checkpoint)(args.network)
    found = probabilities(view, logits, args.images)
    count = min(args.top, len(view.names))
    values, classes = found.topk(count, dim=1)
    rows = [
        [image, view.names[number], f"{100 * value:.1f}"]
        for image, *best in zip(args.images, classes.tolist(), values.tolist(), strict=True)
        for number, value in zip(*best, strict=True)
    ]
    print(format_table(["image", "class", "probability %"], rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("network", type=Path, metavar="CHECKPOINT|NET.onnx", help="a trained network")
    option("images", nargs="+", metavar="IMAGE", help="image files")
    option("--top", type=positive, default=3, help="classes of each image (default 3)")
    return parser.parse_args(argv)


def by_checkpoint(file: Path) -> tuple[View, Logits]:
    trained = open_own(file)
    network = trained.network
    known = {key: tuple(map(float, trained.data[key])) for key in ("mean", "std")}
    sizes = {"image_size": trained.image_size, "read_size": trained.read_size}
    names = {"classes": trained.classes, "class_names": trained.class_names}
    view = View(**known, **sizes, **names, resize=trained.view or "squash")
    return view, network


def by_onnx(file: Path) -> tuple[View, Logits]:
    """UserError where the file is none of tools.export."""
    onnx_file.check_installed(f"{file}")
    try:
        session = onnx_file.open_session(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: it cannot be read ({error.strerror})") from None
    except Exception as error:  # onnxruntime's own, of many kinds
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: onnxruntime cannot read it ({reason})") from None
    texts, found = session.get_modelmeta().custom_metadata_map, {}
    for key in texts.keys() & {field.name for field in fields(View)}:
        found[key] = (
            texts[key] if key == "resize" else parse_json(texts[key], Any, f"{file}: {key}", "JSON")
        )
    view = as_type(found, View, f"{file}", "a file of tools.export: its metadata")
    return view, onnx_file.runner_of(session)


@torch.inference_mode()
def probabilities(view: View, logits: Logits, files: list[str]) -> Tensor:
    """`[N, classes]`: of each image that of each class."""
    batches = [logits(images) for images, _ in view.batches(files).epoch()]
    return torch.cat(batches).softmax(dim=1)


if __name__ == "__main__":
    main()

"""Write the network of a checkpoint, with its weights, as a file for other programs.

    python3 -m tools.export --checkpoint logs/NET/checkpoints/last.pth --format onnx --out net.onnx --verify
    python3 -m tools.export --checkpoint CKPT --format onnx --int8 --out net.int8.onnx
    python3 -m tools.export --checkpoint CKPT --format torch-export --fuse --out net.pt2 --verify
    python3 -m tools.export --checkpoint CKPT --format timm --out my_network.py --verify

The checkpoint is one of train_cifar.py or train_imagenet.py (best, last or ema); for other weights
the options are those of validate.py. `onnx` runs in onnxruntime, `torch-export` in PyTorch without
this project; input "images" `[batch, 3, S, S]`, normalised by the mean and std that the file holds,
of colours in [0, 1]; output "logits" `[batch, classes]`. `timm` is a module after whose import
`timm.create_model("my_network", pretrained=True)` builds the network on timm's own classes, with
the weights beside it.

--verify runs the file on the test images: it is only written when all logits are those of PyTorch,
but for 1e-4 of the largest one. --int8 folds batch norms, calibrates on training images, and
reports accuracy beside that of single precision.
"""

import argparse
import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.layers.bn_folding import folded, plain
from model.trained import Trained, add_network_options, check_network_options, open_trained
from tools.formats import onnx_file, program_file, timm_module
from tools.formats.same_logits import Compared, Runner, compare, latencies
from utils import checkpoint
from utils.command import Parser, command, not_negative, positive
from utils.errors import UserError
from utils.images import Images
from utils.runtime import stream
from utils.table import format_table

FORMATS = ("onnx", "torch-export", "timm")
CALIBRATION_BATCH = 32  # images at a time


@dataclass(frozen=True)
class Written:
    """Files of an exported network, that which it is run by last, and what runs it."""

    name: str
    files: list[Path]
    run: Runner
    exact: bool = True  # its logits should be those of PyTorch

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.stat().st_size for file in self.files)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    trained = open_trained(args)
    network = by_pytorch(trained.network)
    with tempfile.TemporaryDirectory() as folder:
        written = write(args, trained, Path(folder))
        runs = {one.name: one.run for one in written}
        own, compared = None, {}
        if args.verify or args.int8:
            images = some_of(trained.test_images(args.strict_data), args.images)
            own, compared = compare(
                network, runs, trained.batches(images, args.batch_size, args.workers)
            )
        if args.verify:
            for one in written:
                compared[one.name].check(one.name) if one.exact else None
        image = torch.zeros(1, 3, trained.image_size, trained.image_size)
        times = latencies([network, *runs.values()], image, args.runs) if args.runs else []
        report(written, own, compared, times)
        for file in written[-1].files:
            checkpoint.copy(file, args.out.parent / file.name)
    summary(args, trained, own, compared, written[-1])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_network_options(parser)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the file to write; of timm a .py"
    )
    parser.add_argument(
        "--verify", action="store_true", help="write it only if it says what PyTorch says"
    )
    parser.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help="run N test images, evenly spread (default: all)",
    )
    parser.add_argument(
        "--fuse", action="store_true", help="fold batch norms into the convolutions before them"
    )
    parser.add_argument(
        "--int8", action="store_true", help="onnx: weights and activations of 8 bits"
    )
    parser.add_argument(
        "--calibration",
        type=positive,
        default=512,
        metavar="N",
        help="training images for --int8 (default 512)",
    )
    parser.add_argument(
        "--opset", type=int, choices=onnx_file.OPSETS, metavar="V",
        help=f"of onnx, {onnx_file.OPSETS[0]} to {onnx_file.OPSETS[-1]} (default {onnx_file.USUAL_OPSET})",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=not_negative, default=50, help="timed, of each (default 50; 0: none)"
    )
    parser.add_argument(
        "-b", "--batch-size", type=positive, default=256, help="of test images (default 256)"
    )
    parser.add_argument(
        "-j", "--workers", type=not_negative, default=0, help="processes that read images"
    )
    args = parser.parse_args(argv)
    check_network_options(parser, args)
    check_combinations(args)
    return args


def check_combinations(args: argparse.Namespace) -> None:
    """UserError for options that do not go together, before anything is read."""
    if args.format != "onnx" and (args.int8 or args.opset):
        raise UserError(f"--{'int8' if args.int8 else 'opset'}: it goes with --format onnx")
    if args.format == "timm" and args.fuse:
        raise UserError(
            "--fuse: timm's networks have batch norms; it goes with onnx and torch-export"
        )
    if args.format == "timm" and args.out.suffix != ".py":
        raise UserError(f"--out {args.out}: of timm it is a module; its name must end with .py")
    if args.images and not (args.verify or args.int8):
        raise UserError("--images: it goes with --verify or --int8")
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: a file is to be written here, but it is a folder")
    if args.format == "onnx":
        onnx_file.check_installed()


# -- writing ---------------------------------------------------------------------------------------


def by_pytorch(network: nn.Module) -> Runner:
    """The network itself, as it is validated."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))


def about(trained: Trained) -> dict:
    """What a file says of its network; no path of this machine is in it."""
    return {
        "architecture": {**trained.spec.describe(), "options": trained.options},
        **{name: list(map(float, trained.data[name])) for name in ("mean", "std")},
        **{
            "image_size": trained.image_size,
            "classes": trained.classes,
            "dataset": trained.data["dataset"],
        },
    }


def write(args: argparse.Namespace, trained: Trained, folder: Path) -> list[Written]:
    """Write what is asked for into `folder`; the last one counts, others are there to be compared
    with.
    """
    file, size = folder / args.out.name, trained.image_size
    if args.format == "timm":
        files = timm_module.write(file, trained.network, size, about(trained), trained.view)
        return [Written("timm", files, timm_module.runner(file))]
    network = (folded if args.fuse or args.int8 else plain)(trained.network)
    if args.format == "torch-export":
        program_file.write(file, network, size, about(trained))
        return [Written("torch-export", [file], program_file.runner(file))]
    opset = args.opset or onnx_file.USUAL_OPSET
    single = file.with_name(f"single-{file.name}") if args.int8 else file
    onnx_file.write(single, network, size, opset, about(trained))
    written = [Written(f"onnx, opset {opset}", [single], onnx_file.runner(single))]
    if args.int8:
        onnx_file.quantise(single, file, calibration(trained, args))
        written.append(Written("the same, int8", [file], onnx_file.runner(file), exact=False))
    return written


def calibration(trained: Trained, args: argparse.Namespace) -> list[Tensor]:
    """Batches of random training images, as they are evaluated."""
    images = trained.training_images(args.strict_data)
    order = torch.randperm(len(images.labels), generator=stream(0, "calibration"))[
        : args.calibration
    ]
    batches = trained.batches(images.subset(order), CALIBRATION_BATCH, args.workers)
    return [images for images, _ in batches.epoch()]


def some_of(images: Images, count: int | None) -> Images:
    """`count` of them, evenly spread, since folders are sorted by class; all if it is None or too
    many.
    """
    total = len(images.labels)
    if count is None or count >= total:
        return images
    return images.subset(torch.arange(count) * total // count)


# -- what came of it -------------------------------------------------------------------------------


def report(
    written: list[Written], own: Compared | None, compared: dict[str, Compared], times: list[float]
) -> None:
    """A row for PyTorch and one for each file."""
    times = times or [None] * (1 + len(written))
    rows = [row("pytorch", None, own, None, times[0])]
    for one, time in zip(written, times[1:], strict=True):
        found = compared.get(one.name)
        rows.append(row(one.name, one.size, found, found.difference if found else None, time))
    print(
        format_table(["format", "size kB", "top-1 %", "largest difference", "ms at batch 1"], rows)
    )


def row(
    name: str,
    size: int | None,
    found: Compared | None,
    difference: float | None,
    time: float | None,
) -> list:
    return [
        name,
        None if size is None else f"{size / 1000:.1f}",
        None if found is None else f"{found.top1:.2f}",
        None if difference is None else f"{difference:.1e}",
        None if time is None else f"{time:.3f}",
    ]


def summary(
    args: argparse.Namespace,
    trained: Trained,
    own: Compared | None,
    compared: dict[str, Compared],
    last: Written,
) -> None:
    if own is not None:
        found = compared[last.name]
        sizes = ", ".join(map(str, sorted(found.differences)))
        print(f"{own.images} test images of {trained.data['dataset']}, at batch sizes {sizes}")
        print(f"differences are of logits, as shares of the largest one ({own.largest:.3g})")
        print(f"images that get another class than from PyTorch: {found.changed}")
        if trained.chosen_by:
            print(
                f"this checkpoint was chosen by {trained.chosen_by}: on them it looks better than it is"
            )
    print(" and ".join(str(args.out.parent / file.name) for file in reversed(last.files)))


if __name__ == "__main__":
    main()
